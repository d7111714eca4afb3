//! What one migration changes, as pure functions over rows: old row → new rows, and back.
//!
//! Four classes: a *reshaped* document keeps its key, *moved* rows get another directory, an *index* is derived from rows that stay,
//! an *encoding* changes the bytes of a value. The same definition serves every driver, the writers' layer and the simulator, so
//! it may not read a clock or anything else but its argument. Business code knows only the new form.
//!
//! The inverse is as important as the change: in the reversible band both sides are written, and [`Migration::pair`] refuses what
//! the old form cannot express rather than lose it. Moved rows keep the rest of their key, so that both sides have one order.

use types::{Document, control::ClusterVersion, document::BadDocument};

/// A key and its value, without revision.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Row {
    pub key: String,
    pub value: Vec<u8>,
}

impl Row {
    pub fn new(key: impl Into<String>, value: impl Into<Vec<u8>>) -> Self {
        Self { key: key.into(), value: value.into() }
    }
}

/// A row that a migration cannot change.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{key}: {why}")]
pub struct BadRow {
    pub key: String,
    pub why: String,
}

/// How a value changes.
#[derive(Clone, Copy, Debug)]
pub enum Form {
    /// Not at all; only for moved rows.
    Kept,
    /// As a document. Its expiry belongs to the store's item and stays.
    Document { up: fn(Document) -> Result<Document, String>, down: fn(Document) -> Result<Document, String> },
    /// As bytes.
    Bytes { up: fn(&[u8]) -> Result<Vec<u8>, String>, down: fn(&[u8]) -> Result<Vec<u8>, String> },
}

/// What changes. Directories are named without their last `/`.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// Rows of `dir` keep their keys.
    InPlace { dir: &'static str, form: Form },
    /// `from/x` becomes `to/x`. Nothing else may lie in `to`.
    Moved { from: &'static str, to: &'static str, form: Form },
    /// Each row of `source` has rows in `into`; it stays what it is. Nothing else may lie in `into`.
    Index {
        source: &'static str,
        into: &'static str,
        derive: fn(&Row) -> Result<Vec<Row>, String>,
        /// The source's key of a derived row's key; none for a key that cannot have been derived.
        source_of: fn(&str) -> Option<String>,
    },
}

/// The classes of the design; found from the change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    Reshaped,
    Moved,
    Index,
    Encoding,
}

impl Class {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reshaped => "reshaped",
            Self::Moved => "moved",
            Self::Index => "index",
            Self::Encoding => "encoding",
        }
    }
}

/// What is proposed for a bad row. Nothing is done without consent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Fix {
    /// This value in the old form.
    Replace(Vec<u8>),
    /// The row goes to retention.
    Remove,
}

/// One migration. Frozen once released: see `registry`.
#[derive(Clone, Copy, Debug)]
pub struct Migration {
    /// Lower-case words and digits joined by `-`; part of keys in the store.
    pub id: &'static str,
    /// One line for people.
    pub about: &'static str,
    /// The cluster version it begins at: the end of the major before.
    pub from: ClusterVersion,
    /// The cluster version that ends the way back; only then the old side is given up.
    pub to: ClusterVersion,
    /// The oldest major that may take the cluster over until then.
    pub floor: u64,
    pub change: Change,
    /// What to propose for a bad row; without it, its removal.
    pub repair: Option<fn(&Row) -> Option<Fix>>,
    /// The text of the file that defines it: `include_str!` of itself. What the digest is made of.
    pub source: &'static str,
}

/// Both sides of one row, as they are written together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pair {
    pub old: Row,
    pub new: Row,
}

impl Migration {
    pub const fn class(&self) -> Class {
        match self.change {
            Change::InPlace { form: Form::Document { .. } | Form::Kept, .. } => Class::Reshaped,
            Change::InPlace { form: Form::Bytes { .. }, .. } => Class::Encoding,
            Change::Moved { .. } => Class::Moved,
            Change::Index { .. } => Class::Index,
        }
    }

    /// Where old rows lie.
    pub const fn old_dir(&self) -> &'static str {
        match self.change {
            Change::InPlace { dir, .. } => dir,
            Change::Moved { from, .. } => from,
            Change::Index { source, .. } => source,
        }
    }

    /// Where new rows lie in the end, and where business code looks for them.
    pub const fn new_dir(&self) -> &'static str {
        match self.change {
            Change::InPlace { dir, .. } => dir,
            Change::Moved { to, .. } => to,
            Change::Index { into, .. } => into,
        }
    }

    /// Where new rows lie until the old ones are swept away: their place, unless an old row has it.
    pub fn home_dir(&self) -> String {
        match self.change {
            Change::InPlace { dir, .. } => format!("{SHADOW}/{}/{dir}", self.id),
            Change::Moved { to, .. } => to.to_owned(),
            Change::Index { into, .. } => into.to_owned(),
        }
    }

    /// Where the old row of a new one lies; none for keys that are not of this migration.
    pub fn old_key(&self, new_key: &str) -> Option<String> {
        match self.change {
            Change::InPlace { .. } | Change::Moved { .. } => rebase(new_key, self.new_dir(), self.old_dir()),
            Change::Index { source_of, .. } => source_of(new_key).filter(|key| rebase(key, self.old_dir(), "").is_some()),
        }
    }

    /// The place a new row has until the sweep.
    pub fn home(&self, new_key: &str) -> Option<String> {
        rebase(new_key, self.new_dir(), &self.home_dir())
    }

    /// The new row's final key, from its present one.
    pub fn final_key(&self, home: &str) -> Option<String> {
        rebase(home, &self.home_dir(), self.new_dir())
    }

    /// Whether an old row becomes exactly one new row.
    pub const fn is_one_to_one(&self) -> bool {
        !matches!(self.change, Change::Index { .. })
    }

    /// The new rows of an old one, under their final keys.
    pub fn forward(&self, old: &Row) -> Result<Vec<Row>, BadRow> {
        let bad = |why: String| BadRow { key: old.key.clone(), why };
        match self.change {
            Change::InPlace { form, .. } | Change::Moved { form, .. } => {
                let key =
                    rebase(&old.key, self.old_dir(), self.new_dir()).ok_or_else(|| bad("it is not a row of this migration".into()))?;
                let value = form.up(&key, &old.value).map_err(bad)?;
                Ok(vec![Row { key, value }])
            }
            Change::Index { derive, into, .. } => {
                let mut rows = derive(old).map_err(bad)?;
                rows.sort();
                for (row, next) in rows.iter().zip(rows.iter().skip(1)) {
                    if row.key == next.key {
                        return Err(bad(format!("it would have two rows {}", row.key)));
                    }
                }
                for row in &rows {
                    let back = self.old_key(&row.key);
                    if rebase(&row.key, into, "").is_none() || back.as_deref() != Some(&old.key) {
                        return Err(bad(format!("{} does not lead back to it", row.key)));
                    }
                }
                Ok(rows)
            }
        }
    }

    /// The old row of a new one.
    pub fn backward(&self, new: &Row) -> Result<Row, BadRow> {
        let bad = |why: String| BadRow { key: new.key.clone(), why };
        match self.change {
            Change::InPlace { form, .. } | Change::Moved { form, .. } => {
                let key =
                    rebase(&new.key, self.new_dir(), self.old_dir()).ok_or_else(|| bad("it is not a row of this migration".into()))?;
                let value = form.down(&key, &new.value).map_err(bad)?;
                Ok(Row { key, value })
            }
            Change::Index { .. } => Err(bad("a derived row has no old form".into())),
        }
    }

    /// Both sides of a new row, or the reason why the old form cannot express it. The new side is what the old one leads to, so
    /// that a writer and the back-fill write the same bytes.
    pub fn pair(&self, new: &Row) -> Result<Pair, BadRow> {
        let old = self.backward(new)?;
        let mut forward = self.forward(&old)?;
        match forward.pop() {
            Some(back) if same(&back.value, &new.value) => Ok(Pair { old, new: back }),
            Some(_) | None => {
                Err(BadRow { key: new.key.clone(), why: "the former format cannot express it; wait until the upgrade is finalized".into() })
            }
        }
    }

    /// Whether an old row can be changed and would come back as it was.
    pub fn check(&self, old: &Row) -> Result<Vec<Row>, BadRow> {
        let rows = self.forward(old)?;
        if self.is_one_to_one() {
            for row in &rows {
                let back = self.backward(row).map_err(|bad| BadRow { key: old.key.clone(), why: bad.why })?;
                if !same(&back.value, &old.value) {
                    return Err(BadRow { key: old.key.clone(), why: "it would not come back the same".into() });
                }
            }
        }
        Ok(rows)
    }
}

/// The directory of new rows whose place is taken by old ones.
pub const SHADOW: &str = "shadow";
/// The directory of rows that were given up or repaired.
pub const RETAINED: &str = "retained";

/// `from/x` as `to/x`, and `x` where `to` is empty.
fn rebase(key: &str, from: &str, to: &str) -> Option<String> {
    let rest = key.strip_prefix(from)?.strip_prefix('/')?;
    Some(if to.is_empty() { rest.to_owned() } else { format!("{to}/{rest}") })
}

/// Equal, or JSON of one meaning: the order of an object's keys says nothing.
pub fn same(left: &[u8], right: &[u8]) -> bool {
    let json = |bytes| serde_json::from_slice::<serde_json::Value>(bytes).ok();
    left == right || json(left).is_some_and(|left| json(right).is_some_and(|right| left == right))
}

impl Form {
    fn up(&self, key: &str, value: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Self::Kept => Ok(value.to_vec()),
            Self::Document { up, .. } => through(key, value, *up),
            Self::Bytes { up, .. } => up(value),
        }
    }

    fn down(&self, key: &str, value: &[u8]) -> Result<Vec<u8>, String> {
        match self {
            Self::Kept => Ok(value.to_vec()),
            Self::Document { down, .. } => through(key, value, *down),
            Self::Bytes { down, .. } => down(value),
        }
    }
}

/// Changes a document, and holds it against the key that it is to have.
fn through(key: &str, value: &[u8], change: fn(Document) -> Result<Document, String>) -> Result<Vec<u8>, String> {
    let read = |error: BadDocument| error.to_string();
    let document = Document::from_json(value).map_err(read)?;
    let expires = document.metadata.expires;
    let changed = change(document)?;
    if changed.metadata.expires != expires {
        return Err("a migration may not change when a document expires".into());
    }
    if key.starts_with("doc/") && key != format!("doc/{}", changed.reference()) {
        return Err(format!("it would say that it is {}", changed.reference()));
    }
    let bytes = changed.to_json();
    Document::from_json(&bytes).map_err(read)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::registry::tests::{MOVED, RESHAPED};

    #[test]
    fn what_the_old_form_cannot_express_is_refused_and_not_lost() {
        let row = |spec: &str| {
            Row::new("doc/widget/a", format!(r#"{{"kind":"widget","version":"v2","metadata":{{"name":"a"}},"spec":{spec}}}"#).into_bytes())
        };
        let pair = RESHAPED.pair(&row(r#"{"size":{"cm":3}}"#)).unwrap();
        assert!(String::from_utf8(pair.old.value).unwrap().contains(r#""size":3"#));
        let lost = RESHAPED.pair(&row(r#"{"size":{"cm":3,"mm":4}}"#)).unwrap_err();
        assert!(lost.to_string().contains("cannot express"), "{lost}");
    }

    #[test]
    fn a_document_stays_under_its_own_key() {
        let row = Row::new("doc/gadget/a", br#"{"kind":"gadget","version":"v1","metadata":{"name":"b"},"spec":{}}"#);
        assert_eq!(MOVED.forward(&row).unwrap_err().to_string(), "doc/gadget/a: it would say that it is device/b");
        assert!(MOVED.forward(&Row::new("doc/gadgets/a", "")).is_err(), "another directory");
    }

    #[test]
    fn key_order_in_json_is_no_difference() {
        let check = |left: &str, right: &str, expected: bool| assert_eq!(same(left.as_bytes(), right.as_bytes()), expected);
        check(r#"{"a":1,"b":2}"#, r#"{ "b":2,"a":1 }"#, true);
        check(r#"{"a":1}"#, r#"{"a":2}"#, false);
        check("x", "x", true);
        check("x", "y", false);
    }
}
