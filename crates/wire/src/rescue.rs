//! Rescue: how a host that this cluster refuses for its version learns which release to install, and gets it (design 3.2).
//!
//! Spoken over ALPN `lockgate-rescue` inside TLS with the host's certificate, and without the handshake of `hello.rs`: the two
//! ends may be any number of majors apart, so neither judges the other. It gives no access. The host asks ([`ToProxy`]), the Proxy
//! answers each question in turn ([`ToHost`]); a fetch is answered by several chunks, the last of which says so.
//!
//! Frozen for ever: a golden transcript is a test. Each message is a frame of `frame.rs` that holds the magic `LGR1`, the length
//! of a head in two bytes (big-endian), the head (JSON), and a body (bytes of a file; empty but in chunks). Fields are only
//! added, and unknown ones ignored; a host skips answers that it does not know. A question that a Proxy does not know is answered by
//! [`not_known`] and the visit goes on: so a later release may ask for more, and do without where it is not known.
//! Which release is next is decided in `rules::rescue`; the two ends are `proxy::rescue` and `agent::rescue`.
//!
//! Metadata files are fetched by name and not described here: a later updater puts its signed lists of releases there.

use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned, de::Error as _};
pub use types::Sha256;
use types::{Code, Extra, Public};

/// The first bytes of every message.
pub const MAGIC: &[u8; 4] = b"LGR1";
/// The most bytes of a file in one chunk; the rest of the frame is for the head.
pub const CHUNK: usize = 15 * 1024;
/// The most bytes that one fetch asks for.
pub const MAX_FETCH: u64 = 4 << 20;
/// The most artifacts that one advice lists.
pub const MAX_ARTIFACTS: usize = 24;
/// Magic and length.
const ENVELOPE: usize = 6;

/// From the host to the Proxy.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToProxy {
    /// Who asks and why; answered by [`ToHost::Advice`].
    Status(Status),
    /// Bytes of an artifact; answered by [`ToHost::Chunk`]s.
    Fetch(Fetch),
    /// Bytes of a metadata file; answered by [`ToHost::Chunk`]s.
    Metadata(Metadata),
    #[serde(other)]
    Unknown,
}

/// What a host says of itself. Which host it is, its certificate says.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Binary version as text: one that cannot be read is advised too.
    #[serde(default)]
    pub version: String,
    /// As in the names of artifacts: `linux`, `amd64`.
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub arch: String,
    /// What its build stores and speaks (`content::digest`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    /// What it was told where it was refused.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "if_readable")]
    pub refused: Option<Public>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Asks for bytes of the artifact with that digest.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Fetch {
    pub sha256: Sha256,
    #[serde(default)]
    pub offset: u64,
    /// At most [`MAX_FETCH`]; more is answered by so much.
    pub length: u64,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Asks for bytes of a metadata file.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Metadata {
    pub name: FileName,
    #[serde(default)]
    pub offset: u64,
    pub length: u64,
    #[serde(flatten)]
    pub extra: Extra,
}

/// From the Proxy to the host.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToHost {
    Advice(Advice),
    Chunk(Chunk),
    /// The question before was refused; the next may be asked.
    Refused {
        error: Public,
        #[serde(flatten)]
        extra: Extra,
    },
    #[serde(other)]
    Unknown,
}

/// What the host should do.
#[derive(Clone, PartialEq, Debug, Default, Serialize, Deserialize)]
pub struct Advice {
    #[serde(default)]
    pub action: Action,
    /// The Proxy's version.
    #[serde(default)]
    pub proxy: String,
    /// To install.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<String>,
    /// Its major: known even where no release of it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub major: Option<u64>,
    /// For people: what stands against this host, and what to do.
    #[serde(default)]
    pub why: String,
    #[serde(default)]
    pub cure: String,
    /// Seconds after which to ask again.
    #[serde(default)]
    pub again: u64,
    /// What the Proxy holds of that version for the host's system, [`MAX_ARTIFACTS`] at most.
    #[serde(default, deserialize_with = "readable")]
    pub artifacts: Vec<Artifact>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Those that this release can read: what a later one lists besides must not cost it the advice.
fn readable<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<Artifact>, D::Error> {
    let all = Vec::<serde_json::Value>::deserialize(from)?;
    Ok(all.into_iter().filter_map(|one| serde_json::from_value(one).ok()).collect())
}

fn if_readable<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Public>, D::Error> {
    let told = serde_json::Value::deserialize(from)?;
    Ok(serde_json::from_value(told).ok())
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Action {
    /// Another release.
    Install,
    /// The cluster is on its way: nothing to install.
    Wait,
    /// Nothing stands against this host any more.
    Retry,
    #[default]
    #[serde(other)]
    Unknown,
}

/// A file of a release.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Artifact {
    pub name: FileName,
    /// Empty: for every system.
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub arch: String,
    pub sha256: Sha256,
    /// Bytes.
    pub size: u64,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Bytes of a file, in the message's body.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Chunk {
    pub offset: u64,
    /// Of the whole file.
    pub size: u64,
    /// No more chunks answer this question.
    #[serde(default)]
    pub last: bool,
    #[serde(flatten)]
    pub extra: Extra,
}

/// The name of a file in a mirror: one part of a path, never a way out of a directory.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct FileName(String);

impl FileName {
    pub fn as_str(&self) -> &str {
        &self.0
    }
}
impl std::fmt::Display for FileName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
impl std::str::FromStr for FileName {
    type Err = BadRescue;
    /// Letters, digits and `._+~-`, at most 128, the first a letter or digit.
    fn from_str(text: &str) -> Result<Self, BadRescue> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._+~-".contains(&byte);
        let good =
            (1..=128).contains(&text.len()) && text.bytes().all(plain) && text.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric);
        if good { Ok(Self(text.to_owned())) } else { Err(BadRescue::Name) }
    }
}

impl Serialize for FileName {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for FileName {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// Why bytes are not a message, or cannot be made one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRescue {
    #[error("the peer does not speak Lockgate's rescue protocol")]
    NotRescue,
    #[error("a rescue message cannot be read: {0}")]
    Malformed(String),
    #[error("a file name has other characters than letters, digits and ._+~-, or is longer than 128")]
    Name,
    #[error("a message of {0} bytes is too long")]
    TooLong(usize),
}

/// The payload of one frame.
pub fn encode<T: Serialize>(head: &T, body: &[u8]) -> Result<Vec<u8>, BadRescue> {
    let head = serde_json::to_vec(head).map_err(|error| BadRescue::Malformed(error.to_string()))?;
    let total = ENVELOPE.saturating_add(head.len()).saturating_add(body.len());
    let length = u16::try_from(head.len()).ok().filter(|_| total <= crate::frame::MAX_FRAME).ok_or(BadRescue::TooLong(total))?;
    let mut out = Vec::with_capacity(total);
    out.extend(MAGIC);
    out.extend(length.to_be_bytes());
    out.extend(head);
    out.extend(body);
    Ok(out)
}

/// Reads the payload of one frame: the head, and the body behind it.
pub fn decode<T: DeserializeOwned>(payload: &[u8]) -> Result<(T, &[u8]), BadRescue> {
    let rest = payload.strip_prefix(MAGIC).ok_or(BadRescue::NotRescue)?;
    let (length, rest) = rest.split_first_chunk::<2>().ok_or_else(|| BadRescue::Malformed("it ends too early".into()))?;
    let (head, body) =
        rest.split_at_checked(usize::from(u16::from_be_bytes(*length))).ok_or_else(|| BadRescue::Malformed("it ends too early".into()))?;
    let head = serde_json::from_slice(head).map_err(|error| BadRescue::Malformed(error.to_string()))?;
    Ok((head, body))
}

/// The answer to a question of another release. Its code alone counts, and is never used for anything else at this door.
pub fn not_known(proxy: &str) -> ToHost {
    let error = Public::new(Code::RescueUnknown, format!("this Proxy ({proxy}) does not know that question"))
        .hint("do without it, or ask a Proxy of another release");
    ToHost::Refused { error, extra: Extra::new() }
}

/// The system of this build, in the words of artifacts' names.
pub fn system() -> (&'static str, &'static str) {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    (std::env::consts::OS, arch)
}

#[cfg(test)]
#[path = "rescue/tests.rs"]
mod tests;
