//! How a command ends: the error a person reads, and the exit status a script reads.
//!
//! The user reads at most three lines: `error:` what could not be done, `cause:` why, with its stable code, `hint:` what to
//! do next. Never a stack trace. Statuses are those of [`Status`] and no others; `tsh ssh` passes the remote status through.

use std::process::ExitCode;
use types::{Code, Public};

/// Declares the statuses once: name, number, meaning. `docs/reference/exit.md` is generated from [`Status::ALL`].
macro_rules! statuses {
    ($($name:ident = $number:literal : $meaning:literal),+ $(,)?) => {
        /// What a script may rely on. Numbers keep their meaning.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub(crate) enum Status { $(#[doc = $meaning] $name = $number),+ }
        impl Status {
            /// Every status and its meaning, for the generated reference.
            pub(crate) const ALL: &[(Self, &str)] = &[$((Self::$name, $meaning)),+];
        }
    };
}

statuses! {
    Done = 0: "done",
    Failed = 1: "failed; standard error says why, with a stable code",
    Usage = 2: "wrong usage of a command",
    Blocked = 3: "not done: it stands still until a person decides; what is in the way was told",
    Refused = 4: "not done: a rule of upgrades forbids it now; the hint names the step that comes first",
    Paused = 5: "an upgrade failed on the way and stands paused; nothing is lost, and it goes on or back by command",
    Waiting = 10: "not done yet: what it waits for has not come to pass; asking again later helps",
    Session = 255: "`tsh ssh`: the session failed, not the command; any other status is the command's own",
}

impl From<Status> for ExitCode {
    fn from(status: Status) -> Self {
        Self::from(status as u8)
    }
}

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    /// Fits after "could not", e.g. `list the hosts`.
    what: String,
    cause: Public,
}

/// What commands return.
pub(crate) type Outcome = Result<ExitCode, Failure>;

impl Failure {
    pub(crate) fn new(what: impl Into<String>, cause: Public) -> Self {
        Self { what: what.into(), cause }
    }
    pub(crate) fn cause(&self) -> &Public {
        &self.cause
    }
    /// Prints the lines and gives the status.
    pub(crate) fn report(&self) -> ExitCode {
        let style = crate::output::Style::of_stderr();
        eprintln!("{} could not {}", style.red("error:"), self.what);
        let code = if self.cause.code.is_empty() { String::new() } else { format!(" [{}]", self.cause.code) };
        eprintln!("{} {}{}", style.dim("cause:"), plain(&self.cause.message), plain(&code));
        if let Some(hint) = &self.cause.hint {
            eprintln!("{} {}", style.dim("hint:"), plain(hint));
        }
        self.status().into()
    }
    /// What a script is told of it.
    fn status(&self) -> Status {
        match self.cause.known() {
            Some(Code::Usage) => Status::Usage,
            Some(Code::UpgradeRefused | Code::UpgradeRunning) => Status::Refused,
            Some(Code::UpgradeWaits) => Status::Waiting,
            _ => Status::Failed,
        }
    }
}

/// Text of a peer: no control character of it reaches the terminal, and it stays on its line.
fn plain(text: &str) -> String {
    crate::output::one_line(text.to_owned())
}

/// Gives an error its "could not …".
pub(crate) trait Could<T> {
    fn could(self, what: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Into<Cause>> Could<T> for Result<T, E> {
    fn could(self, what: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(what, error.into().0))
    }
}

/// Anything that a command may fail with, as a [`Public`].
pub(crate) struct Cause(pub(crate) Public);

impl From<Public> for Cause {
    fn from(public: Public) -> Self {
        Self(public)
    }
}
impl From<std::io::Error> for Cause {
    fn from(error: std::io::Error) -> Self {
        Self(io(&error))
    }
}
impl From<Failure> for Cause {
    fn from(failure: Failure) -> Self {
        Self(failure.cause)
    }
}
impl From<types::name::BadName> for Cause {
    fn from(error: types::name::BadName) -> Self {
        Self(usage(error.to_string()))
    }
}
impl From<types::label::BadLabels> for Cause {
    fn from(error: types::label::BadLabels) -> Self {
        Self(usage(error.to_string()))
    }
}
impl From<types::time::BadTtl> for Cause {
    fn from(error: types::time::BadTtl) -> Self {
        Self(usage(error.to_string()))
    }
}
impl From<types::time::BadTime> for Cause {
    fn from(error: types::time::BadTime) -> Self {
        Self(usage(error.to_string()))
    }
}
impl From<types::document::BadDocument> for Cause {
    fn from(error: types::document::BadDocument) -> Self {
        Self(Public::new(Code::Malformed, error.to_string()))
    }
}

/// A file that somebody named and that cannot be used is his to correct; other faults are not.
pub(crate) fn io(error: &std::io::Error) -> Public {
    use std::io::ErrorKind::{AlreadyExists, IsADirectory, NotADirectory, NotFound, PermissionDenied, ReadOnlyFilesystem};
    let his = matches!(error.kind(), NotFound | PermissionDenied | AlreadyExists | IsADirectory | NotADirectory | ReadOnlyFilesystem);
    Public::new(if his { Code::Usage } else { Code::Internal }, error.to_string())
}

/// Wrong usage: exit status 2.
pub(crate) fn usage(message: impl Into<String>) -> Public {
    Public::new(Code::Usage, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_code_decides_the_status() {
        let check = |code, expected| assert_eq!(Failure::new("do it", Public::new(code, "no")).status(), expected);
        check(Code::Usage, Status::Usage);
        check(Code::UpgradeWaits, Status::Waiting);
        check(Code::UpgradeRefused, Status::Refused);
        check(Code::UpgradeRunning, Status::Refused);
        check(Code::AccessDenied, Status::Failed);
    }

    #[test]
    fn no_two_statuses_share_a_number() {
        let numbers: std::collections::BTreeSet<u8> = Status::ALL.iter().map(|(status, _)| *status as u8).collect();
        assert_eq!(numbers.len(), Status::ALL.len());
    }
}
