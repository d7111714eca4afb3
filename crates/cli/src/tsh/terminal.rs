//! The user's terminal: its size, raw mode while a session lives, and back to what it was, whatever happens.

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{IsTerminal as _, stdin, stdout};

/// Raw mode; the terminal is restored when this is dropped, also by a panic.
pub(crate) struct Raw {
    before: Termios,
}

impl Raw {
    /// Switches standard input to raw mode; `None` when it is not a terminal.
    pub(crate) fn enter() -> Option<Self> {
        if !stdin().is_terminal() {
            return None;
        }
        let before = tcgetattr(stdin()).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // Nothing can be done when the terminal is gone.
        let _gone = tcsetattr(stdin(), OptionalActions::Drain, &self.before);
    }
}

/// Columns and rows of the terminal; 80 by 24 when unknown.
pub(crate) fn size() -> (u32, u32) {
    match tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())) {
        Ok(size) if size.ws_col > 0 && size.ws_row > 0 => (u32::from(size.ws_col), u32::from(size.ws_row)),
        _ => (80, 24),
    }
}

/// Whether a person sits in front: both ends are terminals.
pub(crate) fn interactive() -> bool {
    stdin().is_terminal() && stdout().is_terminal()
}
