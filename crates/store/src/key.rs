//! Keys: words joined by `/`, ordered byte by byte.
//!
//! The alphabet is the strict one of names (no space, quote, wildcard, control character or non-ASCII look-alike), so
//! that no part of a key can be taken for a separator and every driver can hold every key. A [`Key`] that is stored
//! is *proper*: its parts are not empty and it does not end in `/`. Bounds of ranges and prefixes of watches may be
//! any bytes; drivers refuse them in writes.

use bytes::Bytes;

/// The longest key, in bytes.
pub const MAX_KEY: usize = 1024;

/// Why a text is not a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("\"{text}\" is not a valid key: {why}")]
pub struct BadKey {
    text: String,
    why: &'static str,
}

impl BadKey {
    fn new(text: &[u8], why: &'static str) -> Self {
        let head = text.get(..60).unwrap_or(text);
        Self { text: head.escape_ascii().to_string(), why }
    }
}

/// A key, a bound of a range, or a prefix.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Bytes);

impl Key {
    /// Joins parts with `/`: `doc/role/access`. A part may not be empty nor contain `/`.
    pub fn new<P: AsRef<str>>(parts: impl IntoIterator<Item = P>) -> Result<Self, BadKey> {
        let mut text = String::new();
        for (index, part) in parts.into_iter().enumerate() {
            if part.as_ref().contains('/') {
                return Err(BadKey::new(part.as_ref().as_bytes(), "a part contains \"/\""));
            }
            if index > 0 {
                text.push('/');
            }
            text.push_str(part.as_ref());
        }
        Self::parse(text)
    }

    /// Reads `doc/role/access` as it stands.
    pub fn parse(text: impl AsRef<str>) -> Result<Self, BadKey> {
        let key = Self(Bytes::copy_from_slice(text.as_ref().as_bytes()));
        key.proper()?;
        Ok(key)
    }

    /// Everything under the parts: `doc/role/`, the start of its range and the prefix to watch.
    pub fn dir<P: AsRef<str>>(parts: impl IntoIterator<Item = P>) -> Result<Self, BadKey> {
        let mut bytes = Self::new(parts)?.0.to_vec();
        bytes.push(b'/');
        Ok(Self(bytes.into()))
    }

    /// The key of the control record.
    pub const fn control() -> Self {
        Self(Bytes::from_static(b"control"))
    }

    /// The bound before every key.
    pub const fn first() -> Self {
        Self(Bytes::from_static(b""))
    }

    /// The bound behind every key.
    pub const fn last() -> Self {
        Self(Bytes::from_static(&[0xff]))
    }

    /// The first key behind all keys that begin with this one; the exclusive end of its range.
    #[must_use]
    pub fn prefix_end(&self) -> Self {
        let mut bytes = self.0.to_vec();
        while let Some(last) = bytes.pop() {
            if last < 0xff {
                bytes.push(last + 1);
                return Self(bytes.into());
            }
        }
        Self::last()
    }

    /// The first key behind this one: where a page goes on.
    #[must_use]
    pub fn successor(&self) -> Self {
        let mut bytes = self.0.to_vec();
        bytes.push(0);
        Self(bytes.into())
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn starts_with(&self, prefix: &Self) -> bool {
        self.0.starts_with(&prefix.0)
    }

    /// The same key or bound under another prefix: `doc/old/x` as `doc/new/x`. `None` if it does not begin with `from`.
    pub fn rebased(&self, from: &Self, to: &Self) -> Option<Self> {
        let rest = self.0.strip_prefix(&*from.0)?;
        Some(Self([&*to.0, rest].concat().into()))
    }

    /// The text between the slashes; empty for bounds that are not text.
    pub fn parts(&self) -> impl Iterator<Item = &str> {
        std::str::from_utf8(&self.0).ok().into_iter().flat_map(|text| text.split('/'))
    }

    /// The text behind the last slash.
    pub fn name(&self) -> &str {
        self.parts().last().unwrap_or_default()
    }

    /// What a driver found in its own storage.
    pub(crate) fn stored(bytes: impl Into<Bytes>) -> Self {
        Self(bytes.into())
    }

    /// Whether something may be stored under it.
    pub(crate) fn proper(&self) -> Result<(), BadKey> {
        let bad = |why| Err(BadKey::new(&self.0, why));
        if self.0.is_empty() {
            return bad("it is empty");
        }
        if self.0.len() > MAX_KEY {
            return bad("it is longer than 1024 bytes");
        }
        if self.0.split(|byte| *byte == b'/').any(<[u8]>::is_empty) {
            return bad("a part is empty");
        }
        let allowed = |byte: &u8| byte.is_ascii_alphanumeric() || b"@_:.-+/".contains(byte);
        if !self.0.iter().all(allowed) {
            return bad("only letters, digits and @ _ : . - + are allowed between slashes");
        }
        Ok(())
    }
}

impl std::fmt::Display for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.0.escape_ascii())
    }
}
impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "\"{self}\"")
    }
}
impl std::str::FromStr for Key {
    type Err = BadKey;
    fn from_str(text: &str) -> Result<Self, BadKey> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_strict_text_becomes_a_key() {
        let check = |text: &str, expected: bool| assert_eq!(Key::parse(text).is_ok(), expected, "{text:?}");
        check("doc/role/access", true);
        check("web/users/a@b.c/attempts:1+2_x-y", true);
        check(&"k".repeat(MAX_KEY), true);
        check(&"k".repeat(MAX_KEY + 1), false);
        for bad in ["", "/a", "a/", "a//b", "a b", "a*", "ä", "a\0", "a\n", "a\\b", "a%2f", "a\"", "a,b", "a=b"] {
            check(bad, false);
        }
    }

    #[test]
    fn a_part_cannot_smuggle_a_separator() {
        assert!(Key::new(["doc", "role/x"]).is_err());
        assert!(Key::new(["doc", ""]).is_err());
        assert!(Key::new(Vec::<String>::new()).is_err());
        assert_eq!(Key::new(["doc", "role", "x"]).unwrap().to_string(), "doc/role/x");
        assert_eq!(Key::parse("doc/role/x").unwrap().name(), "x");
    }

    #[test]
    fn a_bound_is_rebased_with_all_its_bytes() {
        let dir = |text: &str| Key::dir(text.split('/')).unwrap();
        let check = |key: Key, expected: Option<&[u8]>| {
            assert_eq!(key.rebased(&dir("doc/a"), &dir("shadow/m")).as_ref().map(Key::as_bytes), expected);
        };
        check(Key::parse("doc/a/x/y").unwrap(), Some(b"shadow/m/x/y"));
        check(Key::parse("doc/a/x").unwrap().successor(), Some(b"shadow/m/x\0"));
        check(dir("doc/a"), Some(b"shadow/m/"));
        check(Key::parse("doc/ab/x").unwrap(), None);
    }

    #[test]
    fn a_prefix_end_closes_exactly_its_prefix() {
        let dir = Key::dir(["doc", "role"]).unwrap();
        let end = dir.prefix_end();
        assert_eq!(end.to_string(), "doc/role0");
        let inside = |text: &str| (dir.clone()..end.clone()).contains(&Key::parse(text).unwrap());
        assert!(inside("doc/role/a") && inside("doc/role/zz/y"));
        assert!(!inside("doc/role") && !inside("doc/roles/a") && !inside("doc/role-x/a") && !inside("doc/s"));
        assert_eq!(Key::stored(vec![b'a', 0xff, 0xff]).prefix_end(), Key::stored(vec![b'b']));
        assert_eq!(Key::first().prefix_end(), Key::last());
        assert!(Key::parse("a").unwrap() < Key::parse("a").unwrap().successor());
    }
}
