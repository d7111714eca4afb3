//! Where passwords and answers come from: variables for scripts, the terminal for people, standard input for pipes.
//!
//! What a script set explicitly wins, so that it behaves the same with and without a terminal. Prompts go to standard error
//! and to the terminal, never to standard output. What was read is a [`Secret`] from its first moment.

use std::{
    io::{BufRead as _, IsTerminal as _, Read as _, Write as _},
    path::{Path, PathBuf},
};
use types::{Code, Public, Secret};

/// The file whose first line is the password.
const PASSWORD_FILE: &str = "LOCKGATE_PASSWORD_FILE";
/// The one-time code itself.
const OTP: &str = "LOCKGATE_OTP";
/// The file with the second factor's secret: written by an invitation, read by a login.
const OTP_SECRET_FILE: &str = "LOCKGATE_OTP_SECRET_FILE";
/// The most bytes of one line.
const MAX_LINE: u64 = 4096;

fn set(name: &str) -> Option<std::ffi::OsString> {
    std::env::var_os(name).filter(|value| !value.is_empty())
}

/// Whether a person can be asked.
pub(super) fn person() -> bool {
    std::io::stdin().is_terminal()
}

pub(super) fn otp_secret_file() -> Option<PathBuf> {
    set(OTP_SECRET_FILE).map(PathBuf::from)
}

/// The password of somebody who has one.
pub(super) fn password(prompt: &str) -> Result<Secret, Public> {
    if let Some(path) = set(PASSWORD_FILE) {
        return first_line(Path::new(&path));
    }
    if person() {
        return hidden(prompt);
    }
    next_line()?.ok_or_else(|| {
        Public::new(Code::LoginRequired, "no password was given")
            .hint("run this on a terminal, pipe the password in, or set LOCKGATE_PASSWORD_FILE")
    })
}

/// A password that does not exist yet; on a terminal it is asked for twice.
pub(super) fn new_password(user: &str) -> Result<Secret, Public> {
    if set(PASSWORD_FILE).is_some() || !person() {
        return password("");
    }
    for _ in 0..3 {
        let first = hidden(&format!("New password for {user}: "))?;
        if first == hidden("The same again: ")? {
            return Ok(first);
        }
        eprintln!("They differ.");
    }
    Err(Public::new(Code::LoginFailed, "the password was not typed twice the same").hint("try again; the invitation is not used up"))
}

/// A one-time code that was not computed: from the variable, the person, or standard input.
pub(super) fn otp(prompt: &str) -> Result<Secret, Public> {
    if let Some(code) = otp_variable() {
        return Ok(code);
    }
    let typed = if person() { Some(visible(prompt)?) } else { next_line()? };
    typed.filter(|code| !code.expose().is_empty()).ok_or_else(|| {
        Public::new(Code::LoginRequired, "no one-time code was given")
            .hint("the cluster wants a second factor: pipe the code as second line, or set LOCKGATE_OTP")
    })
}

/// The code in the variable, if there is one.
pub(super) fn otp_variable() -> Option<Secret> {
    set(OTP).map(|code| Secret::new(code.to_string_lossy().trim()))
}

/// A plain answer of a person.
pub(super) fn visible(prompt: &str) -> Result<Secret, Public> {
    let mut err = std::io::stderr();
    write!(err, "{prompt}").and_then(|()| err.flush()).map_err(failed)?;
    next_line()?.ok_or_else(|| Public::new(Code::LoginFailed, "nothing was answered"))
}

fn hidden(prompt: &str) -> Result<Secret, Public> {
    rpassword::prompt_password(prompt)
        .map(Secret::new)
        .map_err(|error| Public::new(Code::LoginFailed, format!("the password cannot be read: {error}")))
}

/// The next line of standard input; none at its end.
fn next_line() -> Result<Option<Secret>, Public> {
    let mut line = String::new();
    let count = std::io::stdin().lock().take(MAX_LINE).read_line(&mut line).map_err(failed)?;
    Ok((count > 0).then(|| one_line(line)))
}

fn first_line(path: &Path) -> Result<Secret, Public> {
    let read = || -> std::io::Result<String> {
        let mut line = String::new();
        std::io::BufReader::new(std::fs::File::open(path)?).take(MAX_LINE).read_line(&mut line)?;
        Ok(line)
    };
    read().map(one_line).map_err(|error| Public::new(Code::Config, format!("the password file {} cannot be read: {error}", path.display())))
}

/// Without its end; the rest of a password is the user's, blanks included.
fn one_line(line: String) -> Secret {
    let line = Secret::new(line);
    let text = line.expose();
    let text = text.strip_suffix('\n').unwrap_or(text);
    Secret::new(text.strip_suffix('\r').unwrap_or(text))
}

fn failed(error: std::io::Error) -> Public {
    Public::new(Code::LoginFailed, format!("standard input cannot be read: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_the_first_line_without_its_end_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let check = |content: &str, want: &str| {
            let path = directory.path().join("password");
            std::fs::write(&path, content).unwrap();
            assert_eq!(first_line(&path).unwrap().expose(), want);
        };
        check("secret\nsecond\n", "secret");
        check("secret", "secret");
        check(" two words \r\n", " two words ");
        check("", "");
        assert!(first_line(&directory.path().join("none")).unwrap_err().message.contains("none"));
    }
}
