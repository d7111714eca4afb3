//! Documents as callers of another major read and write them: by the functions of the migrations that lie between.
//!
//! Stored formats concern Auth Services alone, but a reshaped document goes out over the API, to members and people who are one major
//! behind. The Auth Service knows only the newest form; at its door a document is taken back for whoever is older ([`Registry::as_of`]),
//! and what is sent is brought forward by the version that it says ([`Registry::newest`]), so that a file somebody kept from before is still
//! good. Kinds that a migration moves are told by their new name: such a migration needs more than this.

use crate::migrate::definition::{Change, Form, Migration};
use crate::migrate::registry::Registry;
use types::Document;

/// Takes a document one step further, or back.
type Turn = fn(Document) -> Result<Document, String>;

/// A migration that reshapes a kind.
struct Reshaping {
    to: u64,
    older: &'static str,
    newer: &'static str,
    up: Turn,
    down: Turn,
}

impl Registry {
    /// A document as that major reads it. Fails for what its form cannot say.
    pub fn as_of(&self, major: u64, document: Document) -> Result<Document, String> {
        let mut later: Vec<Reshaping> = self.reshaping(&document.kind).filter(|one| one.to > major).collect();
        later.reverse();
        later.iter().try_fold(document, |document, one| turn(document, one.newer, one.older, one.down))
    }

    /// A document in the form of today. Fails for one of an older form that no migration could bring forward.
    pub fn newest(&self, document: Document) -> Result<Document, String> {
        let steps: Vec<Reshaping> = self.reshaping(&document.kind).collect();
        steps.iter().try_fold(document, |document, one| turn(document, one.older, one.newer, one.up))
    }

    /// Whether documents of that kind look otherwise to that major.
    pub fn differs(&self, kind: &str, major: u64) -> bool {
        self.reshaping(kind).any(|one| one.to > major)
    }

    /// What reshapes that kind, oldest first.
    fn reshaping(&self, kind: &str) -> impl Iterator<Item = Reshaping> {
        self.iter().filter(move |migration| migration.old_dir().strip_prefix("doc/") == Some(kind)).filter_map(reshaping)
    }
}

fn reshaping(migration: &Migration) -> Option<Reshaping> {
    match migration.change {
        Change::InPlace { form: Form::Document { versions: [older, newer], up, down }, .. } if older != newer => {
            Some(Reshaping { to: migration.to.major, older, newer, up, down })
        }
        Change::InPlace { .. } | Change::Moved { .. } | Change::Index { .. } => None,
    }
}

/// Only what is of the one version is turned; anything else is as it is.
fn turn(document: Document, from: &str, to: &str, change: Turn) -> Result<Document, String> {
    if document.version != from {
        return Ok(document);
    }
    Ok(Document { version: to.into(), ..change(document)? })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::registry::{registry, tests::RESHAPED};
    use serde_json::json;

    fn document(json: serde_json::Value) -> Document {
        Document::from_json(json.to_string().as_bytes()).unwrap()
    }

    #[test]
    fn a_caller_of_the_major_before_reads_and_writes_the_form_of_then() {
        let registry = Registry::new(&[RESHAPED]).unwrap();
        let widget = |version: &str, size| {
            document(
                json!({"kind": "widget", "version": version, "metadata": {"name": "a", "revision": "7"}, "spec": {"size": size}, "kept": 1}),
            )
        };
        let (old, new) = (widget("v1", json!(3)), widget("v2", json!({"cm": 3})));
        assert_eq!(registry.as_of(8, new.clone()), Ok(old.clone()));
        assert_eq!(registry.as_of(9, new.clone()), Ok(new.clone()));
        assert_eq!((registry.newest(old.clone()), registry.newest(new.clone())), (Ok(new.clone()), Ok(new)));
        assert_eq!(registry.as_of(8, old.clone()), Ok(old), "a row that was shown as it lies");
        assert!(registry.newest(widget("v1", json!("wide"))).is_err());
        let other = document(json!({"kind": "gadget", "version": "v1", "metadata": {"name": "a"}, "spec": {}}));
        assert_eq!(registry.as_of(1, other.clone()), Ok(other));
        assert!(registry.differs("widget", 8) && !registry.differs("widget", 9) && !registry.differs("gadget", 8));
    }

    #[test]
    fn users_are_told_to_major_1_with_who_made_them_in_the_spec() {
        let user =
            json!({"kind": "user", "version": "v2", "metadata": {"name": "a"}, "spec": {"roles": []}, "status": {"created_by": "eve"}});
        let told = registry().unwrap().as_of(1, document(user.clone())).unwrap();
        assert_eq!((told.version.as_str(), &told.spec), ("v1", &json!({"roles": [], "created_by": "eve"})));
        assert_eq!(registry().unwrap().newest(told), Ok(document(user)));
    }
}
