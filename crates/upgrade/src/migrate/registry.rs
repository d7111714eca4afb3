//! The list of migrations, and the digests of those that were released.
//!
//! A released migration is frozen: clusters have run it half way, and a changed one would finish what another began. Its
//! digest, made of the text of its file, stands in `migrations.lock`; a test compares, and `cargo xtask check` holds that no line
//! of that file ever goes or changes. A fix is a new migration. Layout does not count: white space and the comma
//! before a closing bracket are left out, so that a newer formatter changes nothing.

use crate::migrate::definition::{Change, Form, Migration, RETAINED, SHADOW};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;

/// All migrations that this binary knows, in the order in which they are run.
const MIGRATIONS: &[Migration] = &[];

/// Digests of released migrations: one line each, `<id> <digest>`.
pub const LOCK: &str = include_str!("../../migrations.lock");

/// A list of migrations that can be run together.
#[derive(Clone, Debug, Default)]
pub struct Registry(Vec<Migration>);

/// Why migrations cannot stand in one list, or are not those that were released.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum BadRegistry {
    #[error("two migrations are called {0}")]
    Twice(String),
    #[error("\"{0}\" is not a migration's id: lower-case words and digits joined by \"-\"")]
    Id(String),
    #[error("migration {0} does not lead from the end of one major to the end of the next with the older one as its floor")]
    Versions(String),
    #[error("migration {id} changes {dir}, which is not a directory of rows that may be changed")]
    Dir { id: String, dir: String },
    #[error("migrations {one} and {other} of one major both touch {dir}")]
    Overlap { one: String, other: String, dir: String },
    #[error("migration {0} keeps keys and values: it changes nothing")]
    Nothing(String),
    #[error("migration {id} was released with digest {released} and is now {now}: write a new migration instead")]
    Changed { id: String, released: String, now: String },
    #[error("migration {0} was released and is gone")]
    Gone(String),
    #[error("line {0} of the list of digests cannot be read")]
    Line(usize),
}

/// The migrations of this binary.
pub fn registry() -> Result<Registry, BadRegistry> {
    Registry::new(MIGRATIONS)
}

impl Registry {
    pub fn new(migrations: &[Migration]) -> Result<Self, BadRegistry> {
        for (index, migration) in migrations.iter().enumerate() {
            shape(migration)?;
            for other in migrations.iter().skip(index + 1) {
                apart(migration, other)?;
            }
        }
        Ok(Self(migrations.to_vec()))
    }

    pub fn iter(&self) -> impl Iterator<Item = &Migration> {
        self.0.iter()
    }

    pub fn find(&self, id: &str) -> Option<&Migration> {
        self.0.iter().find(|migration| migration.id == id)
    }

    /// Over all migrations: part of what makes two builds of one version the same.
    pub fn digest(&self) -> String {
        let mut hash = Sha256::new();
        for migration in &self.0 {
            hash.update(format!("{} {}\n", migration.id, digest(migration)));
        }
        hex(&hash.finalize())
    }

    /// Compares with the digests that were released.
    pub fn hold(&self, lock: &str) -> Result<(), BadRegistry> {
        for (index, line) in lock.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let words: Vec<&str> = line.split_whitespace().collect();
            let [id, released] = words.as_slice() else { return Err(BadRegistry::Line(index + 1)) };
            let migration = self.find(id).ok_or_else(|| BadRegistry::Gone((*id).to_owned()))?;
            let now = digest(migration);
            if now != *released {
                return Err(BadRegistry::Changed { id: (*id).to_owned(), released: (*released).to_owned(), now });
            }
        }
        Ok(())
    }
}

/// The digest of a migration's text, without layout.
pub fn digest(migration: &Migration) -> String {
    let mut text = String::with_capacity(migration.source.len());
    let mut letters = migration.source.chars().filter(|letter| !letter.is_whitespace()).peekable();
    while let Some(letter) = letters.next() {
        if letter != ',' || !matches!(letters.peek(), Some(')' | ']' | '}')) {
            text.push(letter);
        }
    }
    hex(&Sha256::digest(text.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a String does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What a single migration must be.
fn shape(migration: &Migration) -> Result<(), BadRegistry> {
    let id = migration.id;
    let word = |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
    if id.len() > 64 || !id.split('-').all(word) {
        return Err(BadRegistry::Id(id.to_owned()));
    }
    let (from, to) = (migration.from, migration.to);
    if to.major != from.major + 1 || migration.floor != from.major || from != crate::control::final_of(from.major) {
        return Err(BadRegistry::Versions(id.to_owned()));
    }
    for dir in dirs(migration) {
        let proper = !dir.is_empty() && dir.split('/').all(|part| !part.is_empty());
        let ours = ["control", "migration", SHADOW, RETAINED].contains(&dir.split('/').next().unwrap_or_default());
        if !proper || ours {
            return Err(BadRegistry::Dir { id: id.to_owned(), dir: dir.to_owned() });
        }
    }
    match migration.change {
        Change::InPlace { form: Form::Kept, .. } => Err(BadRegistry::Nothing(id.to_owned())),
        Change::Moved { from, to, .. } | Change::Index { source: from, into: to, .. } if overlap(from, to) => {
            Err(BadRegistry::Overlap { one: id.to_owned(), other: id.to_owned(), dir: to.to_owned() })
        }
        Change::InPlace { .. } | Change::Moved { .. } | Change::Index { .. } => Ok(()),
    }
}

/// Two migrations of one major run at once, so they may not touch one row. Those of an older major are over.
fn apart(one: &Migration, other: &Migration) -> Result<(), BadRegistry> {
    if one.id == other.id {
        return Err(BadRegistry::Twice(one.id.to_owned()));
    }
    if one.to.major != other.to.major {
        return Ok(());
    }
    for left in dirs(one) {
        if dirs(other).into_iter().any(|right| overlap(left, right)) {
            return Err(BadRegistry::Overlap { one: one.id.to_owned(), other: other.id.to_owned(), dir: left.to_owned() });
        }
    }
    Ok(())
}

fn dirs(migration: &Migration) -> [&'static str; 2] {
    [migration.old_dir(), migration.new_dir()]
}

fn overlap(one: &str, other: &str) -> bool {
    let inside = |inner: &str, outer: &str| inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    inside(one, other) || inside(other, one)
}

#[cfg(test)]
#[path = "registry/tests.rs"]
pub(crate) mod tests;
