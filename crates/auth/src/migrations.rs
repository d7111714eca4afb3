//! Migrations in the running Auth Service: business works through `migrate::Mirror`, and a task carries them on beside it.
//!
//! One task does one bounded step at a time, migration after migration in the order of the registry; one that waits (for the windows, for
//! `finalize`, for somebody to look at bad rows) is passed over and looked at again when the control record changes. It keeps nothing in
//! memory, and none of its troubles reach the service. Of several Auth Services the first by its seat works; another takes over what
//! stands still. That is only manners: what keeps two apart, and a fenced one out, is each step's own batch (crate `migrate`). Without
//! migrations there is no mirror and no task. What is told of them: `follow`; over the API: `api::upgrade`.

pub(crate) mod follow;

use crate::{
    core::{Core, Fault},
    seat,
};
use migrate::{Limits, Outcome, Runner, StepError, read_journal, read_progress};
use net::backoff::Backoff;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use store::{CommitError, Store};
use tokio::{sync::Notify, time::Instant};
use types::{Code, EventKind, Public};
use upgrade::migrate::{Goal, Journal, Migration, Registry, State};

/// The longest rest between two batches; half of the time is the service's.
const BREATH: Duration = Duration::from_millis(250);
/// Between two looks at what waits, when nothing wakes us.
const LOOK: Duration = Duration::from_secs(10);
/// After a lost race, an unclear commit or a failure.
const AGAIN: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(10));
/// Failures in a row after which the others have their turn.
const TRIES: u32 = 5;
/// What another Auth Service has not carried on for so long is taken over.
const STILL: Duration = Duration::from_secs(60);
/// How long the answer to whose turn it is holds.
const TURN: Duration = Duration::from_secs(5);

/// The goal of every runner: as far as the upgrade has come. A journal that says that somebody wants it back goes before.
pub(crate) const GOAL: Goal = Goal::Contract;

/// The migrations that this Auth Service knows.
pub(crate) struct Migrations {
    registry: Registry,
    wake: Notify,
    /// Why a migration could not be carried on, at the last try.
    troubles: Mutex<BTreeMap<&'static str, String>>,
}

/// The store as business sees it. Without migrations it is the store itself.
pub(crate) fn through(store: &Arc<dyn Store>, registry: &Registry) -> Arc<dyn Store> {
    match registry.iter().next() {
        None => store.clone(),
        Some(_) => Arc::new(migrate::Mirror::new(store.clone(), registry.clone())),
    }
}

impl Migrations {
    pub(crate) fn new(registry: Registry) -> Self {
        Self { registry, wake: Notify::new(), troubles: Mutex::default() }
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.registry.iter().next().is_none()
    }

    pub(crate) fn find(&self, id: &str) -> Result<&Migration, Fault> {
        let unknown = || Public::new(Code::NotFound, "this release has no migration of that name").hint("see: tctl migrations ls");
        self.registry.find(id).ok_or_else(|| unknown().into())
    }

    /// Something was done that may let a migration go on.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Why that migration could not be carried on at the last try.
    pub(crate) fn trouble(&self, id: &str) -> Option<String> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn troubled(&self, id: &'static str, why: Option<String>) {
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        match why {
            Some(why) => drop(troubles.insert(id, why)),
            None => drop(troubles.remove(id)),
        }
    }
}

/// A runner with the writer's epoch of the moment.
pub(crate) fn runner(core: &Core, migration: &Migration) -> Result<Runner, StepError> {
    let holder = format!("{} ({})", core.node_name, core.version);
    Ok(Runner::new(core.store.clone(), *migration, core.documents.writer(), holder, Limits::default())?)
}

/// The state of each migration that this release knows, as the store has it now.
pub(crate) async fn states(core: &Core) -> Result<Vec<(&Migration, State)>, StepError> {
    let mut all = Vec::new();
    for migration in core.migrations.registry.iter() {
        all.push((migration, migrate::status(core.store.as_ref(), migration, GOAL).await?.state));
    }
    Ok(all)
}

/// Carries all migrations on until the service stops, or nothing will ever be left to do.
pub(crate) async fn carry(core: Arc<Core>) {
    let mut controls = core.mirror.controls();
    let mut work = Work { core: core.clone(), turn: None, stood: BTreeMap::new(), backoff: Backoff::new(AGAIN.0, AGAIN.1, rand::random()) };
    loop {
        controls.borrow_and_update();
        let mut over = true;
        for migration in core.migrations.registry.iter() {
            over &= work.carry(migration).await;
        }
        if over || core.shutdown.is_draining() {
            return;
        }
        tokio::select! {
            () = core.shutdown.draining() => return,
            changed = controls.changed() => if changed.is_err() { return },
            () = core.migrations.wake.notified() => {}
            () = tokio::time::sleep(rules::presence::interval(LOOK, rand::random())) => {}
        }
    }
}

/// What the task remembers; all of it may be forgotten.
struct Work {
    core: Arc<Core>,
    /// When it was last asked whose turn it is, and whether it was ours.
    turn: Option<(Instant, bool)>,
    /// Since when a migration that another carries on has stood where it is.
    stood: BTreeMap<&'static str, (Place, Instant)>,
    backoff: Backoff,
}

/// The revisions of a migration's two documents.
type Place = (Option<u64>, Option<u64>);

impl Work {
    /// Goes on until there is nothing to do for now. Says whether it is over for good.
    async fn carry(&mut self, migration: &Migration) -> bool {
        let core = self.core.clone();
        let mut failures = 0;
        while !core.shutdown.is_draining() {
            let began = Instant::now();
            let done = match self.is_ours(migration).await {
                Ok(true) => self.step(migration).await,
                Ok(false) => return false,
                Err(error) => Err(error),
            };
            let pause = match done {
                Ok(Outcome::Moved { .. } | Outcome::Worked { .. }) => {
                    failures = 0;
                    self.backoff.reset();
                    core.migrations.troubled(migration.id, None);
                    began.elapsed().min(BREATH)
                }
                Ok(outcome @ (Outcome::Waiting(_) | Outcome::Done)) => {
                    core.migrations.troubled(migration.id, None);
                    return outcome == Outcome::Done && is_over(&core, migration).await;
                }
                Ok(Outcome::Lost) => self.backoff.next(),
                Ok(Outcome::Unclear(why)) => {
                    tracing::info!(migration = migration.id, why, "it is not known whether a step was done; the journal knows");
                    self.backoff.next()
                }
                Err(error) => {
                    failures += 1;
                    tracing::warn!(migration = migration.id, %error, "a migration could not be carried on");
                    core.migrations.troubled(migration.id, Some(error.to_string()));
                    if failures >= TRIES {
                        return false;
                    }
                    self.backoff.next()
                }
            };
            tokio::select! {
                () = core.shutdown.draining() => return false,
                () = tokio::time::sleep(pause) => {}
            }
        }
        false
    }

    /// One step; what moves is recorded.
    async fn step(&self, migration: &Migration) -> Result<Outcome, StepError> {
        let core = &self.core;
        let before = journal(core, migration).await?;
        let outcome = match runner(core, migration)?.step(GOAL).await {
            // The seat takes the new epoch on, if this Auth Service is still wanted.
            Err(StepError::Commit(CommitError::Fenced { .. })) => return Ok(Outcome::Lost),
            outcome => outcome?,
        };
        let moved = match &outcome {
            Outcome::Moved { from, to } => Some((*from, *to)),
            Outcome::Unclear(_) => {
                let was = before.as_ref().map_or(State::Absent, |journal| journal.state);
                let now = journal(core, migration).await?.filter(|now| now.token == core.documents.writer().0);
                now.map(|now| (was, now.state)).filter(|(was, now)| was != now)
            }
            Outcome::Worked { .. } | Outcome::Waiting(_) | Outcome::Done | Outcome::Lost => None,
        };
        if let Some((from, to)) = moved {
            tracing::info!(migration = migration.id, %from, %to, "a migration reached another state");
            let event = core.event(EventKind::MigrationMove).with("name", migration.id).with("from", from.as_str()).with("to", to.as_str());
            if let Err(error) = core.audit.record(event.with("server_id", core.host_id.to_string())).await {
                tracing::error!(%error, "the move of a migration could not be recorded");
            }
        }
        Ok(outcome)
    }

    /// One Auth Service works, so that the others do not get in its way: the first of those that sit with this major.
    async fn is_ours(&mut self, migration: &Migration) -> Result<bool, StepError> {
        let known = self.turn.filter(|(asked, _)| asked.elapsed() < TURN).map(|(_, ours)| ours);
        let ours = match known {
            Some(ours) => ours,
            // Nothing but manners depends on it.
            None => seat::is_first(&self.core).await.unwrap_or(true),
        };
        if known.is_none() {
            self.turn = Some((Instant::now(), ours));
        }
        if ours {
            self.stood.remove(migration.id);
            return Ok(true);
        }
        let store = self.core.store.as_ref();
        let (journal, progress) = (read_journal(store, migration.id).await?, read_progress(store, migration.id).await?);
        let place = (journal.map(|kept| kept.revision), progress.map(|kept| kept.revision));
        match self.stood.get(migration.id) {
            Some((stood, since)) if *stood == place => Ok(since.elapsed() >= STILL),
            Some(_) | None => {
                self.stood.insert(migration.id, (place, Instant::now()));
                Ok(false)
            }
        }
    }
}

async fn journal(core: &Core, migration: &Migration) -> Result<Option<Journal>, StepError> {
    Ok(read_journal(core.store.as_ref(), migration.id).await?.map(|kept| kept.resource.spec))
}

/// Whether nothing of it will ever move again.
async fn is_over(core: &Core, migration: &Migration) -> bool {
    match journal(core, migration).await {
        Ok(Some(journal)) => journal.swept,
        // Born in the new form; or it has not begun yet.
        Ok(None) => core.mirror.control().as_ref().as_ref().is_some_and(|control| control.cluster_version >= migration.to),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use store::{Clock, Memory, System};

    #[test]
    fn without_migrations_business_uses_the_store_itself() {
        let clock: Arc<dyn Clock> = Arc::new(System);
        let store: Arc<dyn Store> = Arc::new(Memory::new(clock));
        let business = through(&store, &Registry::default());
        assert!(Arc::ptr_eq(&store, &business), "nothing stands in between, so nothing is read twice");
        // And today's release has none.
        assert!(Migrations::new(upgrade::migrate::registry().unwrap()).is_empty());
    }
}
