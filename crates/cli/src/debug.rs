//! `--debug` of the clients: what happens, on standard error, the libraries' part included.
//!
//! Lockgate and its HTTP libraries speak through `tracing`; SSH (`russh`) and TLS (`rustls`) through `log`, which a small bridge
//! passes on. Secrets never come this way: ours print `***`, russh hides its own at the levels that are passed on, its
//! trace (which shows packets) is cut off here whatever the filter says, and its agent client, which shows what it signs, is
//! left out. One line for each packet is too much for a person: those are at `trace` (`LOCKGATE_LOG=russh=trace`).

use crate::output::Style;

/// What `--debug` shows unless `LOCKGATE_LOG` (tracing filter syntax) says otherwise.
const FILTER: &str = "debug,h2=info,hyper=info,hyper_util=info,tower=info";

/// Starts it when wanted.
pub(crate) fn start(wanted: bool) {
    if wanted {
        let subscriber =
            tracing_subscriber::fmt().with_env_filter(crate::environment::log_filter(FILTER)).with_ansi(Style::of_stderr().has_colour());
        let started = subscriber.with_writer(std::io::stderr).try_init();
        if started.is_ok() && log::set_logger(&Bridge).is_ok() {
            log::set_max_level(log::LevelFilter::Debug);
        }
    }
}

/// Warnings of the libraries as plain lines, for commands that go on after one. Whatever was started before stays.
pub(crate) fn warnings() {
    let _stays = tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(Style::of_stderr().has_colour())
        .with_max_level(tracing::Level::WARN)
        .without_time()
        .with_target(false)
        .try_init();
}

/// `log` to `tracing`. The target is one word, because tracing wants it to be known when the program is built.
struct Bridge;

/// What becomes of a record.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Ssh,
    SshPacket,
    Tls,
    Dropped,
}

fn fate(target: &str, level: log::Level, text: &str) -> Fate {
    let part_of = |name: &str| target.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    if level > log::Level::Debug || part_of("russh::keys") {
        Fate::Dropped
    } else if part_of("russh") {
        let packet = part_of("russh::sshbuffer") || ["< msg", "channel_window_adjust"].iter().any(|start| text.starts_with(start));
        if packet { Fate::SshPacket } else { Fate::Ssh }
    } else if part_of("rustls") {
        Fate::Tls
    } else {
        Fate::Dropped
    }
}

impl log::Log for Bridge {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        fate(metadata.target(), metadata.level(), "") != Fate::Dropped
    }
    fn log(&self, record: &log::Record<'_>) {
        let text = record.args().to_string();
        // Their errors are our warnings: what fails the command is told by the command.
        let warns = record.level() <= log::Level::Warn;
        match fate(record.target(), record.level(), &text) {
            Fate::Ssh if warns => tracing::warn!(target: "russh", "{text}"),
            Fate::Ssh => tracing::debug!(target: "russh", "{text}"),
            Fate::SshPacket => tracing::trace!(target: "russh", "{text}"),
            Fate::Tls if warns => tracing::warn!(target: "rustls", "{text}"),
            Fate::Tls => tracing::debug!(target: "rustls", "{text}"),
            Fate::Dropped => {}
        }
    }
    fn flush(&self) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_hold_a_secret_is_not_passed_on() {
        let check = |target: &str, level, text: &str, want| assert_eq!(fate(target, level, text), want, "{target} {level} {text}");
        check("russh::client", log::Level::Debug, "userauth_success", Fate::Ssh);
        check("russh::client", log::Level::Debug, "< msg type 94, seqn 7, len 20", Fate::SshPacket);
        check("russh::sshbuffer", log::Level::Debug, "> msg type 94, len 20", Fate::SshPacket);
        check("russh::client::encrypted", log::Level::Trace, "anything", Fate::Dropped);
        check("russh::keys::agent::client", log::Level::Debug, "sign_request: [..]", Fate::Dropped);
        check("rustls::client::hs", log::Level::Debug, "ALPN protocol is lockgate-ssh", Fate::Tls);
        check("rustlsx", log::Level::Warn, "x", Fate::Dropped);
    }
}
