//! What the Proxy counts. Plain numbers, read by whoever serves `/metrics`; no names of people or hosts among them.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};
use types::Public;

/// A number that only grows, or a level that goes both ways.
#[derive(Debug, Default)]
pub struct Number(AtomicU64);

impl Number {
    pub(crate) fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
    pub(crate) fn sub(&self, less: u64) {
        self.0.fetch_sub(less, Ordering::Relaxed);
    }
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One line of `/metrics`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sample {
    pub name: &'static str,
    pub label: Option<(&'static str, String)>,
    pub value: u64,
    /// A level; otherwise a counter.
    pub gauge: bool,
}

/// The Proxy's numbers.
#[derive(Debug, Default)]
pub struct Metrics {
    pub auth_connections: Number,
    pub ssh_connections: Number,
    pub jump_connections: Number,
    pub tunnel_connections: Number,
    pub data_connections: Number,
    pub web_connections: Number,
    /// Hosts that came because they are refused for their version.
    pub rescue_connections: Number,
    /// Bytes of releases handed to them.
    pub rescue_bytes: Number,
    /// Connections that spoke something else.
    pub foreign_connections: Number,
    pub sessions: Number,
    /// Open now.
    pub sessions_open: Number,
    pub bytes_up: Number,
    pub bytes_down: Number,
    pub logins: Number,
    /// Audit events that found no place, or that the Auth Service will never take.
    pub events_lost: Number,
    refusals: Mutex<BTreeMap<String, u64>>,
}

impl Metrics {
    pub(crate) fn refused(&self, error: &Public) {
        // A code of a newer Auth Service is text from elsewhere: one row for all of them.
        let code = error.known().map_or("other", |code| code.as_str());
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        *refusals.entry(code.to_owned()).or_default() += 1;
    }

    /// How often something was refused with that code.
    pub fn refusals(&self, code: types::Code) -> u64 {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).get(code.as_str()).copied().unwrap_or(0)
    }

    /// Every number of this moment.
    pub fn samples(&self) -> Vec<Sample> {
        let kinds = [
            ("auth", &self.auth_connections),
            ("ssh", &self.ssh_connections),
            ("jump", &self.jump_connections),
            ("tunnel", &self.tunnel_connections),
            ("tunnel-data", &self.data_connections),
            ("web", &self.web_connections),
            ("rescue", &self.rescue_connections),
            ("foreign", &self.foreign_connections),
        ];
        let mut all: Vec<Sample> =
            kinds.map(|(kind, number)| sample("lockgate_proxy_connections_total", Some(("kind", kind.to_owned())), number.value())).into();
        all.push(sample("lockgate_proxy_sessions_total", None, self.sessions.value()));
        all.push(Sample { gauge: true, ..sample("lockgate_proxy_sessions_open", None, self.sessions_open.value()) });
        all.push(sample("lockgate_proxy_bytes_total", Some(("direction", "up".into())), self.bytes_up.value()));
        all.push(sample("lockgate_proxy_bytes_total", Some(("direction", "down".into())), self.bytes_down.value()));
        all.push(sample("lockgate_proxy_logins_total", None, self.logins.value()));
        all.push(sample("lockgate_proxy_events_lost_total", None, self.events_lost.value()));
        all.push(sample("lockgate_proxy_rescue_bytes_total", None, self.rescue_bytes.value()));
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        all.extend(refusals.iter().map(|(code, count)| sample("lockgate_proxy_refusals_total", Some(("code", code.clone())), *count)));
        all
    }
}

fn sample(name: &'static str, label: Option<(&'static str, String)>, value: u64) -> Sample {
    Sample { name, label, value, gauge: false }
}

/// Counts an open session for as long as it lives.
pub(crate) struct Open<'a>(&'a Metrics);

impl<'a> Open<'a> {
    pub(crate) fn new(metrics: &'a Metrics) -> Self {
        metrics.sessions.add(1);
        metrics.sessions_open.add(1);
        Self(metrics)
    }
}
impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.sessions_open.sub(1);
    }
}
