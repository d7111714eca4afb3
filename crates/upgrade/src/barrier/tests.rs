//! Interleavings of Auth Services that hear late, members that come and go, and whoever moves the windows.

use super::*;
use crate::windows::{AGENT, AUTH, EDGES, PROXY, settled};
use proptest::prelude::*;
use types::{ControlRecord, Extra, HostId, Metadata, SystemRole, Time, control::Window, name::ClusterId};

const AUTHS: usize = 3;

fn member(number: u128, role: &str, major: u64) -> Resource<Member> {
    let system = match role {
        AUTH => SystemRole::Auth,
        PROXY => SystemRole::Proxy,
        _ => SystemRole::Node,
    };
    let spec = Member {
        hostname: format!("{role}-{number}"),
        roles: [system].into(),
        version: Version::new(major, 0, 0),
        boot_id: String::new(),
        started: Time::EPOCH,
        last_seen: Time::EPOCH,
        state: "active".into(),
        skips_version_check: false,
        labels: types::Labels::new(),
        platform: Default::default(),
        capabilities: Vec::new(),
        extra: Extra::new(),
    };
    Resource::new(Metadata::named(&HostId::from_uuid(uuid::Uuid::from_u128(number))), spec)
}

fn born() -> ControlRecord {
    let mut record = crate::birth(ClusterId::from_uuid(uuid::Uuid::nil()), &Version::new(8, 0, 0), true).unwrap();
    record.windows = settled(8);
    record
}

/// What one step does; numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Step {
    Widen(usize, bool),
    Narrow(usize, bool),
    /// An Auth Service's copy of the record catches up.
    Hear(usize),
    /// It acknowledges what it has heard.
    Acknowledge(usize),
    /// Its lease lapses: it was paused, or cut off.
    Lapse(usize),
    /// It is back, reads the record, and takes a seat.
    Return(usize),
    /// A member comes to one of the Auth Services.
    Come(usize, usize, u64),
    /// A member goes, or is disconnected.
    Go(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let role = 0..3usize;
    prop_oneof![
        3 => (role.clone(), any::<bool>()).prop_map(|(role, up)| Step::Widen(role, up)),
        2 => (role.clone(), any::<bool>()).prop_map(|(role, top)| Step::Narrow(role, top)),
        3 => (0..AUTHS).prop_map(Step::Hear),
        3 => (0..AUTHS).prop_map(Step::Acknowledge),
        1 => (0..AUTHS).prop_map(Step::Lapse),
        1 => (0..AUTHS).prop_map(Step::Return),
        4 => (0..AUTHS, role, 6..11u64).prop_map(|(auth, role, major)| Step::Come(auth, role, major)),
        2 => any::<usize>().prop_map(Step::Go),
    ]
}

struct World {
    record: ControlRecord,
    /// What each Auth Service has heard, and its seat.
    heard: Vec<ControlRecord>,
    seats: Vec<Option<u64>>,
    members: Vec<Resource<Member>>,
    next: u128,
    /// Whether whoever widens asks the seats: off, to see that the test would notice.
    barrier: bool,
}

impl World {
    fn new(barrier: bool) -> Self {
        let record = born();
        Self {
            heard: vec![record.clone(); AUTHS],
            seats: vec![Some(record.window_gen); AUTHS],
            record,
            members: Vec::new(),
            next: 1,
            barrier,
        }
    }

    fn make(&mut self, wanted: &Move) {
        let seats: Vec<Seat> = self
            .seats
            .iter()
            .flatten()
            .filter(|_| self.barrier)
            .map(|acknowledged| Seat { host: None, name: "auth".into(), version: Version::new(8, 0, 0), acknowledged: *acknowledged })
            .collect();
        if let Ok(next) = change(&self.record, wanted, &seats, &self.members) {
            self.record = next;
        }
    }

    fn take(&mut self, step: &Step) {
        let role = |number: &usize| [AUTH, PROXY, AGENT][*number].to_owned();
        match step {
            Step::Widen(number, up) => {
                let window = &self.record.windows[&role(number)];
                let major = if *up { window.hi + 1 } else { window.lo - 1 };
                self.make(&Move::Widen { role: role(number), major });
            }
            Step::Narrow(number, top) => {
                let Window { lo, hi, .. } = self.record.windows[&role(number)].clone();
                let left = if *top { hi } else { lo };
                self.make(&Move::Narrow { role: role(number), lo: left, hi: left });
            }
            Step::Hear(auth) => self.heard[*auth] = self.record.clone(),
            Step::Acknowledge(auth) => {
                let heard = self.heard[*auth].window_gen;
                if let Some(seat) = &mut self.seats[*auth] {
                    *seat = heard;
                }
            }
            Step::Lapse(auth) => self.seats[*auth] = None,
            Step::Return(auth) => {
                self.heard[*auth] = self.record.clone();
                self.seats[*auth] = Some(self.record.window_gen);
            }
            Step::Come(auth, number, major) => {
                let role = role(number);
                // An Auth Service reads the record itself before it serves; others are judged by what the one they came to has heard.
                let judge = if role == AUTH { &self.record } else { &self.heard[*auth] };
                let seated = role == AUTH || self.seats[*auth].is_some();
                if seated && judge.windows[&role].contains(*major) {
                    self.members.push(member(self.next, &role, *major));
                    self.next += 1;
                }
            }
            Step::Go(which) if !self.members.is_empty() => {
                let at = which % self.members.len();
                self.members.remove(at);
            }
            Step::Go(_) => {}
        }
    }

    /// A pair that could connect and must not.
    fn illegal(&self) -> Option<String> {
        let of = |role: &'static str| self.members.iter().filter(move |member| is_in(role, member));
        for (client, server) in EDGES {
            for c in of(client) {
                for s in of(server) {
                    let (ours, theirs) = (c.spec.version.major(), s.spec.version.major());
                    if ours > theirs || theirs - ours > 1 {
                        return Some(format!("{client} {ours} beside {server} {theirs}"));
                    }
                }
            }
        }
        None
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn whatever_is_heard_late_no_two_members_meet_that_must_not(steps in prop::collection::vec(step(), 0..120)) {
        let mut world = World::new(true);
        for step in &steps {
            world.take(step);
            prop_assert_eq!(world.illegal(), None, "after {:?}", step);
        }
    }
}

#[test]
fn without_the_barrier_an_auth_service_that_hears_late_admits_what_must_not_be() {
    // It has heard that agents of 7 are admitted beside 8, and not that they no longer are; the Proxies go on to 9.
    let story = [
        Step::Widen(2, false),
        Step::Hear(0),
        Step::Narrow(2, true),
        Step::Widen(0, true),
        Step::Narrow(0, true),
        Step::Come(1, 0, 9),
        Step::Come(0, 2, 7),
    ];
    let end = |barrier| {
        let mut world = World::new(barrier);
        story.iter().for_each(|step| world.take(step));
        world.illegal()
    };
    assert_eq!(end(false).as_deref(), Some("agent 7 beside auth 9"));
    assert_eq!(end(true), None);
}

#[test]
fn a_widening_waits_for_every_seat_and_for_members_outside_and_says_for_whom() {
    let record = born();
    let seat = |name: &str, acknowledged| Seat { host: None, name: name.into(), version: Version::new(8, 0, 0), acknowledged };
    let up = Move::Widen { role: AUTH.into(), major: 9 };
    let refused = |seats: &[Seat], members: &[Resource<Member>]| change(&record, &up, seats, members).unwrap_err().to_string();
    assert!(change(&record, &up, &[seat("auth1", 1)], &[]).is_ok());
    assert_eq!(
        refused(&[seat("auth1", 1), seat("auth2", 0)], &[]),
        "these Auth Services have not acknowledged generation 1 of the windows: auth2 (8.0.0)"
    );
    assert!(refused(&[], &[member(5, AGENT, 7)]).contains("agent-5 (7.0.0)"));
    assert!(matches!(change(&record, &Move::Widen { role: AUTH.into(), major: 10 }, &[], &[]), Err(Refused::Illegal(_))));
}

#[test]
fn the_window_of_auth_closes_on_nobody_who_serves_and_waits_for_nobody_who_has_left() {
    let wide = widen(&born(), AUTH, 9).unwrap();
    let close = Move::Narrow { role: AUTH.into(), lo: 9, hi: 9 };
    let mut old = member(1, AUTH, 8);
    let seat = |number: u128, major| Seat {
        host: Some((&HostId::from_uuid(uuid::Uuid::from_u128(number))).into()),
        name: format!("auth{number}"),
        version: Version::new(major, 0, 0),
        acknowledged: wide.window_gen,
    };
    let refused = |seats: &[Seat], member: &Resource<Member>| {
        let refused = change(&wide, &close, seats, std::slice::from_ref(member)).unwrap_err();
        assert!(matches!(&refused, Refused::Illegal(IllegalMove::Outside { .. })), "{refused}");
        assert!(refused.cure().contains("tctl windows evict") && !refused.passes());
        refused.to_string()
    };
    assert!(refused(&[seat(2, 9)], &old).contains("auth-1 (8.0.0) would be outside"), "its document stands");
    old.spec.state = "draining".into();
    assert!(refused(&[seat(1, 8), seat(2, 9)], &old).contains("auth-1 (8.0.0)"), "it drains, and sits");
    let unread = Seat { host: None, name: "internal/auth/x".into(), version: Version::new(9, 0, 0), acknowledged: 0 };
    assert!(change(&wide, &close, &[unread], std::slice::from_ref(&old)).is_err());
    let closed = change(&wide, &close, &[seat(2, 9)], std::slice::from_ref(&old)).unwrap();
    assert!(closed.min_writer_epoch > wide.epoch);
    // Nor does the next widening wait for it.
    let next = Move::Widen { role: PROXY.into(), major: 9 };
    let seats = [Seat { acknowledged: closed.window_gen, ..seat(2, 9) }];
    change(&closed, &next, &seats, std::slice::from_ref(&old)).unwrap();
    // Without a document, a seat is enough to be there.
    assert!(refused(&[seat(1, 8)], &member(7, AUTH, 9)).contains("auth1 (8.0.0)"));
}

#[test]
fn every_refusal_names_the_step_that_comes_first() {
    let check = |record: &ControlRecord, wanted: Move, cure: &str| {
        let refused = change(record, &wanted, &[], &[]).unwrap_err();
        assert!(refused.cure().contains(cure), "{wanted:?}: {refused}; {}", refused.cure());
        assert!(!refused.to_string().is_empty() && !refused.passes());
    };
    let up = |role: &str, major| Move::Widen { role: role.into(), major };
    let rest = crate::birth(ClusterId::from_uuid(uuid::Uuid::nil()), &Version::new(8, 0, 0), true).unwrap();
    check(&rest, up(AUTH, 9), "tctl windows narrow proxy 8");
    check(&rest, up(PROXY, 9), "tctl windows narrow proxy 8");
    check(&born(), up(PROXY, 9), "tctl windows narrow auth 9");
    check(&born(), up(AGENT, 9), "tctl windows narrow auth 9");
    check(&born(), up(AUTH, 7), "only a backup");
    check(&born(), up("gateway", 9), "roles are auth, proxy");
    let mut up_to = born();
    for role in [AUTH, PROXY] {
        up_to = change(&up_to, &up(role, 9), &[], &[]).unwrap();
        up_to = change(&up_to, &Move::Narrow { role: role.into(), lo: 9, hi: 9 }, &[], &[]).unwrap();
    }
    // Back in the opposite order, and not on to the major after the next.
    check(&up_to, up(AUTH, 8), "tctl windows narrow proxy 8");
    check(&up_to, up(AUTH, 10), "finish the upgrade to 9 first");
    check(&born(), Move::Narrow { role: AUTH.into(), lo: 9, hi: 9 }, "tctl windows widen auth 9");
}

#[test]
fn no_window_widens_while_a_member_of_a_later_releases_role_stands_outside() {
    let mut late = member(7, AGENT, 7);
    late.spec.roles = [SystemRole::Other("app".into())].into();
    assert!(outside(&born(), &late, &[]));
    let wanted = Move::Widen { role: AUTH.into(), major: 9 };
    assert_eq!(change(&born(), &wanted, &[], &[late]).unwrap_err(), Refused::Outside { names: "agent-7 (7.0.0)".into() });
    let mut inside = member(8, AGENT, 8);
    inside.spec.roles = [SystemRole::Other("app".into())].into();
    assert!(change(&born(), &wanted, &[], &[inside]).is_ok());
}
