//! What the Auth Service counts. Plain atomics: `cli` reads a [`Metrics::snapshot`] and renders it for Prometheus.

use std::sync::{
    PoisonError, RwLock,
    atomic::{AtomicU64, Ordering},
};

macro_rules! counters {
    ($($name:ident : $help:literal),+ $(,)?) => {
        /// Counters since the start of the process. Each only grows.
        #[derive(Debug, Default)]
        pub struct Metrics { $(#[doc = $help] pub(crate) $name: AtomicU64),+, pub(crate) quarantined: AtomicU64, pub(crate) audit_backlog_events: AtomicU64, pub(crate) audit_backlog_age_seconds: AtomicU64, levels: RwLock<Vec<Sample>> }

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
    watch_kinds_resumed: "kinds that watches took up where they had stopped",
    watch_kinds_whole: "kinds that watches were told from the beginning",
    watch_histories: "times the store's history was asked what was deleted",
    version_refusals: "connections refused because of their version",
    quarantines: "times a host was noted as refused for its version",
    audit_events: "events written to the audit log",
    audit_write_errors: "failed writes to the audit log, each tried again",
    audit_refused: "calls whose events were not taken; what they were about was not done",
    recordings: "recordings taken into the sink",
    backups: "backups made",
    backup_failures: "backups that broke off",
    backup_last_unix: "when the last scheduled backup was complete, in seconds since 1970; 0 is never",
    mirror_reloads: "times the mirror of the store was read anew",
}

/// A level of one thing among several of its kind.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sample {
    pub name: &'static str,
    pub label: (&'static str, String),
    pub value: u64,
}

impl Metrics {
    /// Levels with a label, as they were last told.
    pub fn levels(&self) -> Vec<Sample> {
        let quarantined = self.quarantined.load(Ordering::Relaxed);
        let members = Sample { name: "lockgate_auth_members", label: ("state", "quarantined".into()), value: quarantined };
        let backlog = |name, value: &AtomicU64| Sample { name, label: ("sink", "postgres".into()), value: value.load(Ordering::Relaxed) };
        let events = backlog("lockgate_audit_backlog_events", &self.audit_backlog_events);
        let age = backlog("lockgate_audit_backlog_age_seconds", &self.audit_backlog_age_seconds);
        [members, events, age].into_iter().chain(self.levels.read().unwrap_or_else(PoisonError::into_inner).iter().cloned()).collect()
    }

    pub(crate) fn tell(&self, levels: Vec<Sample>) {
        *self.levels.write().unwrap_or_else(PoisonError::into_inner) = levels;
    }
}

pub(crate) fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}
