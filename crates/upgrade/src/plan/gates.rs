//! What stands between the tiers: proof that there is a way back, windows that open and close, data, leaves.
//!
//! The windows are judged by [`crate::barrier::change`], the same function that makes the move; what is said here is only when it is asked
//! and what its refusals mean to somebody who waits. Each function is a leg: true when it is over.

use crate::{
    barrier::{Move, Refused, change},
    evict::is_evicted,
    inventory::name_hosts,
    migrate::State,
    plan::{
        decide::Draft,
        outcome::{Bar, Block, Gate, Hint, Step},
        record::{Direction, Way},
        route::block,
        view::{Condition, Member},
    },
    windows::{AGENT, AUTH, DRAINING, IllegalMove, LEAF, PROXY, is_in},
};
use types::Time;

/// A backup made for this upgrade, restored, logged in against, and rehearsed on.
pub(crate) fn proof(draft: &mut Draft<'_>) -> bool {
    let (view, upgrade) = (draft.view, draft.upgrade);
    // Once members have moved, a backup of now would hold what the old release cannot read.
    let begun = match upgrade.way {
        Way::Roll | Way::TakeOver => draft.admits(AUTH, draft.goal()),
        Way::Swap => view.members.iter().any(|member| member.version == upgrade.target),
    };
    begun || fresh_backup(draft, upgrade.begun.minus(view.policy.backup_age.0), upgrade.is_major())
}

/// Whether there is a backup from that time on, drilled, and rehearsed if asked; else it is made.
pub(crate) fn fresh_backup(draft: &mut Draft<'_>, since: Time, rehearsed: bool) -> bool {
    let view = draft.view;
    let failed = |what: &str, why: &str, waiver: &str| Block {
        waiver: Some(waiver.to_owned()),
        ..block(Bar::Proof, format!("the {what} failed: {why}"), "mend it, then: tctl upgrade resume".into())
    };
    let level = view.control.cluster_version;
    let Some(backup) = view.backup.as_ref().filter(|backup| backup.at >= since && backup.cluster_version == level) else {
        if let Some(why) = view.backup.as_ref().and_then(|backup| backup.failed.as_ref())
            && view.waived("backup").is_none()
        {
            draft.block(failed("backup", why, "backup"));
        } else if view.waived("backup").is_some() {
            return true;
        }
        draft.wait(Gate::Backup, "a backup is being made", "see: tctl backup ls");
        draft.step(Step::Backup);
        return false;
    };
    match &backup.drill {
        None if view.waived("drill").is_none() => {
            draft.wait(Gate::Backup, format!("backup {} is being restored into a scratch store", backup.id), "see: tctl backup ls");
            draft.step(Step::Drill { backup: backup.id.clone() });
            return false;
        }
        Some(drill) if drill.failed.is_some() && view.waived("drill").is_none() => {
            draft.block(failed("drill", drill.failed.as_deref().unwrap_or_default(), "drill"));
            return false;
        }
        Some(_) | None => {}
    }
    if !rehearsed || view.waived("rehearsal").is_some() {
        return true;
    }
    match backup.rehearsal.as_ref().filter(|rehearsal| rehearsal.target == draft.upgrade.target) {
        None => {
            draft.wait(Gate::Backup, format!("the upgrade is being rehearsed on backup {}", backup.id), "see: tctl upgrade status");
            draft.step(Step::Rehearse { backup: backup.id.clone(), target: draft.upgrade.target.clone() });
            false
        }
        Some(rehearsal) => match (&rehearsal.failed, rehearsal.bad_rows.first()) {
            (Some(why), _) => {
                draft.block(failed("rehearsal", why, "rehearsal"));
                false
            }
            (None, Some(_)) => {
                let rows = name_hosts(rehearsal.bad_rows.iter().cloned());
                draft.block(block(
                    Bar::Proof,
                    format!("the rehearsal found rows that {} cannot hold: {rows}", rehearsal.target),
                    "mend or remove them, then: tctl upgrade resume".into(),
                ));
                false
            }
            (None, None) => true,
        },
    }
}

/// A cluster at rest has a place for members one major behind; an upgrade has none.
pub(crate) fn settle(draft: &mut Draft<'_>) -> bool {
    if draft.admits(AUTH, draft.goal()) {
        return true;
    }
    let major = draft.source();
    for role in [PROXY, AGENT, DRAINING, LEAF] {
        if !draft.is_closed_to(role, major) {
            if role == LEAF {
                behind_leaves(draft, major);
            }
            narrow(draft, role, major);
            return false;
        }
    }
    true
}

pub(crate) fn open(draft: &mut Draft<'_>, role: &'static str) -> bool {
    let major = draft.goal();
    if draft.admits(role, major) {
        return true;
    }
    if role == AUTH && draft.upgrade.direction == Direction::Down {
        let floor = |m: &crate::plan::view::Migration| crate::migrate::plan::floor_in(m.floor, m.to.major, m.state);
        if draft.view.migrations.iter().any(|migration| floor(migration) > major) {
            draft.wait(Gate::Data, "data is still in a form that the older major cannot write", "see: tctl migrations ls");
            return false;
        }
    }
    let wanted = Move::Widen { role: role.to_owned(), major };
    let (control, seats) = (&draft.view.control, &draft.view.seats);
    match change(control, &wanted, seats, draft.documents()) {
        Ok(_) => draft.step(Step::Widen { role: role.to_owned(), major }),
        Err(refused) => refusal(draft, &refused),
    }
    false
}

fn refusal(draft: &mut Draft<'_>, refused: &Refused) {
    match refused {
        Refused::Behind { .. } => draft.wait(Gate::Barrier, refused.to_string(), "they acknowledge, or lose their leases, within a minute"),
        Refused::Outside { .. } => {
            let names = draft
                .view
                .members
                .iter()
                .filter(|member| crate::barrier::outside(&draft.view.control, &member.document(), &draft.view.seats));
            let names = names.map(|member| member.name.clone()).collect();
            draft.wait_for(Gate::Outside, names, None, refused.to_string(), refused.cure());
        }
        Refused::Illegal(illegal) => draft.block(block(Bar::Windows, refused.to_string(), illegal.cure())),
    }
}

/// Shuts a role to the major that is left.
pub(crate) fn close(draft: &mut Draft<'_>, role: &'static str) -> bool {
    let (goal, source) = (draft.goal(), draft.source());
    if !draft.admits(role, source) {
        return true;
    }
    if role == DRAINING && !drained(draft) {
        return false;
    }
    if role == LEAF && behind_leaves(draft, goal) {
        return false;
    }
    narrow(draft, role, goal);
    false
}

fn narrow(draft: &mut Draft<'_>, role: &'static str, major: u64) {
    let wanted = Move::Narrow { role: role.to_owned(), lo: major, hi: major };
    let (control, seats) = (&draft.view.control, &draft.view.seats);
    match change(control, &wanted, seats, draft.documents()) {
        Ok(_) => draft.step(Step::Narrow { role: role.to_owned(), lo: major, hi: major }),
        Err(Refused::Illegal(IllegalMove::Outside { names, .. })) => left_outside(draft, role, major, &names),
        Err(refused) => refusal(draft, &refused),
    }
}

/// Members that a closing window would leave outside: long dead agents are evicted; of the others somebody must say.
fn left_outside(draft: &mut Draft<'_>, role: &str, major: u64, named: &str) {
    let view = draft.view;
    let outside = |member: &&Member| {
        let document = member.document();
        member.state != Condition::Missing
            && is_in(role, &document)
            && member.version.major() != major
            && !is_evicted(&view.control, &document)
    };
    let outside: Vec<&Member> = view.members.iter().filter(outside).collect();
    let dead = |member: &&&Member| role == AGENT && view.now.since(member.last_seen) > view.policy.absent_after.0;
    let reason = format!("silent for more than {} while the window of {role} closes", view.policy.absent_after);
    for member in outside.iter().filter(dead) {
        draft.step(Step::Evict { member: member.id.clone(), name: member.name.clone(), reason: reason.clone() });
    }
    let alive: Vec<&&Member> = outside.iter().filter(|member| !dead(member)).collect();
    if alive.is_empty() && !outside.is_empty() {
        return;
    }
    let lines = alive.iter().map(|member| why_outside(draft, member)).collect::<Vec<_>>();
    let silent = alive.iter().filter(|member| !draft.fleet.is_present(member)).map(|member| member.name.as_str()).collect::<Vec<_>>();
    let cure = match silent.as_slice() {
        [] => "mend what its updater reports, or stop it".to_owned(),
        silent => format!("start them, or: tctl upgrade evict {}", silent.join(" ")),
    };
    let cause = if lines.is_empty() { named.to_owned() } else { name_hosts(lines.into_iter()) };
    draft.block(Block {
        members: alive.iter().map(|member| member.name.clone()).collect(),
        ..block(Bar::CannotClose, format!("cannot close the window of {role} to [{major}]: {cause}"), cure)
    });
}

/// `web-17 (18.2.0, disk full)`
fn why_outside(draft: &Draft<'_>, member: &Member) -> String {
    let failed = member.told.as_ref().and_then(|told| told.failed.as_ref());
    match failed {
        Some(why) => format!("{} ({}, {why})", member.name, member.version),
        None if draft.fleet.is_present(member) => format!("{} ({})", member.name, member.version),
        None => format!("{} ({}, silent since {})", member.name, member.version, member.last_seen.whole_seconds()),
    }
}

/// Whether no process of the major that is left drains any more.
fn drained(draft: &mut Draft<'_>) -> bool {
    let (view, goal) = (draft.view, draft.goal());
    let left = |member: &&Member| {
        let document = member.document();
        is_in(DRAINING, &document) && member.version.major() != goal && !is_evicted(&view.control, &document)
    };
    let left: Vec<&Member> = view.members.iter().filter(left).collect();
    let end = left.iter().filter_map(|member| member.drains_until).max();
    // Past its deadline it is no longer waited for, but asked about.
    if left.is_empty() || end.is_none_or(|end| view.now > end) {
        return true;
    }
    let names = left.iter().map(|member| member.name.clone()).collect::<Vec<_>>();
    let cause = format!("sessions go on in processes that drain: {}", name_hosts(names.iter().cloned()));
    draft.wait_for(Gate::Draining, names, end, cause, "they end by themselves, at the latest at their deadline");
    false
}

/// Data in both forms, the new one being the truth.
pub(crate) fn data(draft: &mut Draft<'_>) -> bool {
    let goal = draft.goal();
    carry(draft, false, move |migration| migration.to.major == goal && !matches!(migration.state, State::Flipped | State::Contracted))
}

/// Data in a form that the older major can write. What has only begun is told to go back and not waited for: perhaps nobody who knows
/// it is left.
pub(crate) fn undo(draft: &mut Draft<'_>) -> bool {
    let source = draft.source();
    carry(draft, true, move |migration| {
        migration.to.major == source && migration.state != State::Absent && !(migration.undo && migration.state.admits_old_writers())
    })
}

/// The old form given up.
pub(crate) fn contract(draft: &mut Draft<'_>) -> bool {
    let goal = draft.goal();
    carry(draft, false, move |migration| migration.to.major == goal && !(migration.state == State::Contracted && migration.swept))
}

fn carry(draft: &mut Draft<'_>, undo: bool, open: impl Fn(&crate::plan::view::Migration) -> bool) -> bool {
    let view = draft.view;
    let open: Vec<_> = view.migrations.iter().filter(|migration| open(migration)).collect();
    for migration in &open {
        if migration.undo != undo {
            draft.step(Step::Migrate { id: migration.id.clone(), undo });
            continue;
        }
        match &migration.stuck {
            Some(why) => draft.block(block(
                Bar::Data,
                format!("migration {} is {}: {why}", migration.id, migration.state),
                format!("see: tctl migrations ls; then: tctl migrations retry {}", migration.id),
            )),
            None => {
                let cause = format!("migration {} is {}, {} of {} rows", migration.id, migration.state, migration.done, migration.total);
                draft.wait(Gate::Data, cause, "see: tctl migrations ls");
            }
        }
    }
    open.is_empty()
}

pub(crate) fn leaves(draft: &mut Draft<'_>) -> bool {
    let goal = draft.goal();
    let view = draft.view;
    let behind: Vec<_> =
        view.leaves.iter().filter(|leaf| leaf.version.major() != goal && view.waived(&format!("leaf:{}", leaf.name)).is_none()).collect();
    for leaf in &behind {
        let (cause, cure) = if view.now.since(leaf.last_seen) > view.policy.offline_after.0 {
            (
                format!("leaf {} ({}) has been silent since {}", leaf.name, leaf.version, leaf.last_seen.whole_seconds()),
                format!("mend its link; or leave it behind: tctl upgrade waive leaf:{} --reason=…", leaf.name),
            )
        } else if leaf.by_others {
            (
                format!("leaf {} ({}) is run by other people", leaf.name, leaf.version),
                format!("ask them for {goal}; or leave it behind: tctl upgrade waive leaf:{} --reason=…", leaf.name),
            )
        } else {
            (format!("leaf {} is at {}", leaf.name, leaf.version), format!("there: tctl upgrade apply --to {}", draft.upgrade.goal()))
        };
        draft.wait_for(Gate::Leaf, vec![leaf.name.clone()], None, cause, cure);
    }
    behind.is_empty()
}

/// Whether leaves would stand outside a window that closes; the rules over windows do not know leaves one by one.
fn behind_leaves(draft: &mut Draft<'_>, major: u64) -> bool {
    let view = draft.view;
    let outside: Vec<_> =
        view.leaves.iter().filter(|leaf| leaf.version.major() != major && view.waived(&format!("leaf:{}", leaf.name)).is_none()).collect();
    if outside.is_empty() {
        return false;
    }
    let names = name_hosts(outside.iter().map(|leaf| format!("{} ({})", leaf.name, leaf.version)));
    let first = outside.first().map(|leaf| leaf.name.clone()).unwrap_or_default();
    draft.block(Block {
        members: outside.iter().map(|leaf| leaf.name.clone()).collect(),
        waiver: Some(format!("leaf:{first}")),
        ..block(
            Bar::Leaf,
            format!("these leaves are not at major {major}: {names}"),
            format!("upgrade them there first; or leave them behind: tctl upgrade waive leaf:{first} --reason=…"),
        )
    });
    true
}

/// Who is left behind for now.
pub(crate) fn absent(draft: &mut Draft<'_>) {
    let view = draft.view;
    let silent = |member: &&Member| !draft.fleet.is_present(member) && !is_evicted(&view.control, &member.document());
    let names: Vec<String> = view.members.iter().filter(silent).map(|member| member.name.clone()).collect();
    if !names.is_empty() {
        let text = format!("{} not heard of lately: {}", hosts(names.len()), name_hosts(names.into_iter()));
        draft.note(Hint::Absent, text);
    }
}

pub(crate) fn hosts(count: usize) -> String {
    if count == 1 { "1 member".into() } else { format!("{count} members") }
}
