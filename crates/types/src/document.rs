//! Documents: the one shape in which everything is stored, served and shown (design 2.5).
//!
//! `{kind, version, metadata{name, labels, expires, revision, description}, spec}`. Unknown fields survive at every
//! level: an older binary that reads, changes and writes a document loses nothing of a newer one's. Typed views
//! ([`Resource`]) keep the same promise with a flattened `extra` in every struct. Updates are conditional on
//! `metadata.revision`; there is no blind overwrite.

use crate::{Extra, Labels, ResourceName, Time};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

/// The store's version of one document: opaque text, equal only if nothing was written between.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Revision(pub String);

impl std::fmt::Display for Revision {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// The most bytes of JSON one document may have: 1 MiB.
pub const MAX_DOCUMENT: usize = 1 << 20;

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Document {
    /// Lower-case word, e.g. `role`. An unknown kind is data.
    pub kind: String,
    /// Stored version of the spec's format, e.g. `v1`. Never rewritten by reading.
    pub version: String,
    pub metadata: Metadata,
    #[serde(default)]
    pub spec: Value,
    /// Unknown top-level fields, kept verbatim.
    #[serde(flatten)]
    pub extra: Extra,
}

#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Metadata {
    pub name: ResourceName,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    #[serde(default, skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// When the store removes the document by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Time>,
    /// Set by the store; sent back with an update.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<Revision>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Metadata {
    pub fn named(name: impl Into<ResourceName>) -> Self {
        Self { name: name.into(), description: None, labels: Labels::new(), expires: None, revision: None, extra: Extra::new() }
    }
}

/// Why bytes are not a document of the asked kind. Faults begin with where they are: `spec.options.max_session_ttl: …`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadDocument {
    #[error("the document is {0} bytes long; the limit is {MAX_DOCUMENT}")]
    TooLarge(usize),
    #[error("not a document: {0}")]
    Malformed(String),
    #[error("expected a {wanted}, got a {found}")]
    WrongKind { wanted: &'static str, found: String },
    #[error("{kind}/{name}: version \"{found}\" is not known here (known: {known})")]
    UnknownVersion { kind: &'static str, name: String, found: String, known: &'static str },
    #[error("{kind}/{name}: {why}")]
    Spec { kind: &'static str, name: String, why: String },
}

impl Document {
    /// Reads JSON bytes, bounded by [`MAX_DOCUMENT`].
    pub fn from_json(bytes: &[u8]) -> Result<Self, BadDocument> {
        if bytes.len() > MAX_DOCUMENT {
            return Err(BadDocument::TooLarge(bytes.len()));
        }
        let mut reader = serde_json::Deserializer::from_slice(bytes);
        let document = serde_path_to_error::deserialize(&mut reader).map_err(|error| BadDocument::Malformed(placed("", &error)))?;
        reader.end().map_err(|error| BadDocument::Malformed(error.to_string()))?;
        Ok(document)
    }

    /// The bytes stored and sent. Key order is the order read, so that nothing is rewritten by passing through.
    pub fn to_json(&self) -> Vec<u8> {
        // A document came from JSON or from types that serialise without failing; null is unreachable.
        serde_json::to_vec(self).unwrap_or_else(|_| b"null".to_vec())
    }

    /// `kind/name`, as typed in `tctl get role/access`.
    pub fn reference(&self) -> String {
        format!("{}/{}", self.kind, self.metadata.name)
    }
}

/// What is wrong, behind the path to where it is.
fn placed(root: &str, error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let path = error.path().to_string();
    let place = match (root, path.as_str()) {
        ("", ".") => return error.inner().to_string(),
        ("", path) => path.to_owned(),
        (root, ".") => root.to_owned(),
        (root, path) if path.starts_with('[') => format!("{root}{path}"),
        (root, path) => format!("{root}.{path}"),
    };
    format!("{place}: {}", error.inner())
}

/// A typed view of one kind of document.
///
/// Implementations keep unknown fields in `#[serde(flatten)] extra` at every level of `Spec`.
pub trait Spec: Serialize + DeserializeOwned + Clone {
    const KIND: &'static str;
    /// The stored version this binary writes, and the only one it reads as typed.
    const VERSION: &'static str;
}

/// A document whose spec was understood.
#[derive(Clone, PartialEq, Debug)]
pub struct Resource<S> {
    pub metadata: Metadata,
    pub spec: S,
    /// Unknown top-level fields of the document.
    pub extra: Extra,
}

impl<S: Spec> Resource<S> {
    pub fn new(metadata: Metadata, spec: S) -> Self {
        Self { metadata, spec, extra: Extra::new() }
    }

    pub fn name(&self) -> &ResourceName {
        &self.metadata.name
    }

    pub fn from_document(document: Document) -> Result<Self, BadDocument> {
        let name = document.metadata.name.to_string();
        if document.kind != S::KIND {
            return Err(BadDocument::WrongKind { wanted: S::KIND, found: document.kind });
        }
        if document.version != S::VERSION {
            return Err(BadDocument::UnknownVersion { kind: S::KIND, name, found: document.version, known: S::VERSION });
        }
        let spec = serde_path_to_error::deserialize(document.spec).map_err(|error| BadDocument::Spec {
            kind: S::KIND,
            name,
            why: placed("spec", &error),
        })?;
        Ok(Self { metadata: document.metadata, spec, extra: document.extra })
    }

    pub fn to_document(&self) -> Document {
        Document {
            kind: S::KIND.into(),
            version: S::VERSION.into(),
            metadata: self.metadata.clone(),
            spec: serde_json::to_value(&self.spec).unwrap_or(Value::Null),
            extra: self.extra.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::role::Role;
    use serde_json::json;

    #[test]
    fn a_fault_begins_with_where_it_is() {
        let check = |spec: Value, want: &str| {
            let document = Document {
                kind: "role".into(),
                version: "v1".into(),
                metadata: Metadata::named(ResourceName::new("x").unwrap()),
                spec,
                extra: Extra::new(),
            };
            let got = Resource::<Role>::from_document(document).unwrap_err().to_string();
            assert!(got.starts_with(want), "{got}");
        };
        check(json!({"options": {"max_session_ttl": "soon"}}), "role/x: spec.options.max_session_ttl: ");
        check(json!({"allow": {"logins": ["a", 5]}}), "role/x: spec.allow.logins[1]: ");
        check(json!({"deny": {"node_labels": {"env": [true]}}}), "role/x: spec.deny.node_labels.env: ");
        check(json!(5), "role/x: spec: ");
        let bytes = |json: Value| Document::from_json(json.to_string().as_bytes()).unwrap_err().to_string();
        let got = bytes(json!({"kind": "role", "version": "v1", "metadata": {"name": "x", "labels": {"a": 1}}}));
        assert!(got.starts_with("not a document: metadata.labels.a: "), "{got}");
        assert!(Document::from_json(br#"{"kind":"a","version":"v1","metadata":{"name":"x"}} trailing"#).is_err());
    }
}
