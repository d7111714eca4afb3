//! What the Auth Service counts. Plain atomics: `cli` reads a [`Metrics::snapshot`] and renders it for Prometheus.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($name:ident : $help:literal),+ $(,)?) => {
        /// Counters since the start of the process. Each only grows.
        #[derive(Debug, Default)]
        pub struct Metrics { $(#[doc = $help] pub(crate) $name: AtomicU64),+ }

        impl Metrics {
            /// Every counter: name, meaning, value.
            pub fn snapshot(&self) -> Vec<(&'static str, &'static str, u64)> {
                vec![$((stringify!($name), $help, self.$name.load(Ordering::Relaxed))),+]
            }
        }
    };
}

counters! {
    requests: "API requests answered",
    refused: "API requests refused for lack of rights",
    failed: "API requests that failed by a fault of ours",
    logins: "successful logins",
    login_failures: "refused logins",
    logins_shed: "logins refused because too many were in progress",
    certificates: "certificates issued",
    joins: "members that joined",
    heartbeats: "heartbeats taken",
    watches: "watches begun",
    watches_cut: "watches closed because the watcher was too slow",
    version_refusals: "connections refused because of their version",
    audit_events: "events written to the audit log",
    audit_write_errors: "failed writes to the audit log, each tried again",
    recordings: "recordings taken into the sink",
    backups: "backups made",
    backup_failures: "backups that broke off",
    backup_last_unix: "when the last scheduled backup was complete, in seconds since 1970; 0 is never",
    mirror_reloads: "times the mirror of the store was read anew",
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
