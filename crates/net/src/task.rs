//! The one place that starts tasks. A task has a name, belongs to a [`Group`], and ends with it.
//!
//! A panic in one task is an error in the log and nobody else's end. When the last clone of a group is dropped, its tasks
//! are dropped at their next await; [`Group::join`] waits for them in good order first.

use futures::FutureExt;
use std::{future::Future, panic::AssertUnwindSafe, sync::Arc, time::Duration};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::Instrument;

/// Tasks that end together. Clones share the group.
#[derive(Clone, Debug)]
pub struct Group(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    name: String,
    tasks: TaskTracker,
    abort: CancellationToken,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.abort.cancel();
    }
}

impl Group {
    pub fn new(name: impl Into<String>) -> Self {
        Self(Arc::new(Inner { name: name.into(), tasks: TaskTracker::new(), abort: CancellationToken::new() }))
    }

    /// Starts a task under this group's span. What it returns is dropped: results travel by channel.
    pub fn spawn<F>(&self, name: &'static str, future: F)
    where
        F: Future<Output: Send> + Send + 'static,
    {
        let span = tracing::info_span!("task", group = %self.0.name, name);
        let abort = self.0.abort.clone();
        let body = async move {
            tokio::select! {
                biased;
                () = abort.cancelled() => tracing::debug!("aborted with its group"),
                end = AssertUnwindSafe(future).catch_unwind() => if let Err(panic) = end {
                    tracing::error!(panic = panic_text(&*panic), "task panicked");
                },
            }
        };
        #[allow(clippy::disallowed_methods, reason = "this is the place")]
        tokio::spawn(self.0.tasks.track_future(body.instrument(span)));
    }

    /// How many tasks run now.
    pub fn len(&self) -> usize {
        self.0.tasks.len()
    }
    pub fn is_empty(&self) -> bool {
        self.0.tasks.is_empty()
    }

    /// Waits until every task has ended; those that run past the deadline are aborted. Says whether all ended by themselves.
    pub async fn join(&self, deadline: Duration) -> bool {
        self.0.tasks.close();
        let orderly = tokio::time::timeout(deadline, self.0.tasks.wait()).await.is_ok();
        if !orderly {
            tracing::warn!(group = %self.0.name, left = self.len(), "tasks did not end in time");
            self.abort();
            self.0.tasks.wait().await;
        }
        orderly
    }

    /// Drops every task at its next await, now and for ever: later ones end at once.
    pub fn abort(&self) {
        self.0.abort.cancel();
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("no text")
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::sync::oneshot;

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_panic_ends_only_its_own_task() {
        let group = Group::new("test");
        let (tx, rx) = oneshot::channel();
        group.spawn("bad", async { panic!("on purpose") });
        group.spawn("good", async move { tx.send(7) });
        assert_eq!(rx.await.unwrap(), 7);
        assert!(group.join(SOON).await);
    }

    #[tokio::test]
    async fn tasks_end_when_the_last_clone_of_their_group_is_dropped() {
        let group = Group::new("test");
        let (tx, rx) = oneshot::channel::<()>();
        group.spawn("for ever", async move {
            std::future::pending::<()>().await;
            drop(tx);
        });
        let other = group.clone();
        drop(group);
        assert_eq!(other.len(), 1);
        drop(other);
        assert!(rx.await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_outlives_the_deadline_is_aborted() {
        let group = Group::new("test");
        group.spawn("for ever", std::future::pending::<()>());
        assert!(!group.join(SOON).await);
        assert!(group.is_empty());
    }
}
