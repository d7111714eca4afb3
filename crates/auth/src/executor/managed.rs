//! A cluster that takes new releases by itself, in the hours that its policy names.
//!
//! The mirror is the channel: whatever releases its metadata vouches for. The newest that the policy allows is asked for; the plan is the
//! one that a person would read, and it begins only when nothing stands against it. Everything after that is an upgrade like any
//! other: it pauses itself when members fail, and its end waits for somebody's consent unless the policy gives that too.

use crate::{
    core::{Core, Fault},
    executor::{book, is_ours, look},
    windows,
};
use std::{sync::Arc, time::Duration};
use types::{EventKind, Time, Version};
use upgrade::plan::{Managed, Release, View, plan};

/// Between two looks for a new release.
const EVERY: Duration = Duration::from_secs(60);
/// By whom it is begun.
const BY: &str = "upgrade_policy";

/// When it was looked last.
#[derive(Default)]
pub(super) struct Watch(Option<Time>);

impl Watch {
    fn is_due(&mut self, now: Time) -> bool {
        let due = self.0.is_none_or(|looked| now.since(looked) >= EVERY);
        if due {
            self.0 = Some(now);
        }
        due
    }
}

/// Begins the next upgrade if the policy says so; true when one began.
pub(super) async fn begin(core: &Arc<Core>, watch: &mut Watch) -> Result<bool, Fault> {
    if core.releases.is_none() || !is_ours(core).await? || !watch.is_due(core.now()) {
        return Ok(false);
    }
    let Some(managed) = look::policy(core).await?.managed.filter(|managed| is_open(managed, core.now())) else { return Ok(false) };
    let mut look = look::look(core, None).await?;
    let Some(target) = newest(&look.view, &managed) else { return Ok(false) };
    // What was taken back, or left somebody behind, is not begun again by itself.
    if book::ended(core).await?.is_some_and(|ended| ended.target == target) {
        return Ok(false);
    }
    look.view.asked = Some(target);
    let outcome = plan(&look.view);
    let Some(mut upgrade) = outcome.decision.begins().cloned() else {
        if let Some(block) = outcome.decision.blocked.first() {
            tracing::warn!(code = %block.code, cause = block.cause, "a new release is there, and the cluster cannot take it");
        }
        return Ok(false);
    };
    // What an earlier one left, if its end was cut off.
    book::close(core).await?;
    (upgrade.by, upgrade.parent) = (BY.into(), outcome.id.clone());
    let event = core.event(EventKind::UpgradeBegin).with("from", upgrade.from.to_string()).with("to", upgrade.target.to_string());
    let event = event.with("upgrade", upgrade.id.as_str()).with("plan", outcome.id.as_str()).with("by", BY);
    if windows::write(core, &look.control, upgrade.write_to(&look.control.record)).await?.is_none() {
        return Ok(false);
    }
    core.audit.record(event.with("server_id", core.host_id.to_string())).await?;
    Ok(true)
}

/// Whether an upgrade may begin at that time.
fn is_open(managed: &Managed, now: Time) -> bool {
    let (days, second) = (now.unix().div_euclid(86_400), now.unix().rem_euclid(86_400));
    // The first of January 1970 was a Thursday.
    let day = u8::try_from((days + 3).rem_euclid(7) + 1).unwrap_or(1);
    let hour = u8::try_from(second / 3600).unwrap_or(0);
    let (from, to) = (managed.from_hour, managed.to_hour);
    let in_hours = if from == to {
        true
    } else if from < to {
        (from..to).contains(&hour)
    } else {
        hour >= from || hour < to
    };
    in_hours && (managed.days.is_empty() || managed.days.contains(&day))
}

/// The newest release that the policy allows and that somebody would have to move for.
fn newest(view: &View, managed: &Managed) -> Option<Version> {
    let major = view.control.cluster_version.major;
    let fits = |release: &&Release| {
        let version = &release.version;
        let near = version.major() == major || (!managed.minors_only && version.major() > major);
        release.verified && release.mirrored && release.withdrawn.is_none() && !version.is_prerelease() && near
    };
    let newest = view.releases.iter().filter(fits).map(|release| &release.version).max_by(|one, other| one.release_order(other))?;
    let behind = view.members.iter().any(|member| !member.by_hand && member.version.release_order(newest).is_lt());
    behind.then(|| newest.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upgrade_begins_by_itself_only_on_the_days_and_in_the_hours_of_the_policy() {
        // A Monday, 22:30 UTC.
        let monday = Time::from_unix(1_796_077_800);
        let check = |days: &[u8], from_hour, to_hour, expected| {
            let managed = Managed { days: days.to_vec(), from_hour, to_hour, ..Managed::default() };
            assert_eq!(is_open(&managed, monday), expected, "{days:?} {from_hour} {to_hour}");
        };
        check(&[], 0, 0, true);
        check(&[1], 0, 0, true);
        check(&[2, 7], 0, 0, false);
        check(&[], 22, 23, true);
        check(&[], 2, 5, false);
        check(&[], 22, 4, true);
        check(&[], 23, 4, false);
        check(&[], 4, 22, false);
    }
}
