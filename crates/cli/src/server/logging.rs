//! Structured logs: text for people, JSON lines on request, to standard error. Secrets never come here: their types print `***`.

use crate::config::{LogFormat, Severity};
use std::io::IsTerminal as _;
use tracing_subscriber::{fmt, prelude::*};

/// Starts logging for this process. `LOCKGATE_LOG` (tracing filter syntax) overrides the severity.
pub(crate) fn start(severity: Severity, format: LogFormat) {
    let level = match severity {
        Severity::Error => "error",
        Severity::Warn => "warn",
        Severity::Info => "info",
        Severity::Debug => "debug",
        Severity::Trace => "trace",
    };
    // The libraries' own chatter is shown only from their warnings on, unless asked for by name.
    let filter = crate::environment::log_filter(&format!("{level},russh=warn,h2=warn,hyper=warn,tower=warn,rustls=warn,tonic=warn"));
    let registry = tracing_subscriber::registry().with(filter);
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
    let started = match format {
        LogFormat::Json => registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init(),
        LogFormat::Text => registry.with(fmt::layer().with_ansi(colour).with_target(false).with_writer(std::io::stderr)).try_init(),
    };
    if started.is_err() {
        tracing::debug!("logging was already started");
    }
}
