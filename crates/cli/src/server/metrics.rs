//! The services' counters as Prometheus text.

use std::{fmt::Write as _, sync::Arc};

/// Where numbers come from; filled as services start.
#[derive(Clone, Default)]
pub(super) struct Sources {
    pub(super) auth: Option<Arc<auth::metrics::Metrics>>,
    pub(super) proxy: Option<Arc<proxy::Metrics>>,
}

/// The sources of a process that is still starting.
pub(super) type Shared = net::swap::Swap<Sources>;

impl Sources {
    pub(super) fn render(&self) -> String {
        let mut out = String::new();
        for (name, help, value) in self.auth.iter().flat_map(|metrics| metrics.snapshot()) {
            // Writing into a String cannot fail.
            let _infallible = write!(
                out,
                "# HELP lockgate_auth_{name}_total {help}\n# TYPE lockgate_auth_{name}_total counter\nlockgate_auth_{name}_total {value}\n"
            );
        }
        for sample in self.proxy.iter().flat_map(|metrics| metrics.samples()) {
            line(&mut out, sample.name, sample.label.as_ref().map(|(key, value)| (*key, value.as_str())), sample.value, sample.gauge);
        }
        out
    }
}

fn line(out: &mut String, name: &str, label: Option<(&str, &str)>, value: u64, gauge: bool) {
    let head = format!("# TYPE {name} ");
    if !out.contains(&head) {
        // Writing into a String cannot fail.
        let _infallible = writeln!(out, "{head}{}", if gauge { "gauge" } else { "counter" });
    }
    let label = label.map_or_else(String::new, |(key, value)| format!("{{{key}=\"{}\"}}", value.replace(['"', '\\', '\n'], "_")));
    let _infallible = writeln!(out, "{name}{label} {value}");
}
