//! Waiting for something to become true.

use std::time::{Duration, Instant};

/// Asks every 20 ms until there is an answer; panics with `what` when the deadline passes first.
#[track_caller]
pub fn eventually<T>(deadline: Duration, what: &str, mut ask: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + deadline;
    loop {
        if let Some(answer) = ask() {
            return answer;
        }
        assert!(Instant::now() < end, "not within {deadline:?}: {what}");
        pause(Duration::from_millis(20));
    }
}

/// One step of polling another process, which has no way to call us.
#[allow(clippy::disallowed_methods, reason = "polls other processes; nothing else runs on this thread")]
pub(crate) fn pause(length: Duration) {
    std::thread::sleep(length);
}
