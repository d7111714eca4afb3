//! Names of signals, and which of them a client may send.

use russh::Sig;
use rustix::process::Signal;

/// Signals a client may send: those of RFC 4254 that a person at a terminal could cause.
pub(super) fn allowed(signal: &Sig) -> Option<Signal> {
    Some(match signal {
        Sig::HUP => Signal::HUP,
        Sig::INT => Signal::INT,
        Sig::QUIT => Signal::QUIT,
        Sig::TERM => Signal::TERM,
        Sig::KILL => Signal::KILL,
        Sig::USR1 => Signal::USR1,
        Sig::ALRM => Signal::ALARM,
        Sig::Custom(name) if name == "USR2" => Signal::USR2,
        Sig::ABRT | Sig::FPE | Sig::ILL | Sig::PIPE | Sig::SEGV | Sig::Custom(_) => return None,
    })
}

/// The name of a signal a program ended by.
pub(super) fn of(number: i32) -> Sig {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(signal) => match signal.as_str().strip_prefix("SIG").unwrap_or_default() {
            "ABRT" => Sig::ABRT,
            "ALRM" => Sig::ALRM,
            "FPE" => Sig::FPE,
            "HUP" => Sig::HUP,
            "ILL" => Sig::ILL,
            "INT" => Sig::INT,
            "KILL" => Sig::KILL,
            "PIPE" => Sig::PIPE,
            "QUIT" => Sig::QUIT,
            "SEGV" => Sig::SEGV,
            "TERM" => Sig::TERM,
            "USR1" => Sig::USR1,
            // RFC 4254, section 6.10: local names carry their owner's.
            other => Sig::Custom(format!("{other}@lockgate")),
        },
        Err(_) => Sig::Custom(format!("{number}@lockgate")),
    }
}

/// The same, as text.
pub(super) fn name(signal: &Sig) -> &str {
    match signal {
        Sig::ABRT => "ABRT",
        Sig::ALRM => "ALRM",
        Sig::FPE => "FPE",
        Sig::HUP => "HUP",
        Sig::ILL => "ILL",
        Sig::INT => "INT",
        Sig::KILL => "KILL",
        Sig::PIPE => "PIPE",
        Sig::QUIT => "QUIT",
        Sig::SEGV => "SEGV",
        Sig::TERM => "TERM",
        Sig::USR1 => "USR1",
        Sig::Custom(text) => text.strip_suffix("@lockgate").unwrap_or(text),
    }
}
