//! The services' numbers as Prometheus text, and the table of their names, from which `docs/reference/metrics.md` is made.
//!
//! Names are a promise: dashboards and alarms rest on them. The Auth Service's counters bring name and meaning along; every other
//! name has its row in [`NAMES`] (a test, and `cargo xtask check frozen`, which reads the sources).

use net::turn::Turn;
use std::{
    fmt::Write as _,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

/// Where numbers come from; filled as services start.
#[derive(Clone, Default)]
pub(super) struct Sources {
    pub(super) auth: Option<Arc<auth::metrics::Metrics>>,
    pub(super) proxy: Option<Arc<proxy::Metrics>>,
    pub(super) agent: Option<Arc<agent::Metrics>>,
    /// Ours once the process before this one has ended.
    pub(super) before: Option<Turn>,
    pub(super) restart_failures: Arc<AtomicU64>,
}

/// The sources of a process that is still starting.
pub(super) type Shared = net::swap::Swap<Sources>;

impl Sources {
    pub(super) fn render(&self) -> String {
        let mut out = String::new();
        for (name, help, value) in self.auth.iter().flat_map(|metrics| metrics.snapshot()) {
            let (name, kind) = of_auth(name);
            // Writing into a String cannot fail.
            let _infallible = write!(out, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name} {value}\n");
        }
        for level in self.auth.iter().flat_map(|metrics| metrics.levels()) {
            line(&mut out, level.name, Some((level.label.0, level.label.1.as_str())), level.value, true);
        }
        for (name, value) in self.agent.iter().flat_map(|metrics| metrics.samples()) {
            line(&mut out, name, None, value, false);
        }
        for sample in self.proxy.iter().flat_map(|metrics| metrics.samples()) {
            line(&mut out, sample.name, sample.label.as_ref().map(|(key, value)| (*key, value.as_str())), sample.value, sample.gauge);
        }
        let runs_on = self.before.as_ref().is_some_and(|before| !before.is_ours());
        line(&mut out, "lockgate_process_before_running", None, u64::from(runs_on), true);
        line(&mut out, "lockgate_restart_failures_total", None, self.restart_failures.load(Ordering::Relaxed), false);
        out
    }
}

/// What a number of the Auth Service is called outside, and its type. A point in time is no counter.
fn of_auth(name: &str) -> (String, &'static str) {
    if name.ends_with("_unix") { (format!("lockgate_auth_{name}"), "gauge") } else { (format!("lockgate_auth_{name}_total"), "counter") }
}

/// Every other number: name, type, meaning.
const NAMES: &[(&str, &str, &str)] = &[
    ("lockgate_agent_events_lost_total", "counter", "audit events of this host that found no place on its disk or could not be read back"),
    (
        "lockgate_agent_events_refused_total",
        "counter",
        "audit events of this host that the Auth Service will never take; they lie in its spool",
    ),
    ("lockgate_audit_backlog_age_seconds", "gauge", "age of the oldest audit event that a sink has not taken, by sink"),
    ("lockgate_audit_backlog_events", "gauge", "audit events that a sink has not taken yet, by sink"),
    (
        "lockgate_auth_members",
        "gauge",
        "hosts that are refused for their version, `state` is `quarantined`; other members are in `tctl inventory`",
    ),
    ("lockgate_build_info", "gauge", "always 1; its labels say what this process is: role, version, gitref"),
    ("lockgate_component_ready", "gauge", "whether a component is ready"),
    ("lockgate_migration_bad_rows", "gauge", "rows that a migration cannot read, by migration"),
    ("lockgate_migration_held", "gauge", "whether a migration waits for a person, by migration"),
    ("lockgate_migration_rows_done", "gauge", "rows that a migration has done, by migration"),
    ("lockgate_migration_rows_per_second", "gauge", "how fast a migration goes, by migration"),
    ("lockgate_migration_rows", "gauge", "rows that a migration has to do, by migration"),
    ("lockgate_migration_seconds_left", "gauge", "how long a migration will take at this rate, by migration"),
    ("lockgate_migration_state", "gauge", "the state of a migration, as a number in the order of docs/migrations.md"),
    ("lockgate_process_before_running", "gauge", "whether the process that this one replaced still has sessions"),
    ("lockgate_proxy_bytes_total", "counter", "bytes of sessions, by direction"),
    ("lockgate_proxy_connections_total", "counter", "connections, by kind"),
    (
        "lockgate_proxy_events_lost_total",
        "counter",
        "audit events of this Proxy that were lost: no place was left for them, or the Auth Service will never take them",
    ),
    ("lockgate_proxy_logins_total", "counter", "logins passed on"),
    ("lockgate_proxy_refusals_total", "counter", "refusals, by error code"),
    ("lockgate_proxy_rescue_bytes_total", "counter", "bytes of releases handed to hosts that are refused for their version"),
    ("lockgate_proxy_sessions_open", "gauge", "sessions that are open now"),
    ("lockgate_proxy_sessions_total", "counter", "sessions that were opened"),
    ("lockgate_restart_failures_total", "counter", "new processes that were not fit to take over; this one served on"),
];

/// Every metric of `/metrics`: name, type, meaning; in the order of their names.
pub(crate) fn names() -> Vec<(String, &'static str, &'static str)> {
    let counted = auth::metrics::Metrics::default().snapshot();
    let counted = counted.into_iter().map(|(name, meaning, _)| {
        let (name, kind) = of_auth(name);
        (name, kind, meaning)
    });
    let mut all: Vec<_> = counted.chain(NAMES.iter().map(|(name, kind, meaning)| ((*name).to_owned(), *kind, *meaning))).collect();
    all.sort();
    all
}

fn line(out: &mut String, name: &str, label: Option<(&str, &str)>, value: u64, gauge: bool) {
    let head = format!("# TYPE {name} ");
    if !out.contains(&head) {
        if let Some((_, _, meaning)) = NAMES.iter().find(|(known, _, _)| *known == name) {
            // Writing into a String cannot fail.
            let _infallible = writeln!(out, "# HELP {name} {meaning}");
        }
        let _infallible = writeln!(out, "{head}{}", if gauge { "gauge" } else { "counter" });
    }
    let label = label.map_or_else(String::new, |(key, value)| format!("{{{key}=\"{}\"}}", value.replace(['"', '\\', '\n'], "_")));
    let _infallible = writeln!(out, "{name}{label} {value}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn every_name_that_is_served_is_told_in_the_reference_with_its_type() {
        let told: BTreeSet<String> = names().into_iter().map(|(name, kind, _)| format!("{name} {kind}")).collect();
        assert_eq!(told.len(), names().len(), "names are unique");
        let text = Sources { auth: Some(Arc::default()), proxy: Some(Arc::default()), agent: Some(Arc::default()), ..Sources::default() };
        let text = text.render();
        let served = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        assert!(served.clone().count() > 20, "{text}");
        for name in served {
            assert!(told.contains(name), "{name} has no row, or another type there");
        }
        assert!(told.iter().all(|name| name.ends_with("_total counter") || name.ends_with(" gauge")), "{told:?}");
        assert!(text.contains("\nlockgate_auth_backup_last_unix 0\n"), "{text}");
    }
}
