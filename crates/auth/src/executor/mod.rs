//! The executor of upgrades: looks at the cluster, asks the planner, does what it says, and looks again (design 3.7).
//!
//! It remembers nothing. It may be killed at any instant, and runs in every Auth Service; of several the newest works, and of those of one
//! version the first by its seat. That is only manners: what keeps two apart is that each step is written on the condition that the
//! cluster is still as it was looked at (`act`). What it writes down for the next look is in `book`; `look` gathers; `proof` makes
//! backups and tries them. What people say about an upgrade comes by `api::plan`.

pub(crate) mod act;
pub(crate) mod book;
pub(crate) mod look;
mod managed;
pub(crate) mod proof;

use crate::{
    core::{Core, Fault},
    seat,
};
use net::{backoff::Backoff, health::Health};
use proof::Workshop;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use types::Version;
use upgrade::plan::{Decision, Verdict, decide};

/// Between two looks when nothing was done; at least ten times what a look takes.
const LOOK: Duration = Duration::from_secs(5);
/// After a failure.
const AGAIN: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// Its row on the health board, while an upgrade is under way.
const COMPONENT: &str = "upgrade";

/// Carries upgrades out until the service stops.
pub(crate) async fn run(core: Arc<Core>, workshop: Workshop) {
    let mut controls = core.mirror.controls();
    let mut backoff = Backoff::new(AGAIN.0, AGAIN.1, rand::random());
    let mut watch = managed::Watch::default();
    workshop.sweep();
    loop {
        controls.borrow_and_update();
        let began = Instant::now();
        let done = tokio::select! {
            // It may be killed at any instant, so it may be left at any.
            () = core.shutdown.draining() => return,
            done = once(&core, &workshop, &mut watch) => done,
        };
        let pause = match done {
            Ok(true) => {
                backoff.reset();
                began.elapsed().min(LOOK)
            }
            Ok(false) => {
                backoff.reset();
                LOOK.max(began.elapsed() * 10)
            }
            Err(fault) => {
                tracing::warn!(error = %fault, "the upgrade could not be carried on; looking again");
                core.health.set(COMPONENT, Health::Attention(format!("the upgrade could not be carried on: {fault}")));
                backoff.next()
            }
        };
        tokio::select! {
            () = core.shutdown.draining() => return,
            changed = controls.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One look and what follows from it; true when something was done.
async fn once(core: &Arc<Core>, workshop: &Workshop, watch: &mut managed::Watch) -> Result<bool, Fault> {
    let under_way = core.mirror.control().as_ref().as_ref().is_some_and(|control| control.upgrade.is_some());
    if !under_way {
        core.health.remove(COMPONENT);
        return managed::begin(core, watch).await;
    }
    if !is_ours(core).await? {
        core.health.remove(COMPONENT);
        return Ok(false);
    }
    let look = look::look(core, None).await?;
    let decision = decide(&look.view);
    tell(core, &decision);
    act::act(core, workshop, &look, &decision.next).await
}

fn tell(core: &Core, decision: &Decision) {
    let health = match decision.verdict() {
        Verdict::Ready | Verdict::Waiting | Verdict::Done => Health::Ready,
        Verdict::Blocked | Verdict::FailedAndPaused => Health::Attention(upgrade::render::headline(decision)),
    };
    core.health.set(COMPONENT, health);
}

/// Whether this Auth Service is the one that works: the newest, and of those the first. A hint, no lock.
pub(crate) async fn is_ours(core: &Core) -> Result<bool, Fault> {
    let own = types::ResourceName::from(&core.host_id);
    let seats = seat::all(core).await?;
    let known = seats.iter().filter_map(|seat| Some((seat.host.as_ref()?, &seat.version)));
    let first = known.min_by(|(one, theirs), (other, others)| newest(theirs, others).then_with(|| one.cmp(other)));
    Ok(first.is_some_and(|(host, _)| *host == own))
}

fn newest(one: &Version, other: &Version) -> std::cmp::Ordering {
    other.release_order(one)
}
