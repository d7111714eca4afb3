//! Which passwords are accepted when one is set.
//!
//! Eight characters at least, because that is the least that NIST SP 800-63B lets a verifier accept (the field's 6 is
//! below it); 128 bytes at most, so that a stranger cannot make the server hash megabytes. No rules on kinds of characters:
//! the same source advises against them. Any Unicode is welcome; control characters are not, since no terminal types them.

use types::{Code, Public, Secret};

/// In characters.
pub const MIN: usize = 8;
/// In bytes of UTF-8; also checked before a login's hash.
pub const MAX: usize = 128;

/// Why a new password is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Weak {
    #[error("the password has less than {MIN} characters")]
    Short,
    #[error("the password has more than {MAX} bytes")]
    Long,
    #[error("the password has a control character")]
    Control,
    #[error("the password is the user name")]
    UserName,
    #[error("the password is one character repeated")]
    Repeated,
}

impl From<Weak> for Public {
    fn from(weak: Weak) -> Self {
        Self::new(Code::PasswordWeak, weak.to_string()).hint(format!("choose {MIN} to {MAX} characters"))
    }
}

/// Judges a new password.
pub fn check_new(password: &Secret, user: &types::UserName) -> Result<(), Weak> {
    let text = password.expose();
    let Some(first) = text.chars().next() else { return Err(Weak::Short) };
    if text.len() > MAX {
        return Err(Weak::Long);
    }
    if text.chars().count() < MIN {
        return Err(Weak::Short);
    }
    if text.chars().any(char::is_control) {
        return Err(Weak::Control);
    }
    if text.eq_ignore_ascii_case(user.as_str()) {
        return Err(Weak::UserName);
    }
    if text.chars().all(|c| c == first) { Err(Weak::Repeated) } else { Ok(()) }
}

/// Whether a password sent to a login is worth hashing; longer ones are hashed as a fixed text, so that time tells nothing.
pub fn hashable(password: &Secret) -> bool {
    password.expose().len() <= MAX
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn new_passwords_are_judged() {
        let user = types::UserName::new("alice.liddell").unwrap();
        let check = |text: &str, want: Result<(), Weak>| assert_eq!(check_new(&Secret::new(text), &user), want, "{text:?}");
        check("correct horse", Ok(()));
        check("пароль12", Ok(()));
        check("", Err(Weak::Short));
        check("1234567", Err(Weak::Short));
        check(&"ab".repeat(64), Ok(()));
        check(&"ab".repeat(65), Err(Weak::Long));
        check("abcd\nefgh", Err(Weak::Control));
        check("Alice.Liddell", Err(Weak::UserName));
        check("aaaaaaaaaa", Err(Weak::Repeated));
    }
}
