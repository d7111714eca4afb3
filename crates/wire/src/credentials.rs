//! The file in which a host, or the local administrator, keeps its credentials: `<data_dir>/host/identity.json` and
//! `<data_dir>/admin/identity.json`.
//!
//! JSON, one object, unknown fields kept. One Ed25519 key (PKCS#8, PEM) stands behind both certificates. Written by
//! `client::host` for members and by the Auth Service for the administrator; whoever writes it makes it 0600 from its
//! creation and puts it in place by renaming. [`HostFile::to_json`] returns a [`Secret`], because the key is in it.

use serde::{Deserialize, Serialize};
use types::{Document, Extra, HostIdentity, Labels, Secret};

/// The only format number there is; a file with a higher one was written by a newer release.
pub const FORMAT: u32 = 1;
/// The most bytes of the file: room for a few dozen trusted CA keys.
pub const MAX_FILE: usize = 1 << 20;

/// Content of `identity.json`.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct HostFile {
    pub format: u32,
    /// Cluster, host id, node name and roles, as in the certificates.
    pub identity: HostIdentity,
    /// Ed25519, PKCS#8, PEM (`-----BEGIN PRIVATE KEY-----`).
    #[serde(with = "exposed")]
    pub private_key: Secret,
    /// One line in OpenSSH's format; a host certificate. Empty for the administrator.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub ssh_certificate: String,
    /// PEM, leaf first.
    pub tls_certificate: String,
    /// `cert_authority` documents: user and host.
    pub authorities: Vec<Document>,
    /// Labels that the join token gave.
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// `host:port` of the Auth Service, when it is known; `tctl` on the same host dials it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_addr: Option<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Why bytes are not a credentials file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadHostFile {
    #[error("the credentials file is {0} bytes long; the limit is {MAX_FILE}")]
    TooLarge(usize),
    #[error("the credentials file has format {0}, which a newer release wrote; this one reads {FORMAT}")]
    Newer(u32),
    #[error("the credentials file cannot be read: {0}")]
    Malformed(String),
}

impl HostFile {
    /// Reads the file's bytes.
    pub fn from_json(bytes: &[u8]) -> Result<Self, BadHostFile> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        if bytes.len() > MAX_FILE {
            return Err(BadHostFile::TooLarge(bytes.len()));
        }
        // Only line and column: serde's message may quote the text it met, and a key is in there.
        let malformed = |error: serde_json::Error| {
            BadHostFile::Malformed(format!("{:?} error at line {} column {}", error.classify(), error.line(), error.column()))
        };
        let head: Head = serde_json::from_slice(bytes).map_err(malformed)?;
        if head.format > FORMAT {
            return Err(BadHostFile::Newer(head.format));
        }
        serde_json::from_slice(bytes).map_err(malformed)
    }

    /// The bytes to write, as a secret.
    pub fn to_json(&self) -> Secret {
        // These types serialise without failing; an empty text is refused by every reader.
        Secret::new(serde_json::to_string_pretty(self).unwrap_or_default())
    }
}

/// The one place where a [`Secret`] is serialised: into the file whose purpose it is.
mod exposed {
    use serde::{Deserialize, Deserializer, Serializer};
    use types::Secret;

    pub(super) fn serialize<S: Serializer>(secret: &Secret, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(secret.expose())
    }
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Secret, D::Error> {
        String::deserialize(from).map(Secret::new)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{ClusterName, HostId, NodeName, SystemRole};

    fn file() -> HostFile {
        HostFile {
            format: FORMAT,
            identity: HostIdentity {
                cluster: ClusterName::new("demo").unwrap(),
                id: HostId::from_uuid(uuid::Uuid::nil()),
                name: NodeName::new("node1").unwrap(),
                roles: [SystemRole::Node].into(),
                extra: Extra::new(),
            },
            private_key: Secret::new("-----BEGIN PRIVATE KEY-----"),
            ssh_certificate: String::new(),
            tls_certificate: "pem".into(),
            authorities: Vec::new(),
            labels: Labels::new(),
            auth_addr: Some("127.0.0.1:3025".into()),
            extra: Extra::new(),
        }
    }

    #[test]
    fn a_file_survives_a_round_trip_with_fields_of_a_newer_release() {
        let mut with_more = file();
        with_more.extra.insert("colour".into(), "blue".into());
        let text = with_more.to_json();
        assert_eq!(HostFile::from_json(text.expose().as_bytes()), Ok(with_more));
    }

    #[test]
    fn neither_debug_nor_an_error_shows_the_key() {
        assert!(!format!("{:?}", file()).contains("BEGIN"));
        let broken = file().to_json().expose().replace("\"pem\"", "7");
        let error = HostFile::from_json(broken.as_bytes()).unwrap_err().to_string();
        assert!(!error.contains("BEGIN") && error.contains("line"), "{error}");
    }

    #[test]
    fn a_file_of_a_newer_format_is_refused_by_name() {
        let newer = file().to_json().expose().replace("\"format\": 1", "\"format\": 2");
        assert_eq!(HostFile::from_json(newer.as_bytes()), Err(BadHostFile::Newer(2)));
        assert_eq!(HostFile::from_json(&vec![b' '; MAX_FILE + 1]), Err(BadHostFile::TooLarge(MAX_FILE + 1)));
    }
}
