//! The registry by itself: every waiting session gets exactly one answer, whatever agents do and in which order.

use super::*;
use proptest::prelude::*;

fn host(n: u128) -> HostId {
    HostId::from_uuid(uuid::Uuid::from_u128(n))
}
fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
fn registered(registry: &mut Registry, link: u64, id: u128, boot: &str) -> Vec<Output> {
    registry.step(Input::Registered { link: LinkId(link), host: host(id), boot: boot.into(), warm: true }, at(0))
}
fn want(wait: u64, id: u128, ticket: &str) -> Input {
    Input::Wanted { wait: WaitId(wait), host: host(id), client_addr: "c".into(), ticket: ticket.into() }
}
fn show(stream: u64, id: u128, ticket: &str) -> Input {
    Input::Ticket { stream: StreamId(stream), host: host(id), ticket: ticket.into() }
}
fn open(link: u64, ticket: &str) -> Output {
    Output::Send(LinkId(link), ToAgent::Open { ticket: ticket.into(), client_addr: "c".into() })
}
fn failed_with(out: &[Output], wait: u64, code: Code) -> bool {
    out.iter().any(|output| matches!(output, Output::Fail(WaitId(id), error) if *id == wait && error.is(code)))
}
const MISUSE: fn(u64) -> Output = |stream| Output::Drop { stream: StreamId(stream), misuse: true };
const GIVE: fn(u64, u64) -> Output = |wait, stream| Output::Give { wait: WaitId(wait), stream: StreamId(stream), spare: false };

#[test]
fn a_session_is_opened_by_a_ticket_and_the_next_by_the_spare_it_asked_for() {
    let mut registry = Registry::default();
    assert!(registered(&mut registry, 1, 1, "a").is_empty());
    let keep = Output::Send(LinkId(1), ToAgent::Spare { keep: true });
    assert_eq!(registry.step(want(10, 1, "t1"), at(1)), [open(1, "t1"), keep]);
    assert_eq!(registry.step(show(20, 1, "t1"), at(2)), [GIVE(10, 20)]);
    assert!(registry.step(Input::Spare { stream: StreamId(21), host: host(1), boot: None }, at(2)).is_empty());
    let give = Output::Give { wait: WaitId(11), stream: StreamId(21), spare: true };
    assert_eq!(registry.step(want(11, 1, "t2"), at(3)), [give]);
    assert_eq!(registry.step(want(12, 1, "t3"), at(3)), [open(1, "t3")]);
}

#[test]
fn a_ticket_works_once_for_its_host_and_within_its_life() {
    let mut registry = Registry::default();
    registered(&mut registry, 1, 1, "a");
    registered(&mut registry, 2, 2, "a");
    registry.step(want(10, 1, "t1"), at(0));
    assert_eq!(registry.step(show(20, 2, "t1"), at(1)), [MISUSE(20)], "another host");
    assert_eq!(registry.step(show(21, 1, "t1"), at(1)), [GIVE(10, 21)]);
    assert_eq!(registry.step(show(22, 1, "t1"), at(1)), [MISUSE(22)], "second use");
    assert_eq!(registry.step(show(23, 1, "never"), at(1)), [MISUSE(23)], "invented");
    registry.step(want(11, 1, "t2"), at(1));
    assert_eq!(registry.step(show(24, 1, "t2"), at(12)), [MISUSE(24)], "late");
    assert!(failed_with(&registry.step(Input::Tick, at(12)), 11, Code::Timeout));
}

#[test]
fn an_unknown_host_is_offline_and_one_that_goes_away_fails_those_who_wait() {
    let mut registry = Registry::default();
    assert!(failed_with(&registry.step(want(10, 1, "t"), at(0)), 10, Code::NodeOffline));
    registered(&mut registry, 1, 1, "a");
    registry.step(want(11, 1, "t"), at(0));
    assert!(failed_with(&registry.step(Input::Gone { link: LinkId(1) }, at(0)), 11, Code::NodeOffline));
    assert!(registry.len() == 0);
}

#[test]
fn an_agent_that_cannot_take_a_session_says_why_but_only_for_its_own_tickets() {
    let mut registry = Registry::default();
    registered(&mut registry, 1, 1, "a");
    registered(&mut registry, 2, 2, "a");
    registry.step(want(10, 1, "t"), at(0));
    let failed = |link| Input::Failed { link: LinkId(link), ticket: "t".into(), error: Public::new(Code::AccessLimit, "full") };
    assert!(registry.step(failed(2), at(0)).is_empty());
    assert!(failed_with(&registry.step(failed(1), at(0)), 10, Code::AccessLimit));
}

const OLDER: &str = "01890a5d-ac96-774b-bcce-b302099a8057";
const NEWER: &str = "01990a5d-ac96-774b-bcce-b302099a8057";

#[test]
fn sessions_go_to_the_newest_process_of_a_host_and_to_the_older_one_again_when_that_is_gone() {
    let mut registry = Registry::default();
    registered(&mut registry, 1, 1, OLDER);
    let keep = Output::Send(LinkId(1), ToAgent::Spare { keep: true });
    assert_eq!(registry.step(want(9, 1, "t"), at(0)), [open(1, "t"), keep]);
    let spare = |stream, boot: &str| Input::Spare { stream: StreamId(stream), host: host(1), boot: Some(boot.into()) };
    registry.step(spare(20, OLDER), at(0));
    let dropped = |stream| Output::Drop { stream: StreamId(stream), misuse: false };
    assert_eq!(registered(&mut registry, 2, 1, NEWER), [Output::Send(LinkId(1), ToAgent::Spare { keep: false }), dropped(20)]);
    assert_eq!(registry.step(want(10, 1, "u"), at(0))[0], open(2, "u"));
    assert_eq!(registry.step(spare(21, OLDER), at(0)), [dropped(21)], "a spare of the older one is no use any more");
    assert!(registry.step(spare(22, NEWER), at(0)).is_empty());
    // What the older one was asked for it may still answer; what it cannot take, the newer one gets.
    let error = Public::new(Code::AccessLimit, "stopping");
    assert_eq!(registry.step(Input::Failed { link: LinkId(1), ticket: "t".into(), error }, at(0)), [open(2, "t")]);
    // The older one loses its connection and comes back: it stands by.
    registry.step(Input::Gone { link: LinkId(1) }, at(0));
    assert!(registered(&mut registry, 3, 1, OLDER).is_empty());
    assert_eq!(registry.len(), 1);
    // The newer one fails: what it left unanswered goes to the older one, at once.
    let out = registry.step(Input::Gone { link: LinkId(2) }, at(0));
    assert_eq!(out, [dropped(22), open(3, "t"), open(3, "u")]);
    assert_eq!(registry.step(show(30, 1, "u"), at(1)), [GIVE(10, 30)]);
    // The same process again, on a new connection: the old connection was half dead.
    assert_eq!(registered(&mut registry, 4, 1, OLDER), [Output::HangUp(LinkId(3)), open(4, "t")]);
}

#[test]
fn of_processes_that_cannot_be_ordered_the_last_to_come_holds_the_tunnel() {
    let mut registry = Registry::default();
    registered(&mut registry, 1, 1, "a");
    let out = registered(&mut registry, 2, 1, "b");
    assert!(matches!(&out[0], Output::Send(LinkId(1), ToAgent::Refused { error }) if error.is(Code::Conflict)));
    assert_eq!(out[1], Output::HangUp(LinkId(1)));
    registry.step(Input::Gone { link: LinkId(1) }, at(0));
    assert_eq!(registry.registered(LinkId(2)), Some(host(1)));
}

#[test]
fn of_very_many_processes_of_a_host_the_oldest_are_hung_up() {
    let mut registry = Registry::default();
    let boot = |n: u64| format!("01990a5d-ac9{n}-774b-bcce-b302099a8057");
    (0..4).for_each(|n| assert!(registered(&mut registry, n, 1, &boot(n)).is_empty()));
    assert!(registered(&mut registry, 4, 1, &boot(4)).contains(&Output::HangUp(LinkId(0))));
    assert_eq!((registry.len(), registry.hosts().count()), (1, 4));
}

#[test]
fn a_proxy_that_has_just_taken_over_waits_for_hosts_that_are_on_their_way() {
    let mut registry = Registry::default();
    registry.step(Input::Expect(at(20)), at(0));
    assert!(registry.step(want(1, 1, "t"), at(1)).is_empty());
    assert!(registry.step(want(2, 2, "u"), at(1)).is_empty());
    assert_eq!(registered(&mut registry, 5, 1, "a"), [open(5, "t")]);
    assert_eq!(registry.step(show(30, 1, "t"), at(2)), [GIVE(1, 30)]);
    assert!(failed_with(&registry.step(Input::Tick, at(12)), 2, Code::NodeOffline), "one that never comes is offline");
    assert!(failed_with(&registry.step(want(3, 2, "v"), at(21)), 3, Code::NodeOffline), "later it is not waited for");
}

#[test]
fn a_proxy_whose_turn_is_over_sends_its_hosts_away_and_serves_those_that_are_still_here() {
    let mut registry = Registry::default();
    registered(&mut registry, 1, 1, "a");
    assert_eq!(registry.step(Input::Leave(true), at(0)), [Output::Send(LinkId(1), ToAgent::Drain)]);
    assert_eq!(registered(&mut registry, 2, 2, "a"), [Output::Send(LinkId(2), ToAgent::Drain)], "its handshake was under way");
    assert_eq!(registry.step(want(1, 1, "t"), at(0))[0], open(1, "t"));
    registry.step(Input::Leave(false), at(0));
    assert!(registered(&mut registry, 3, 3, "a").is_empty(), "it is our turn again");
}

#[test]
fn pings_keep_a_tunnel_and_silence_ends_it() {
    let mut registry = Registry::default();
    registered(&mut registry, 0, 1, "a");
    let ping = |seq| Output::Send(LinkId(0), ToAgent::Ping { seq });
    assert_eq!(registry.step(Input::Tick, at(0)), [ping(1)]);
    assert!(registry.step(Input::Tick, at(14)).is_empty());
    assert_eq!(registry.step(Input::Tick, at(15)), [ping(2)]);
    registry.step(Input::Heard { link: LinkId(0) }, at(16));
    assert_eq!(registry.step(Input::Tick, at(61)), [ping(3)]);
    assert_eq!(registry.step(Input::Tick, at(62)), [Output::HangUp(LinkId(0))]);
    assert!(registry.len() == 0);
}

#[test]
fn a_spare_is_given_up_when_nobody_comes_for_ten_minutes() {
    let mut registry = Registry::default();
    registered(&mut registry, 0, 1, "a");
    let spare = |stream| Input::Spare { stream: StreamId(stream), host: host(1), boot: None };
    assert_eq!(registry.step(spare(20), at(0)), [Output::Drop { stream: StreamId(20), misuse: false }], "not asked for");
    registry.step(want(1, 1, "t"), at(0));
    registry.step(spare(21), at(0));
    registry.step(Input::Heard { link: LinkId(0) }, at(601));
    let out = registry.step(Input::Tick, at(601));
    assert!(
        out.contains(&Output::Send(LinkId(0), ToAgent::Spare { keep: false }))
            && out.contains(&Output::Drop { stream: StreamId(21), misuse: false })
    );
}

#[test]
fn a_draining_proxy_tells_its_agents_and_takes_no_new_ones() {
    let mut registry = Registry::default();
    registered(&mut registry, 1, 1, "a");
    assert_eq!(registry.step(Input::Drain, at(0)), [Output::Send(LinkId(1), ToAgent::Drain)]);
    assert!(
        matches!(&registered(&mut registry, 2, 2, "a")[..], [Output::Send(LinkId(2), ToAgent::Refused { error }), Output::HangUp(_)] if error.is(Code::Unavailable))
    );
    assert_eq!(registry.step(want(1, 1, "t"), at(0))[0], open(1, "t"), "those who are here are still served");
}

#[test]
fn sessions_that_wait_for_one_host_are_bounded() {
    let mut registry = Registry::default();
    registered(&mut registry, 1, 1, "a");
    for n in 0..MAX_WAITING as u64 {
        registry.step(want(n, 1, &n.to_string()), at(0));
    }
    assert!(failed_with(&registry.step(want(9999, 1, "more"), at(0)), 9999, Code::AccessLimit));
    registry.step(Input::Abandoned { wait: WaitId(0) }, at(0));
    assert_eq!(registry.step(want(9999, 1, "more"), at(0)), [open(1, "more")]);
}

fn any_input() -> impl Strategy<Value = Input> {
    let (link, id, stream, ticket) = (0u64..6, 0u128..3, 0u64..1000, 0u64..40);
    prop_oneof![
        (link.clone(), id.clone(), 0u32..6, any::<bool>()).prop_map(|(link, id, boot, warm)| Input::Registered {
            link: LinkId(link),
            host: host(id),
            // Some that can be ordered, and some that cannot.
            boot: if boot < 3 { boot.to_string() } else { format!("01990a5d-ac9{boot}-774b-bcce-b302099a8057") },
            warm
        }),
        link.clone().prop_map(|link| Input::Heard { link: LinkId(link) }),
        link.clone().prop_map(|link| Input::Gone { link: LinkId(link) }),
        (link, ticket.clone()).prop_map(|(link, t)| Input::Failed { link: LinkId(link), ticket: t.to_string(), error: offline() }),
        (id.clone(), ticket.clone()).prop_map(|(id, t)| want(t, id, &t.to_string())),
        (stream.clone(), id.clone(), ticket).prop_map(|(stream, id, t)| show(stream, id, &t.to_string())),
        (stream, id).prop_map(|(stream, id)| Input::Spare { stream: StreamId(stream), host: host(id), boot: None }),
        Just(Input::Tick),
        Just(Input::Expect(at(5))),
        any::<bool>().prop_map(Input::Leave),
    ]
}

proptest! {
    #[test]
    fn every_session_that_waits_gets_exactly_one_answer(steps in prop::collection::vec((any_input(), 0u64..20), 0..200)) {
        let mut registry = Registry::default();
        let (mut now, mut asked, mut answered) = (at(0), Vec::new(), Vec::new());
        let mut fresh = 0;
        let mut links = 100;
        for (mut input, pause) in steps {
            now += at(pause);
            // Ids are given out once by the loop.
            match &mut input {
                Input::Wanted { wait, ticket, .. } => {
                    *wait = WaitId(fresh);
                    *ticket = fresh.to_string();
                    asked.push(WaitId(fresh));
                    fresh += 1;
                }
                Input::Registered { link, .. } => { links += 1; *link = LinkId(links); }
                Input::Gone { link } => *link = LinkId(links.saturating_sub(link.0)),
                _ => {}
            }
            for output in registry.step(input, now) {
                if let Output::Give { wait, .. } | Output::Fail(wait, _) = output { answered.push(wait); }
            }
            prop_assert_eq!(registry.hosts().count(), registry.links.len());
        }
        for output in registry.step(Input::Tick, now + TICKET_LIFE + at(1)) {
            if let Output::Give { wait, .. } | Output::Fail(wait, _) = output { answered.push(wait); }
        }
        answered.sort();
        prop_assert_eq!(asked, answered);
    }
}
