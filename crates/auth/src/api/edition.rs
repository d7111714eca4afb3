//! Documents at the door: told as the caller's major knows them, and taken in whatever form they were written.
//!
//! Inside there is only the newest form. What the older form cannot say is told in the newer one: a reader of before then skips a document
//! that it cannot read, as it does with any other, and does not take it for gone. Which forms there are: `upgrade::migrate::edition`.

use crate::{
    core::{Call, Fault, malformed},
    mirror::Entry,
};
use bytes::Bytes;
use types::Document;

/// A document, as it goes out to that caller.
pub(super) fn told(call: &Call, document: &Document) -> Bytes {
    older(call, &document.kind, || Some(document.clone())).unwrap_or_else(|| document.to_json().into())
}

/// The same of one in the mirror, whose bytes are there already.
pub(super) fn told_entry(call: &Call, entry: &Entry) -> Bytes {
    older(call, &entry.document.kind, || entry.full()).unwrap_or_else(|| entry.json.clone())
}

/// What a caller has sent.
pub(super) fn taken(call: &Call, json: &[u8]) -> Result<Document, Fault> {
    let document = Document::from_json(json)?;
    let reference = document.reference();
    call.core.migrations.registry().newest(document).map_err(|why| malformed(format!("{reference}: {why}")))
}

/// As the caller's major knows it, if that is otherwise than today.
fn older(call: &Call, kind: &str, document: impl FnOnce() -> Option<Document>) -> Option<Bytes> {
    let registry = call.core.migrations.registry();
    let major = call.peer.hello.parsed()?.major();
    if !registry.differs(kind, major) {
        return None;
    }
    let told = registry.as_of(major, document()?).inspect_err(|why| tracing::debug!(kind, major, why, "told in the newest form"));
    Some(told.ok()?.to_json().into())
}
