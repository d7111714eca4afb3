//! Names and ids. A name that exists is well-formed: it was parsed, and there is no other way to make one.
//!
//! The alphabets are strict on purpose (attack table, rows 2, 3 and 14): no separator, space, control character,
//! quote, wildcard or non-ASCII look-alike can stand inside an identity, so no list, path, script or certificate
//! field can be confused by one. Names compare byte by byte.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// Why a text is not a name of the asked kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a valid {what}: {why}")]
pub struct BadName {
    what: &'static str,
    text: String,
    why: String,
}

/// Checks length and alphabet; the offending text is shown shortened and escaped.
fn checked(what: &'static str, text: &str, max: usize, first: fn(char) -> bool, rest: fn(char) -> bool) -> Result<(), BadName> {
    let bad = |why: String| BadName { what, text: text.chars().take(40).flat_map(char::escape_default).collect(), why };
    let Some(head) = text.chars().next() else { return Err(bad("it is empty".into())) };
    if text.len() > max {
        return Err(bad(format!("it is longer than {max} bytes")));
    }
    if !first(head) {
        return Err(bad(format!("it may not begin with {:?}", head)));
    }
    match text.chars().find(|c| !rest(*c)) {
        Some(c) => Err(bad(format!("it contains {c:?}"))),
        None => Ok(()),
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $max:literal, $first:expr, $rest:expr) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $type(String);

        impl $type {
            /// Parses, or says what is wrong and where.
            pub fn new(text: impl AsRef<str>) -> Result<Self, BadName> {
                let text = text.as_ref();
                checked($what, text, $max, $first, $rest)?;
                Ok(Self(text.to_owned()))
            }
            pub fn as_str(&self) -> &str { &self.0 }
        }
        impl std::str::FromStr for $type {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> { Self::new(text) }
        }
        impl TryFrom<String> for $type {
            type Error = BadName;
            fn try_from(text: String) -> Result<Self, BadName> { Self::new(text) }
        }
        impl AsRef<str> for $type { fn as_ref(&self) -> &str { &self.0 } }
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.pad(&self.0) }
        }
        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{:?}", self.0) }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> { to.serialize_str(&self.0) }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                Self::new(String::deserialize(from)?).map_err(D::Error::custom)
            }
        }
    };
}

fn alnum(c: char) -> bool {
    c.is_ascii_alphanumeric()
}
fn word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')
}
fn wordy(c: char) -> bool {
    word(c) || matches!(c, '@' | '+')
}
fn login_first(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

name!(
    /// A cluster's name; a DNS-like word, fixed at the cluster's birth. Also a component of host names.
    ClusterName, "cluster name", 128, alnum, word);
name!(
    /// A user of the cluster; may look like an e-mail address.
    UserName, "user name", 128, alnum, wordy);
name!(
    /// An operating-system (or database) account on the far side. POSIX portable names plus `.`, `@` and `+`.
    Login, "login", 64, login_first, wordy);
name!(
    /// A host's name as people type it in `tsh ssh alice@node1`.
    NodeName, "node name", 253, alnum, word);
name!(
    /// The name of any document: unique within its kind.
    ResourceName, "name", 253, login_first, wordy);

impl From<UserName> for ResourceName {
    fn from(name: UserName) -> Self {
        Self(name.0)
    }
}
impl From<&UserName> for ResourceName {
    fn from(name: &UserName) -> Self {
        Self(name.0.clone())
    }
}
impl From<&HostId> for ResourceName {
    fn from(id: &HostId) -> Self {
        Self(id.to_string())
    }
}
impl From<&ClusterName> for ResourceName {
    fn from(name: &ClusterName) -> Self {
        Self(name.0.clone())
    }
}

macro_rules! id {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $type(uuid::Uuid);

        impl $type {
            /// Wraps an id made elsewhere: pure code makes no random numbers.
            pub const fn from_uuid(id: uuid::Uuid) -> Self { Self(id) }
            pub const fn as_uuid(&self) -> uuid::Uuid { self.0 }
        }
        impl std::str::FromStr for $type {
            type Err = BadName;
            fn from_str(text: &str) -> Result<Self, BadName> {
                let bad = |why: &str| BadName { what: $what, text: text.chars().take(40).flat_map(char::escape_default).collect(), why: why.into() };
                if text.len() != 36 { return Err(bad("it is not a UUID of 36 characters")); }
                uuid::Uuid::try_parse(text).map(Self).map_err(|_| bad("it is not a UUID"))
            }
        }
        impl std::fmt::Display for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { f.pad(&self.0.hyphenated().to_string()) }
        }
        impl std::fmt::Debug for $type {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "{}", self.0) }
        }
    };
}
id!(
    /// A member's identity for life: made at its first start, kept in its data directory.
    HostId, "host id");
id!(
    /// One recorded session (version 7: sorts by time).
    SessionId, "session id");
id!(
    /// One run of a process: made anew at every start, so that a restart can be told from a hiccup.
    BootId, "boot id");
id!(
    /// A cluster's identity for life, beside its name.
    ClusterId, "cluster id");

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn delimiters_inside_an_identity_are_refused() {
        for bad in [
            "",
            "a,b",
            "a b",
            "a\0",
            "a\n",
            "a\r\n",
            "\"a\"",
            "'a'",
            "*",
            "a*",
            "-a",
            ".a",
            "a/b",
            "a:b",
            "аlice",
            "a\u{200b}",
            "a;b",
            "$(a)",
        ] {
            assert!(UserName::new(bad).is_err(), "user {bad:?}");
            assert!(Login::new(bad).is_err(), "login {bad:?}");
            assert!(ClusterName::new(bad).is_err(), "cluster {bad:?}");
        }
        assert!(UserName::new("a".repeat(129)).is_err());
    }

    #[test]
    fn ordinary_names_are_accepted() {
        for good in ["alice", "alice@example.com", "a.b-c_d", "007", "bot+ci"] {
            assert_eq!(UserName::new(good).unwrap().as_str(), good);
        }
        assert!(Login::new("_apt").is_ok());
    }

    #[test]
    fn a_bad_name_says_what_and_why() {
        let error = Login::new("a,b").unwrap_err().to_string();
        assert_eq!(error, "\"a,b\" is not a valid login: it contains ','");
    }

    proptest! {
        #[test]
        fn any_text_either_parses_to_itself_or_is_refused(text in ".{0,300}") {
            if let Ok(name) = ResourceName::new(&text) {
                prop_assert_eq!(name.as_str(), text.as_str());
                prop_assert!(text.is_ascii());
            }
        }
    }
}
