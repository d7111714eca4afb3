//! The control record's rules: how a cluster is born, which Auth Service may start on it, how the next major takes over.
//!
//! `may_start` runs before the first write and implements G2 (no pre-release in production) and G5 (majors in sequence,
//! never back). An Auth of major N works on a cluster version from `final(N-1)` to `final(N)`: on `final(N-1)` it emulates,
//! that is, it stores nothing in a new format. [`adopt`] is the hand-over by the guide's manual way (stop the old Auth,
//! start the new one): it fences the old Auth by the epoch and opens the windows to N. [`finalize`] ends the way back.
//! The record's type is in `types::control`; its compare inside each transaction is in `store`.

use crate::{
    plan::record::{Direction, Upgrade, Way},
    windows::{self, AUTH, Phase, check_windows, resting},
};
use serde::Deserialize;
use types::{
    Code, ControlRecord, Extra, Public, Resource, Version,
    control::{ClusterVersion, FORMAT},
    kind::Member,
    name::ClusterId,
};

/// The last step of a major. No major has a step yet; formats change only with a major, so this number never changes
/// once a major is released.
pub const fn final_of(major: u64) -> ClusterVersion {
    ClusterVersion { major, step: 0 }
}

/// The record of a new cluster: at `final(N)`, with the windows of a cluster at rest.
///
/// Fails for a pre-release in a production cluster (rule G2).
pub fn birth(cluster_id: ClusterId, version: &Version, production: bool) -> Result<ControlRecord, Public> {
    no_prerelease(production, version)?;
    Ok(ControlRecord {
        format: FORMAT,
        cluster_id,
        epoch: 1,
        min_writer_epoch: 1,
        cluster_version: final_of(version.major()),
        windows: resting(version.major()),
        window_gen: 1,
        production,
        upgrade: None,
        migration_lease: None,
        backup: None,
        rollback: None,
        evictions: Vec::new(),
        written_by: Some(version.to_string()),
        written_at: None,
        extra: Extra::new(),
    })
}

/// How an Auth Service may begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Start {
    /// The store is empty: [`birth`].
    Birth,
    /// The cluster is at this binary's major.
    Current,
    /// The cluster is at the end of the major before, and this major has taken over already: new formats stay off.
    Emulate,
    /// The first Auth of this major: [`adopt`], then emulate.
    Adopt,
}

/// Whether this binary may start on this store, decided before its first write.
pub fn may_start(control: Option<&ControlRecord>, binary: &Version) -> Result<Start, Public> {
    let Some(control) = control else { return Ok(Start::Birth) };
    if control.format != FORMAT {
        return Err(Public::new(
            Code::StoreForeign,
            format!("the store's control record has format {}, this release knows {FORMAT}", control.format),
        )
        .hint("the store was written by another program; check the data directory"));
    }
    no_prerelease(control.production, binary)?;
    let (store, own) = (control.cluster_version, binary.major());
    if store.major > own {
        return Err(downgrade(binary, store.major));
    }
    let serving = control.windows.get(AUTH);
    // An Auth of a newer major serves this cluster, even if it has not changed the formats yet.
    if let Some(newer) = serving.map(|window| window.lo).filter(|lo| *lo > own) {
        return Err(downgrade(binary, newer));
    }
    if store.major == own {
        return if store > final_of(own) { Err(downgrade(binary, own)) } else { Ok(Start::Current) };
    }
    if own - store.major > 1 {
        return Err(skip(binary, store.major));
    }
    if store != final_of(store.major) {
        return Err(Public::new(Code::VersionSkip, format!("the upgrade to {} is not finished; this is {binary}", store.major))
            .hint(format!("finish it with the latest {} first", store.major)));
    }
    match serving {
        Some(window) if window.contains(own) => Ok(Start::Emulate),
        Some(window) if window.shut == Some(own) => Err(shut_out(binary, window.hi)),
        Some(_) | None => Ok(Start::Adopt),
    }
}

fn no_prerelease(production: bool, version: &Version) -> Result<(), Public> {
    if production && version.is_prerelease() {
        return Err(Public::new(Code::VersionPrerelease, format!("{version} is a pre-release, and this is a production cluster"))
            .hint("use a release; a cluster for trying pre-releases is created with --allow-prerelease"));
    }
    Ok(())
}

fn downgrade(binary: &Version, major: u64) -> Public {
    Public::new(Code::VersionDowngrade, format!("the store is in use by major {major}; this is {binary}"))
        .hint(format!("use the latest {major}; the way back to an older major is to restore the backup made before the upgrade"))
}

/// Somebody went back to the older major: a process that restarts by itself must not take the cluster over again.
fn shut_out(binary: &Version, serving: u64) -> Public {
    let own = binary.major();
    Public::new(Code::VersionWindow, format!("the window of auth was closed to major {own} again; this is {binary}"))
        .hint(format!("use the latest {serving}; to try {own} again: tctl windows widen auth {own}"))
}

fn skip(binary: &Version, store: u64) -> Public {
    let steps = (store.saturating_add(1)..=binary.major()).take(12).map(|step| step.to_string()).collect::<Vec<_>>().join(", then ");
    Public::new(Code::VersionSkip, format!("the store was last used by major {store}; this is {binary}: majors are taken one at a time"))
        .hint(format!("back up, then upgrade to the latest {steps}"))
}

/// The record after the first Auth of the next major takes over: older Auths are fenced, members of the major before keep
/// their place, members still older must move first.
pub fn adopt(control: &ControlRecord, binary: &Version, members: &[Resource<Member>]) -> Result<ControlRecord, Public> {
    match may_start(Some(control), binary)? {
        Start::Adopt => {}
        Start::Birth | Start::Current | Start::Emulate => return Ok(control.clone()),
    }
    if control.upgrade.is_some() && !is_to_take_over(control, binary) {
        return Err(Public::new(Code::VersionWindow, "an upgrade is in progress and has not reached this Auth Service")
            .hint("see: tctl upgrade status"));
    }
    let floor = binary.major() - 1;
    // Who is quarantined works no more as it is: waiting for it would help nobody.
    let serving = members.iter().filter(|member| member.spec.quarantine().is_none());
    let lagging = serving.filter(|member| member.spec.version.major() < floor && !windows::is_in(AUTH, member));
    let names = crate::inventory::name_hosts(lagging.map(|member| format!("{} ({})", member.spec.hostname, member.spec.version)));
    if !names.is_empty() {
        return Err(Public::new(Code::VersionSkip, format!("members would be two majors behind {binary}: {names}")).hint(format!(
            "start the latest {floor} again, upgrade these members to it, then come back; or remove them: tctl rm member/<id>"
        )));
    }
    let mut next = control.clone();
    for (role, window) in resting(binary.major()) {
        let kept = next.windows.get(&role).map(|old| old.extra.clone()).unwrap_or_default();
        next.windows.insert(role, types::control::Window { extra: kept, ..window });
    }
    next.window_gen = next.window_gen.saturating_add(1);
    next.epoch = next.epoch.saturating_add(1);
    next.min_writer_epoch = next.epoch;
    next.written_by = Some(binary.to_string());
    Ok(next)
}

/// Whether somebody may move windows or evict by hand: not while an upgrade is under way, of whichever release, unless he insists.
/// What stands in the record belongs to the release that wrote it, so that it stands there is all that counts.
pub fn by_hand(control: &ControlRecord, insists: bool) -> Result<(), Public> {
    if control.upgrade.is_none() || insists {
        return Ok(());
    }
    let by = control.written_by.as_deref().map_or_else(String::new, |version| format!(" (the record was written by {version})"));
    Err(Public::new(Code::UpgradeRunning, format!("an upgrade is under way and moves the windows itself{by}")).hint(
        "with the tctl of that release: tctl upgrade status, tctl upgrade pause; if no Auth Service carries it out any more: --force-during-upgrade",
    ))
}

/// Whether the upgrade in progress is one in which this major takes the cluster over.
fn is_to_take_over(control: &ControlRecord, binary: &Version) -> bool {
    under_way(control).is_some_and(|upgrade| {
        (upgrade.way, upgrade.direction) == (Way::TakeOver, Direction::Up) && upgrade.target.major() == binary.major()
    })
}

/// The upgrade in the record, if this release can read it.
fn under_way(control: &ControlRecord) -> Option<Upgrade> {
    Upgrade::deserialize(control.upgrade.as_ref()?).ok()
}

/// Whether a major is being rolled. Before its windows settle, within a major, and where one process takes over, the windows are those of a
/// cluster at rest. What cannot be read is judged by every rule.
fn rolls(control: &ControlRecord) -> bool {
    control.upgrade.is_some()
        && under_way(control).is_none_or(|upgrade| {
            let begun = control.windows.get(AUTH).is_some_and(|window| window.contains(upgrade.target.major()));
            upgrade.way == Way::Roll && begun
        })
}

/// The record after a major that took the cluster over gives it back: the older one may start again, everybody who serves now is
/// fenced, and the newer one does not take over by itself. Members must be back at the older major, and migrations undone.
pub fn give_back(control: &ControlRecord, major: u64) -> Result<ControlRecord, Public> {
    if control.cluster_version != final_of(major) {
        return Err(Public::new(Code::VersionDowngrade, format!("the cluster version is {} already", control.cluster_version.major))
            .hint("only a backup leads back behind the end of an upgrade"));
    }
    let mut next = control.clone();
    let newer = control.windows.get(AUTH).map(|window| window.hi).filter(|hi| *hi > major);
    for (role, window) in resting(major) {
        let kept = next.windows.get(&role).map(|old| old.extra.clone()).unwrap_or_default();
        let shut = newer.filter(|_| role == AUTH);
        next.windows.insert(role, types::control::Window { extra: kept, shut, ..window });
    }
    next.window_gen = next.window_gen.saturating_add(1);
    next.epoch = next.epoch.saturating_add(1);
    next.min_writer_epoch = next.epoch;
    next.upgrade = None;
    Ok(next)
}

/// The record at the end of an upgrade: the cluster version becomes `final(N)`, and there is no way back but a backup.
pub fn finalize(control: &ControlRecord, binary: &Version) -> Result<ControlRecord, Public> {
    match may_start(Some(control), binary)? {
        Start::Current => return Ok(control.clone()),
        Start::Emulate => {}
        Start::Birth | Start::Adopt => {
            return Err(Public::new(Code::VersionWindow, format!("no Auth Service of major {} serves this cluster yet", binary.major())));
        }
    }
    let older_auth = control.windows.get(AUTH).is_none_or(|window| window.lo < binary.major());
    // What this release cannot read, it does not end.
    let another = control.upgrade.is_some()
        && under_way(control).is_none_or(|upgrade| upgrade.direction == Direction::Down || upgrade.target.major() != binary.major());
    if older_auth || another {
        return Err(Public::new(Code::VersionWindow, "Auth Services of the major before may still start").hint("see: tctl upgrade status"));
    }
    let mut next = control.clone();
    next.cluster_version = final_of(binary.major());
    // Whoever serves reads the record again and takes the new epoch on, as after a move of the windows.
    next.window_gen = next.window_gen.saturating_add(1);
    next.epoch = next.epoch.saturating_add(1);
    next.min_writer_epoch = next.epoch;
    next.written_by = Some(binary.to_string());
    Ok(next)
}

/// What is wrong with a record, for `/readyz` and the tests: the invariants I1 and I4 of the upgrade design, and its shape.
pub fn faults(control: &ControlRecord) -> Vec<String> {
    let phase = if rolls(control) { Phase::Rolling } else { Phase::Resting };
    let mut all: Vec<String> = check_windows(&control.windows, phase).iter().map(ToString::to_string).collect();
    if control.min_writer_epoch > control.epoch {
        all.push("the minimum writer epoch is above the epoch".into());
    }
    if let Some(auth) = control.windows.get(AUTH) {
        let (major, last) = (control.cluster_version.major, control.cluster_version == final_of(control.cluster_version.major));
        // An Auth of major N works from final(N-1) to final(N).
        if auth.lo < major || auth.hi > major.saturating_add(u64::from(last)) {
            all.push(format!("the Auth window [{}, {}] does not fit cluster version {major}", auth.lo, auth.hi));
        }
    }
    all
}

#[cfg(test)]
#[path = "control/tests.rs"]
pub(crate) mod tests;
