//! Evictions: members that a narrowing window does not wait for (design 3.3).
//!
//! A member that died keeps its document for ten minutes, and a window does not close while it would stand outside. Somebody who
//! knows that it is gone says so by name, and the control record keeps who said it. An eviction gives nobody away: it holds only
//! as long as the member stays silent, whoever comes back is judged by the windows like anybody else, and who is there is not
//! evicted but upgraded or stopped. Callers: `windows`, `barrier`, and `auth::windows`.

use serde_json::Value;
use std::{collections::BTreeMap, time::Duration};
use types::{ControlRecord, Resource, ResourceName, Time, kind::Member};

/// The most evictions that are kept at a time.
pub const MAX_EVICTIONS: usize = 256;

/// Why a member was not evicted.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum NotEvicted {
    #[error("no member {0} is registered, so nothing waits for it")]
    Unknown(ResourceName),
    #[error("{name} reported {ago} seconds ago: only who is silent can be evicted")]
    Present { name: String, ago: u64 },
    #[error("{0} members are evicted already")]
    TooMany(usize),
}

impl NotEvicted {
    /// What to do instead.
    pub const fn cure(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "see: tctl inventory ls",
            Self::Present { .. } => "upgrade it or stop it, and wait until it is shown as offline; a lock keeps it out: tctl create",
            Self::TooMany(_) => "close the window that these were evicted for, or wait ten minutes until they have left the list",
        }
    }
}

/// Who evicts, when and why.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Consent {
    pub by: String,
    pub at: Time,
    pub reason: String,
}

/// The record with this member evicted. `seated`: it holds an Auth Service's seat. Evictions that hold no more are left out.
pub fn evict(
    control: &ControlRecord,
    name: &ResourceName,
    members: &[Resource<Member>],
    seated: bool,
    consent: &Consent,
    offline_after: Duration,
) -> Result<ControlRecord, NotEvicted> {
    let member = members.iter().find(|member| member.name() == name).ok_or_else(|| NotEvicted::Unknown(name.clone()))?;
    let silent = consent.at.since(member.spec.last_seen);
    if seated || silent <= offline_after {
        return Err(NotEvicted::Present { name: member.spec.hostname.clone(), ago: silent.as_secs() });
    }
    let by_name: BTreeMap<&str, &Resource<Member>> = members.iter().map(|member| (member.name().as_str(), member)).collect();
    let mut next = control.clone();
    next.evictions.retain(|eviction| {
        let evicted = eviction.get("member").and_then(Value::as_str).and_then(|name| by_name.get(name));
        eviction.get("seen").is_none() || evicted.is_some_and(|other| other.name() != name && holds(eviction, other))
    });
    if next.evictions.len() >= MAX_EVICTIONS {
        return Err(NotEvicted::TooMany(next.evictions.len()));
    }
    next.evictions.push(serde_json::json!({
        "member": name, "hostname": member.spec.hostname, "version": member.spec.version, "seen": member.spec.last_seen,
        "by": consent.by, "at": consent.at, "reason": consent.reason,
    }));
    Ok(next)
}

/// Whether somebody evicted the member, and it has not reported since.
pub(crate) fn is_evicted(control: &ControlRecord, member: &Resource<Member>) -> bool {
    let of = |eviction: &&Value| eviction.get("member").and_then(Value::as_str) == Some(member.name().as_str());
    control.evictions.iter().filter(of).any(|eviction| holds(eviction, member))
}

fn holds(eviction: &Value, member: &Resource<Member>) -> bool {
    match eviction.get("seen") {
        // Somebody else's kind of eviction, which says nothing of silence.
        None => true,
        Some(seen) => seen.as_str().and_then(|seen| seen.parse::<Time>().ok()).is_some_and(|seen| member.spec.last_seen <= seen),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        control::birth,
        inventory::tests::member,
        windows::{AGENT, IllegalMove, narrow, settled},
    };
    use types::{Version, name::ClusterId};

    const OFFLINE: Duration = Duration::from_secs(225);

    fn record() -> ControlRecord {
        let born = birth(ClusterId::from_uuid(uuid::Uuid::nil()), &Version::new(8, 0, 0), true).unwrap();
        ControlRecord { windows: settled(8), ..born }
    }
    fn at(mut member: Resource<Member>, seen: i64) -> Resource<Member> {
        member.spec.last_seen = Time::from_unix(seen);
        member
    }
    fn consent(at: i64) -> Consent {
        Consent { by: "ann".into(), at: Time::from_unix(at), reason: "gone for good".into() }
    }

    #[test]
    fn an_evicted_member_is_not_waited_for_until_it_reports_again() {
        let dead = at(member(1, "web-17", &["node"], "7.2.0"), 1000);
        let mut open = record();
        open.windows.get_mut(AGENT).unwrap().lo = 7;
        let closes = |record: &ControlRecord, member: &Resource<Member>| narrow(record, AGENT, 8, 8, std::slice::from_ref(member));
        assert!(matches!(closes(&open, &dead), Err(IllegalMove::Outside { .. })));
        let evicted = evict(&open, dead.name(), std::slice::from_ref(&dead), false, &consent(1300), OFFLINE).unwrap();
        assert_eq!(evicted.window_gen, open.window_gen, "no window was moved");
        closes(&evicted, &dead).unwrap();
        assert!(matches!(closes(&evicted, &at(dead.clone(), 1301)), Err(IllegalMove::Outside { .. })), "it is back");
        assert_eq!((&evicted.evictions[0]["by"], &evicted.evictions[0]["hostname"]), (&"ann".into(), &"web-17".into()));
    }

    #[test]
    fn who_is_there_is_not_evicted() {
        let alive = at(member(1, "web-17", &["node"], "8.0.0"), 1000);
        let try_it = |seated, now| evict(&record(), alive.name(), std::slice::from_ref(&alive), seated, &consent(now), OFFLINE);
        assert_eq!(try_it(false, 1020).unwrap_err().to_string(), "web-17 reported 20 seconds ago: only who is silent can be evicted");
        assert!(matches!(try_it(true, 9000), Err(NotEvicted::Present { .. })), "a seat is held");
        assert!(try_it(false, 1226).is_ok());
        let nobody = ResourceName::new("x").unwrap();
        assert!(matches!(evict(&record(), &nobody, &[], false, &consent(0), OFFLINE), Err(NotEvicted::Unknown(_))));
    }

    #[test]
    fn evictions_that_hold_no_more_leave_the_record_and_there_is_an_end_of_them() {
        let all: Vec<_> = (0..300).map(|number| at(member(number, "h", &["node"], "8.0.0"), 1000)).collect();
        let mut now = record();
        for (done, member) in all.iter().enumerate() {
            match evict(&now, member.name(), &all, false, &consent(2000), OFFLINE) {
                Ok(next) => now = next,
                Err(refused) => {
                    assert_eq!((done, refused), (MAX_EVICTIONS, NotEvicted::TooMany(MAX_EVICTIONS)));
                    break;
                }
            }
        }
        // All but three are back or have left the list.
        let left: Vec<_> =
            all.iter().take(4).cloned().enumerate().map(|(n, member)| at(member, if n == 0 { 3000 } else { 1000 })).collect();
        let next = evict(&now, left[1].name(), &left, false, &consent(4000), OFFLINE).unwrap();
        assert_eq!(next.evictions.len(), 3);
    }
}
