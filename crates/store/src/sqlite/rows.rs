//! All SQL: items, and the changes that watches resume from.
//!
//! A change's id is its commit's revision times 2^20 plus its place in the commit, so the table is in revision order by
//! itself and its newest row says the store's revision. Revisions have no gaps. Whoever writes holds the transaction;
//! nothing here begins or ends one except [`Rows::page`], which needs one picture for two statements.

use crate::group::{Known, Needs, Row as Stored};
use crate::request::EXPIRE_AT_ONCE;
use crate::watch::{Commit, WatchError};
use crate::{Event, Item, Key, MAX_CHANGES, MAX_PAGE, Page, StoreError};
use bytes::Bytes;
use rusqlite::{Connection, ErrorCode, OptionalExtension as _, Row, params};
use std::path::Path;
use std::sync::Arc;
use types::Time;

/// Soft limits in bytes for one page and for one reading of changes; the item or commit that passes it is still given.
const PAGE_BYTES: usize = 16 << 20;
const CHANGES_BYTES: usize = 4 << 20;
const PLACE_BITS: u32 = 20;
const _: () = assert!(1 << PLACE_BITS == MAX_CHANGES);

type Sql<T> = Result<T, rusqlite::Error>;

/// One connection.
pub(super) struct Rows {
    pub(super) connection: Connection,
    pub(super) place: String,
}

impl Rows {
    pub(super) fn new(connection: Connection, path: &Path) -> Self {
        Self { connection, place: path.display().to_string() }
    }

    pub(super) fn named(&self, error: &rusqlite::Error) -> StoreError {
        named(&self.place, error)
    }

    /// Runs a statement without parameters or rows.
    pub(super) fn run(&self, sql: &str) -> Sql<()> {
        self.connection.prepare_cached(sql)?.execute([]).map(drop)
    }

    pub(super) fn revision(&self) -> Sql<u64> {
        let newest = self.connection.prepare_cached("SELECT max(id) FROM change")?.query_row([], |row| row.get::<_, Option<u64>>(0))?;
        Ok(newest.unwrap_or(0) >> PLACE_BITS)
    }

    /// Changes whenever another connection commits.
    pub(super) fn data_version(&self) -> Sql<i64> {
        self.connection.prepare_cached("PRAGMA data_version")?.query_row([], |row| row.get(0))
    }

    /// What a group needs, to be read inside its transaction.
    pub(super) fn known(&self, needs: &Needs, now: Time) -> Sql<Known> {
        let mut known = Known::default();
        if needs.fence {
            known.control = self.item(&Key::control())?.map(|item| item.value);
        }
        for key in needs.heads.iter().chain(&needs.names) {
            if let Some(row) = self.find(key)? {
                known.rows.insert(key.clone(), row);
            }
        }
        for key in &needs.whole {
            if let Some(Item { key, value, revision, expires }) = self.item(key)? {
                known.rows.insert(key, Stored { revision, expires, value: Some(value) });
            }
        }
        for (from, to) in &needs.ranges {
            for key in self.keys(from, to, MAX_CHANGES + 1)? {
                known.rows.entry(key).or_insert(Stored { revision: 0, expires: None, value: None });
            }
        }
        if needs.due {
            for (key, expires) in self.due(now)? {
                known.due.push(key.clone());
                known.rows.insert(key, Stored { revision: 0, expires, value: None });
            }
        }
        Ok(known)
    }

    fn find(&self, key: &Key) -> Sql<Option<Stored>> {
        let mut statement = self.connection.prepare_cached("SELECT revision, expires FROM item WHERE key = ?")?;
        let row = statement.query_row([key.as_bytes()], |row| Ok(Stored { revision: row.get(0)?, expires: time(row, 1)?, value: None }));
        row.optional()
    }

    pub(super) fn item(&self, key: &Key) -> Sql<Option<Item>> {
        let mut statement = self.connection.prepare_cached("SELECT key, revision, expires, value FROM item WHERE key = ?")?;
        statement.query_row([key.as_bytes()], item).optional()
    }

    /// A page and the revision it shows.
    pub(super) fn page(&self, from: &Key, to: &Key, limit: usize, now: Time) -> Sql<Page> {
        let transaction = self.connection.unchecked_transaction()?;
        let revision = self.revision()?;
        let (items, next) = self.part(from, to, limit, now)?;
        transaction.commit()?;
        Ok(Page { items, next, revision })
    }

    /// A page inside whatever transaction there is, and where the next one starts.
    pub(super) fn part(&self, from: &Key, to: &Key, limit: usize, now: Time) -> Sql<(Vec<Item>, Option<Key>)> {
        let limit = limit.clamp(1, MAX_PAGE);
        let (mut items, mut bytes) = (Vec::new(), 0);
        let mut statement = self.connection.prepare_cached(
            "SELECT key, revision, expires, value FROM item
             WHERE key >= ?1 AND key < ?2 AND (expires IS NULL OR expires > ?3) ORDER BY key",
        )?;
        let mut rows = statement.query(params![from.as_bytes(), to.as_bytes(), now.unix_millis()])?;
        while let Some(row) = rows.next()? {
            if items.len() == limit || bytes > PAGE_BYTES {
                return Ok((items, Some(Key::stored(row.get::<_, Vec<u8>>(0)?))));
            }
            let item = item(row)?;
            bytes += item.value.len();
            items.push(item);
        }
        Ok((items, None))
    }

    /// Commits after a revision, whole. The inner error says that the first of them is gone.
    pub(super) fn changes(&self, after: u64, most: usize) -> Sql<Result<Vec<Arc<Commit>>, WatchError>> {
        let mut statement = self.connection.prepare_cached("SELECT id, key, expires, value FROM change WHERE id >= ? ORDER BY id")?;
        let mut rows = statement.query([(after + 1) << PLACE_BITS])?;
        let mut commits: Vec<Commit> = Vec::new();
        let mut bytes = 0;
        while let Some(row) = rows.next()? {
            let (revision, event) = change(row)?;
            if commits.is_empty() && revision != after + 1 {
                return Ok(Err(WatchError::Lagged { oldest: revision }));
            }
            let full = commits.len() == most || bytes > CHANGES_BYTES;
            match commits.last_mut() {
                Some(commit) if commit.revision == revision => commit.events.push(event),
                _ if full => break,
                _ => commits.push(Commit { revision, events: vec![event] }),
            }
            bytes += row.get_ref(3)?.as_bytes_or_null().ok().flatten().map_or(0, <[u8]>::len);
        }
        Ok(Ok(commits.into_iter().map(Arc::new).collect()))
    }

    /// Does what one commit came to, and writes it down for watches.
    pub(super) fn apply(&self, events: &[Event]) -> Sql<()> {
        for event in events {
            match event {
                Event::Put(item) => self.put(item)?,
                Event::Delete { key, .. } => self.delete(key)?,
                Event::Init { .. } => {}
            }
        }
        self.record(events)
    }

    fn delete(&self, key: &Key) -> Sql<()> {
        self.connection.prepare_cached("DELETE FROM item WHERE key = ?")?.execute([key.as_bytes()]).map(drop)
    }

    fn put(&self, item: &Item) -> Sql<()> {
        let mut statement = self.connection.prepare_cached(
            "INSERT INTO item (key, revision, expires, value) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT (key) DO UPDATE SET revision = ?2, expires = ?3, value = ?4",
        )?;
        let expires = item.expires.map(Time::unix_millis);
        statement.execute(params![item.key.as_bytes(), item.revision, expires, item.value.as_ref()]).map(drop)
    }

    /// Up to `most` keys of the range, expired ones too.
    fn keys(&self, from: &Key, to: &Key, most: usize) -> Sql<Vec<Key>> {
        let mut statement = self.connection.prepare_cached("SELECT key FROM item WHERE key >= ? AND key < ? ORDER BY key LIMIT ?")?;
        let keys = statement.query_map(params![from.as_bytes(), to.as_bytes(), most], |row| row.get::<_, Vec<u8>>(0).map(Key::stored))?;
        keys.collect()
    }

    /// What has expired, in the order of its expiry.
    fn due(&self, now: Time) -> Sql<Vec<(Key, Option<Time>)>> {
        let sql = "SELECT key, expires FROM item WHERE expires <= ? ORDER BY expires, key LIMIT ?";
        let mut statement = self.connection.prepare_cached(sql)?;
        let due = statement
            .query_map(params![now.unix_millis(), EXPIRE_AT_ONCE], |row| Ok((Key::stored(row.get::<_, Vec<u8>>(0)?), time(row, 1)?)))?;
        due.collect()
    }

    fn record(&self, events: &[Event]) -> Sql<()> {
        let mut statement = self.connection.prepare_cached("INSERT INTO change (id, key, expires, value) VALUES (?, ?, ?, ?)")?;
        for (place, event) in (0_u64..).zip(events) {
            let id = (event.revision() << PLACE_BITS) | place;
            match event {
                Event::Put(item) => {
                    let expires = item.expires.map(Time::unix_millis);
                    statement.execute(params![id, item.key.as_bytes(), expires, item.value.as_ref()])?;
                }
                Event::Delete { key, .. } => {
                    statement.execute(params![id, key.as_bytes(), None::<i64>, None::<&[u8]>])?;
                }
                Event::Init { .. } => {}
            }
        }
        Ok(())
    }

    /// Forgets the oldest changes beyond the limits; the newest commit always stays, for it says the revision.
    pub(super) fn prune(&self, commits: usize, bytes: usize) -> Sql<()> {
        let newest = self.revision()?;
        let mut keep = newest.saturating_sub(u64::try_from(commits).unwrap_or(u64::MAX).saturating_sub(1));
        let mut room = bytes;
        {
            // The length of a blob is known without reading it.
            let sql = "SELECT id, length(key) + ifnull(length(value), 0) + 64 FROM change WHERE id >= ? ORDER BY id DESC";
            let mut statement = self.connection.prepare_cached(sql)?;
            let mut rows = statement.query([keep << PLACE_BITS])?;
            while let Some(row) = rows.next()? {
                let size: usize = row.get(1)?;
                if size > room {
                    keep = (row.get::<_, u64>(0)? >> PLACE_BITS) + 1;
                    break;
                }
                room -= size;
            }
        }
        let keep = keep.min(newest);
        self.connection.prepare_cached("DELETE FROM change WHERE id < ?")?.execute([keep << PLACE_BITS]).map(drop)
    }
}

fn item(row: &Row<'_>) -> Sql<Item> {
    Ok(Item {
        key: Key::stored(row.get::<_, Vec<u8>>(0)?),
        revision: row.get(1)?,
        expires: time(row, 2)?,
        value: row.get::<_, Vec<u8>>(3)?.into(),
    })
}

fn change(row: &Row<'_>) -> Sql<(u64, Event)> {
    let revision = row.get::<_, u64>(0)? >> PLACE_BITS;
    let key = Key::stored(row.get::<_, Vec<u8>>(1)?);
    let event = match row.get::<_, Option<Vec<u8>>>(3)? {
        Some(value) => Event::Put(Item { key, value: Bytes::from(value), revision, expires: time(row, 2)? }),
        None => Event::Delete { key, revision },
    };
    Ok((revision, event))
}

fn time(row: &Row<'_>, column: usize) -> Sql<Option<Time>> {
    Ok(row.get::<_, Option<i64>>(column)?.map(Time::from_unix_millis))
}

/// Names an SQLite error. What is none of the known troubles with a file is given as it is.
pub(super) fn named(place: &str, error: &rusqlite::Error) -> StoreError {
    let place = place.to_owned();
    let detail = error.to_string();
    match error.sqlite_error_code() {
        // "Locking protocol" is what remains when another process stands still in the middle of taking a lock.
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked | ErrorCode::FileLockingProtocolFailed) => StoreError::Busy { place },
        Some(ErrorCode::DiskFull) => StoreError::Full { place },
        Some(ErrorCode::ReadOnly) => StoreError::ReadOnly { place },
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => StoreError::Corrupt { place, detail },
        // A table that is gone, or (without a code) a cell of another type: the file is not what was made.
        Some(ErrorCode::Unknown) if detail.contains("no such") => StoreError::Corrupt { place, detail },
        Some(_) => StoreError::Io { place, detail },
        None => StoreError::Corrupt { place, detail },
    }
}
