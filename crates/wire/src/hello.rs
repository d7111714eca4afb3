//! The handshake with which every connection between two Lockgate processes begins (design 3.2).
//!
//! Inside TLS, before anything else is parsed: the client sends [`Hello`], the server answers [`Answer`] (its own
//! hello and its verdict), the client sends its [`Verdict`] at the head of its first data. Each side decides for itself
//! with [`judge`]; the refused side gets the cure in clear words. Frames are those of `frame.rs`; the payload is the
//! magic `LGH1` and JSON. Envelope and field names are frozen for ever: a golden transcript is a test. Unknown fields
//! and capabilities are ignored. `net::hello` moves the bytes.
//!
//! Over HTTP (`/webapi`) the same JSON travels in the header [`HEADER`], and a refusal is status 426 with a
//! [`Public`] as its body.

use crate::capability;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use types::{Extra, Public, Skew, Version, version::Direction};

/// The first bytes of every handshake payload.
pub const MAGIC: &[u8; 4] = b"LGH1";
/// The HTTP header that carries a [`Hello`] as JSON, both ways.
pub const HEADER: &str = "lockgate-hello";
/// The only API version there is.
pub const API: &str = "auth";

/// What one end says of itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Binary version as text: unreadable text must reach [`judge`] as a refusal, not fail the parser.
    #[serde(default)]
    pub version: String,
    /// `tsh`, `tctl`, `proxy`, `node`, `auth`, …: for messages and the audit log; grants nothing.
    #[serde(default)]
    pub role: String,
    /// API name to the range of versions spoken.
    #[serde(default)]
    pub apis: BTreeMap<String, (u32, u32)>,
    #[serde(default)]
    pub capabilities: BTreeSet<String>,
    /// Set when this process runs with `--skip-version-check` (rule G6): the server writes it to the audit log.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skips_version_check: bool,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Hello {
    /// What this build says when it runs as `role` and claims `version`.
    pub fn ours(version: &Version, role: &str) -> Self {
        Self {
            version: version.to_string(),
            role: role.to_owned(),
            apis: BTreeMap::from([(API.to_owned(), (1, 1))]),
            capabilities: capability::OURS.iter().map(|&c| c.to_owned()).collect(),
            skips_version_check: false,
            extra: Extra::new(),
        }
    }
    /// The version, if it can be read.
    pub fn parsed(&self) -> Option<Version> {
        self.version.parse().ok()
    }
    pub fn can(&self, capability: &str) -> bool {
        self.capabilities.contains(capability)
    }
}

/// One end's decision.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Accept,
    Refuse(Public),
}

/// The server's side of the handshake.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Answer {
    pub hello: Hello,
    pub verdict: Verdict,
}

/// Judges an edge from both hellos; the same function on both ends.
pub fn judge(direction: Direction, client: &Hello, server: &Hello) -> Skew {
    Skew::judge(direction, client.parsed().as_ref(), server.parsed().as_ref())
}

/// Why bytes are not a handshake message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadHello {
    #[error("the peer does not speak Lockgate's handshake")]
    NotLockgate,
    #[error("the peer's handshake cannot be read: {0}")]
    Malformed(String),
}

/// Payload of one handshake frame.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    // Serialising these types cannot fail; an empty object is refused by every reader.
    out.extend(serde_json::to_vec(message).unwrap_or_default());
    out
}

/// Reads the payload of one handshake frame.
pub fn decode<T: for<'de> Deserialize<'de>>(payload: &[u8]) -> Result<T, BadHello> {
    let json = payload.strip_prefix(MAGIC).ok_or(BadHello::NotLockgate)?;
    serde_json::from_slice(json).map_err(|error| BadHello::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_is_frozen_byte_for_byte() {
        let mut hello = Hello::ours(&Version::new(8, 3, 7), "tsh");
        hello.capabilities = BTreeSet::from(["x".to_owned()]);
        assert_eq!(
            String::from_utf8(encode(&hello)).unwrap(),
            r#"LGH1{"version":"8.3.7","role":"tsh","apis":{"auth":[1,1]},"capabilities":["x"]}"#
        );
        assert_eq!(String::from_utf8(encode(&Verdict::Accept)).unwrap(), r#"LGH1"accept""#);
        let refuse = Verdict::Refuse(Public::new(types::Code::VersionTooNew, "no"));
        assert_eq!(String::from_utf8(encode(&refuse)).unwrap(), r#"LGH1{"refuse":{"code":"LG-VERSION-002","message":"no"}}"#);
    }

    #[test]
    fn fields_and_capabilities_of_a_newer_release_are_ignored_but_kept() {
        let bytes = br#"LGH1{"version":"9.0.0","role":"tsh","capabilities":["new.thing"],"colour":"blue"}"#;
        let hello: Hello = decode(bytes).unwrap();
        assert_eq!(hello.extra["colour"], "blue");
        assert!(hello.can("new.thing"));
    }

    #[test]
    fn g4_an_unreadable_version_reaches_the_judge_as_a_refusal() {
        let ours = Hello::ours(&Version::new(8, 0, 0), "auth");
        for version in ["", "eight", "8", "8.0"] {
            let peer = Hello { version: version.into(), ..ours.clone() };
            assert!(judge(Direction::ServerFirst, &peer, &ours).accepted().is_err(), "{version:?}");
        }
        assert_eq!(decode::<Hello>(b"SSH-2.0-OpenSSH"), Err(BadHello::NotLockgate));
    }
}
