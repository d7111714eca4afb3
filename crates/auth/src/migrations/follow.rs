//! What every Auth Service does about migrations, whoever carries them on: it tells how far they are, and keeps its lists right.
//!
//! How far: rows for `/metrics` (`lockgate_migration_…`) and one for `/readyz` (`migrations`), which asks for attention when one waits for
//! somebody and never takes the service out of use. Lists: a flip shows documents at other revisions without an event for each, so
//! the mirror reads those documents again, or whoever writes by a list would be refused for ever.

use super::GOAL;
use crate::{core::Core, metrics::Sample};
use migrate::{Status, StepError};
use net::health::Health;
use std::{collections::BTreeMap, sync::Arc, time::Duration};
use store::Key;
use upgrade::migrate::{Migration, Phase, Side, State, Wait};

/// While one is under way, and when all rest.
const SOON: Duration = Duration::from_secs(2);
const LATER: Duration = Duration::from_secs(15);
/// The row on the board.
const ROW: &str = "migrations";

/// Follows all migrations until the service stops, or nothing will ever be left to tell.
pub(crate) async fn run(core: Arc<Core>) {
    let mut controls = core.mirror.controls();
    let mut shown = BTreeMap::new();
    loop {
        // A state never moves without the control record: the mirror has seen all that came before when this wakes.
        controls.borrow_and_update();
        let wait = match look(&core, &mut shown).await {
            Ok(true) => SOON,
            Ok(false) if all_over(&core).await => return,
            Ok(false) => LATER,
            Err(error) => {
                tracing::warn!(%error, "the state of the migrations cannot be read");
                SOON
            }
        };
        tokio::select! {
            () = core.shutdown.draining() => return,
            changed = controls.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(rules::presence::interval(wait, rand::random())) => {}
        }
    }
}

/// Reads, renews and tells. Says whether one is under way.
async fn look(core: &Core, shown: &mut BTreeMap<&'static str, Side>) -> Result<bool, StepError> {
    let (mut samples, mut held, mut under_way) = (Vec::new(), Vec::new(), false);
    for migration in core.migrations.registry().iter() {
        let status = migrate::status(core.store.as_ref(), migration, GOAL).await?;
        let side = status.state.truth();
        if shown.get(migration.id) != Some(&side) {
            renew(core, migration).await?;
            shown.insert(migration.id, side);
        }
        under_way |= is_under_way(&status);
        held.extend(trouble(core, &status));
        tell(&status, &mut samples);
    }
    core.metrics.tell(samples);
    core.health.set(ROW, if held.is_empty() { Health::Ready } else { Health::Attention(held.join("; ")) });
    Ok(under_way)
}

/// Whether nothing will ever move again.
async fn all_over(core: &Core) -> bool {
    for migration in core.migrations.registry().iter() {
        if !super::is_over(core, migration).await {
            return false;
        }
    }
    true
}

/// Whether time alone carries it on.
fn is_under_way(status: &Status) -> bool {
    let rests = match status.state {
        State::Absent | State::Flipped => true,
        State::Contracted => status.phase == Phase::Done,
        State::Expanded | State::Shadowing | State::Verified | State::Undoing => false,
    };
    status.waiting.is_none() && !rests
}

/// Whether somebody must do something about what it waits for.
pub(crate) fn is_held(wait: &Wait) -> bool {
    match wait {
        Wait::BadRows { .. } | Wait::Differs { .. } | Wait::OtherBuild => true,
        // The course of an upgrade.
        Wait::OldWriters { .. } | Wait::NotYet { .. } | Wait::NotFinal | Wait::Final => false,
    }
}

fn trouble(core: &Core, status: &Status) -> Option<String> {
    let held = status.waiting.as_ref().filter(|wait| is_held(wait)).map(ToString::to_string);
    let why = held.or_else(|| core.migrations.trouble(status.id))?;
    Some(format!("migration {}: {why}; see: tctl migrations ls", status.id))
}

/// Shows the documents of a migrated kind as they are now.
async fn renew(core: &Core, migration: &Migration) -> Result<(), StepError> {
    if !migration.is_one_to_one() || !migration.new_dir().starts_with("doc/") {
        return Ok(());
    }
    let (store, dir) = (core.documents.store(), Key::dir(migration.new_dir().split('/'))?);
    let end = dir.prefix_end();
    let mut next = Some(dir);
    while let Some(from) = next {
        let page = store.range(&from, &end, store::MAX_PAGE).await?;
        page.items.iter().for_each(|item| core.mirror.renew(item, page.revision));
        next = page.next;
    }
    Ok(())
}

/// The states as numbers, in the order of `State::ALL`.
fn number(state: State) -> u64 {
    State::ALL.into_iter().zip(0..).find(|(known, _)| *known == state).map_or(0, |(_, number)| number)
}

fn tell(status: &Status, samples: &mut Vec<Sample>) {
    let mut say = |name, value| samples.push(Sample { name, label: ("migration", status.id.to_owned()), value });
    say("lockgate_migration_state", number(status.state));
    say("lockgate_migration_rows_done", status.done);
    say("lockgate_migration_rows", status.total);
    say("lockgate_migration_bad_rows", status.bad_count);
    say("lockgate_migration_held", u64::from(status.waiting.as_ref().is_some_and(is_held)));
    if let Some(rate) = status.rate {
        // Rows in a second are far below what a float holds exactly.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rate is positive and small")]
        say("lockgate_migration_rows_per_second", rate.round() as u64);
    }
    if let Some(left) = status.left {
        say("lockgate_migration_seconds_left", left.as_secs());
    }
}
