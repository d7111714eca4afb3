//! All SQL but the transaction around it: the tables, what is read, what is written.
//!
//! `head` is one row: the layout, and the lock of those who write. `item` is the map. `change` is what watches resume from: the events of
//! each commit in their order, with the random name of the transaction that wrote it, by which an uncertain `COMMIT` is looked up. Its
//! newest row says the store's revision, and is never pruned. (A counter in `head` would be one more version of that row for each commit,
//! all of which everybody walks through for as long as somebody holds a snapshot: with a long backup each commit was slower
//! than the one before.) Every statement is sent unnamed and in one message, so that a proxy may give each transaction another connection.

use super::link::Live;
use crate::group::{Known, Needs, Row};
use crate::request::EXPIRE_AT_ONCE;
use crate::watch::Commit;
use crate::{Event, Item, Key, MAX_CHANGES, MAX_PAGE, Page};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio_postgres::Error;
use tokio_postgres::types::{ToSql, Type};
use types::Time;

/// Soft limits in bytes for one page and for one reading of changes; the item or commit that passes it is still given.
const PAGE_BYTES: i64 = 16 << 20;
const CHANGES_BYTES: i64 = 4 << 20;
/// The most rows in one reading of changes, unless one commit has more.
const CHANGES: i64 = 4096;

/// The statements, with the schema's name in them.
#[derive(Clone)]
pub(super) struct Sql {
    schema: String,
    pub(super) item: String,
    page: String,
    held_page: String,
    changes: String,
    one_commit: String,
    heads: String,
    whole: String,
    ranges: String,
    due: String,
    upsert: String,
    delete: String,
    record: String,
    pub(super) lock: String,
    revision: String,
    written_by: String,
}

/// Changes and the revision of the store that they were read from.
pub(super) struct Changes {
    pub(super) revision: u64,
    /// Whole, in order.
    pub(super) commits: Vec<Arc<Commit>>,
    /// The transaction that wrote the last of them.
    pub(super) writer: Option<Vec<u8>>,
}

impl Sql {
    pub(super) fn new(schema: &str) -> Self {
        let s = format!("\"{schema}\"");
        let before = |size: &str| {
            format!("coalesce(sum(octet_length(value){size}) OVER (ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0)::int8 AS before")
        };
        let newest = format!("(SELECT coalesce(max(revision), 0) AS revision FROM {s}.change)");
        let page = |head: &str| {
            format!(
                "SELECT h.revision, p.found, p.key, p.revision, p.expires, p.value FROM {head} h LEFT JOIN LATERAL (
                   SELECT * FROM (SELECT *, count(*) OVER () AS found, {} FROM (
                     SELECT key, revision, expires, value FROM {s}.item
                     WHERE key >= $1 AND key < $2 AND (expires IS NULL OR expires > $3) ORDER BY key LIMIT $4
                   ) a) b WHERE before < $5) p ON true ORDER BY p.key",
                before("")
            )
        };
        Self {
            schema: schema.into(),
            item: format!("SELECT key, revision, expires, value FROM {s}.item WHERE key = $1"),
            page: page(&newest),
            held_page: page("(SELECT 0::int8 AS revision)"),
            changes: format!(
                "SELECT h.revision, c.found, c.revision, c.key, c.expires, c.value, c.writer FROM {newest} h LEFT JOIN LATERAL (
                   SELECT * FROM (SELECT *, count(*) OVER () AS found, {} FROM (
                     SELECT revision, place, key, expires, value, writer FROM {s}.change
                     WHERE revision > $1 ORDER BY revision, place LIMIT $2
                   ) a) b WHERE before < $3) c ON true ORDER BY c.revision, c.place",
                before("")
            ),
            one_commit: format!(
                "SELECT revision, 0::int8, revision, key, expires, value, writer FROM {s}.change WHERE revision = $1 ORDER BY place"
            ),
            heads: format!("SELECT key, revision, expires, NULL::bytea FROM {s}.item WHERE key = ANY($1)"),
            whole: format!("SELECT key, revision, expires, value FROM {s}.item WHERE key = ANY($1)"),
            ranges: format!(
                "SELECT i.key, i.revision, i.expires, NULL::bytea FROM unnest($1::bytea[], $2::bytea[]) AS r(a, b)
                 JOIN LATERAL (SELECT key, revision, expires FROM {s}.item WHERE key >= r.a AND key < r.b LIMIT $3) i ON true"
            ),
            due: format!(
                "SELECT key, revision, expires, NULL::bytea FROM {s}.item WHERE expires <= $1 ORDER BY expires, key LIMIT {EXPIRE_AT_ONCE}"
            ),
            upsert: format!(
                "INSERT INTO {s}.item (key, revision, expires, value) SELECT * FROM unnest($1::bytea[], $2::int8[], $3::int8[], $4::bytea[])
                 ON CONFLICT (key) DO UPDATE SET revision = excluded.revision, expires = excluded.expires, value = excluded.value"
            ),
            delete: format!("DELETE FROM {s}.item WHERE key = ANY($1)"),
            record: format!(
                "INSERT INTO {s}.change (revision, place, key, expires, value, writer)
                 SELECT u.*, $6::bytea FROM unnest($1::int8[], $2::int8[], $3::bytea[], $4::int8[], $5::bytea[]) u"
            ),
            lock: format!("SELECT layout FROM {s}.head FOR UPDATE"),
            revision: format!("SELECT revision FROM {newest} h"),
            written_by: format!("SELECT writer FROM {s}.change WHERE revision = $1 LIMIT 1"),
        }
    }

    pub(super) fn head_name(&self) -> String {
        format!("\"{}\".head", self.schema)
    }

    /// One script that is safe when two run it at once. The advisory lock lasts as long as the transaction.
    pub(super) fn creation(&self, layout: u32) -> String {
        let s = &self.schema;
        format!(
            "BEGIN;
             SELECT pg_advisory_xact_lock(hashtext('lockgate'), hashtext('{s}'));
             DO $$ BEGIN IF to_regnamespace('\"{s}\"') IS NULL THEN CREATE SCHEMA \"{s}\"; END IF; END $$;
             CREATE TABLE IF NOT EXISTS \"{s}\".head
               (id boolean PRIMARY KEY DEFAULT true CHECK (id), layout int8 NOT NULL);
             CREATE TABLE IF NOT EXISTS \"{s}\".item
               (key bytea PRIMARY KEY, revision int8 NOT NULL, expires int8, value bytea NOT NULL);
             CREATE INDEX IF NOT EXISTS item_expires ON \"{s}\".item (expires, key) WHERE expires IS NOT NULL;
             CREATE TABLE IF NOT EXISTS \"{s}\".change
               (revision int8, place int8, key bytea NOT NULL, expires int8, value bytea, writer bytea NOT NULL, PRIMARY KEY (revision, place));
             INSERT INTO \"{s}\".head (layout) VALUES ({layout}) ON CONFLICT DO NOTHING;
             COMMIT"
        )
    }

    /// Layout and revision.
    pub(super) async fn layout(&self, live: &Live) -> Result<Option<(u32, u64)>, Error> {
        let sql = format!("SELECT layout, ({}) FROM \"{}\".head", self.revision, self.schema);
        let row = live.query_typed_opt(&sql, &[]).await?;
        row.map(|row| Ok((u32::try_from(row.try_get::<_, i64>(0)?).unwrap_or(u32::MAX), number(&row, 1)?))).transpose()
    }

    pub(super) async fn revision(&self, live: &Live) -> Result<u64, Error> {
        number(&live.query_typed_one(&self.revision, &[]).await?, 0)
    }

    pub(super) async fn item(&self, live: &Live, key: &Key) -> Result<Option<Item>, Error> {
        let row = live.query_typed_opt(&self.item, &[(&key.as_bytes(), Type::BYTEA)]).await?;
        row.map(|row| item(&row, 0)).transpose()
    }

    pub(super) async fn page(&self, live: &Live, from: &Key, to: &Key, limit: usize, now: Time) -> Result<Page, Error> {
        page(live, &self.page, from, to, limit, now).await
    }

    /// As of the transaction's snapshot, without a revision: an old snapshot has all newer commits to pass over before it finds its own.
    pub(super) async fn held_page(&self, live: &Live, from: &Key, to: &Key, limit: usize, now: Time) -> Result<Page, Error> {
        page(live, &self.held_page, from, to, limit, now).await
    }

    /// Commits after a revision; the first one says whether those before it are gone.
    pub(super) async fn changes(&self, live: &Live, after: u64) -> Result<Changes, Error> {
        let after = signed(after);
        let params: [(&(dyn ToSql + Sync), Type); 3] = [(&after, Type::INT8), (&CHANGES, Type::INT8), (&CHANGES_BYTES, Type::INT8)];
        let rows = live.query_typed(&self.changes, &params).await?;
        let mut changes = collect(&rows)?;
        let found = rows.first().map(|row| row.try_get::<_, Option<i64>>(1)).transpose()?.flatten().unwrap_or(0);
        let cut = found == CHANGES || i64::try_from(rows.len()).unwrap_or(i64::MAX) < found;
        // The last one may be there by half.
        if cut && changes.commits.len() > 1 {
            changes.commits.pop();
            changes.writer = None;
        } else if let (true, [only]) = (cut, changes.commits.as_slice()) {
            let rows = live.query_typed(&self.one_commit, &[(&signed(only.revision), Type::INT8)]).await?;
            changes = Changes { revision: changes.revision, ..collect(&rows)? };
        }
        Ok(changes)
    }

    /// What a group needs. All is asked at once; the answers come in the order of the questions.
    pub(super) async fn known(&self, live: &Live, needs: &Needs, now: Time) -> Result<Known, Error> {
        let bytes = |keys: &mut dyn Iterator<Item = &Key>| keys.map(|key| key.as_bytes().to_vec()).collect::<Vec<_>>();
        let control = Key::control();
        let heads = bytes(&mut needs.heads.iter().chain(&needs.names));
        let whole = bytes(&mut needs.whole.iter().chain(needs.fence.then_some(&control)));
        let starts = bytes(&mut needs.ranges.iter().map(|(from, _)| from));
        let ends = bytes(&mut needs.ranges.iter().map(|(_, to)| to));
        let now = now.unix_millis();
        let most = i64::try_from(MAX_CHANGES + 1).unwrap_or(i64::MAX);
        type Params<'a, const N: usize> = [(&'a (dyn ToSql + Sync), Type); N];
        let of_heads: Params<'_, 1> = [(&heads, Type::BYTEA_ARRAY)];
        let of_whole: Params<'_, 1> = [(&whole, Type::BYTEA_ARRAY)];
        let of_ranges: Params<'_, 3> = [(&starts, Type::BYTEA_ARRAY), (&ends, Type::BYTEA_ARRAY), (&most, Type::INT8)];
        let of_due: Params<'_, 1> = [(&now, Type::INT8)];
        let (heads, whole, ranges, due) = futures::try_join!(
            ask(live, !heads.is_empty(), &self.heads, &of_heads),
            ask(live, !whole.is_empty(), &self.whole, &of_whole),
            ask(live, !starts.is_empty(), &self.ranges, &of_ranges),
            ask(live, needs.due, &self.due, &of_due),
        )?;
        let mut known = Known::default();
        for row in heads.iter().chain(&whole).chain(&ranges).chain(&due) {
            let (key, revision) = (Key::stored(row.try_get::<_, Vec<u8>>(0)?), number(row, 1)?);
            let value = row.try_get::<_, Option<Vec<u8>>>(3)?.map(Bytes::from);
            if needs.fence && key == control {
                known.control.clone_from(&value);
            }
            let entry = known.rows.entry(key).or_insert(Row { revision, expires: time(row, 2)?, value: None });
            if value.is_some() {
                entry.value = value;
            }
        }
        known.due = due.iter().map(|row| row.try_get::<_, Vec<u8>>(0).map(Key::stored)).collect::<Result<_, _>>()?;
        Ok(known)
    }

    /// Writes what a group came to. Sent at once, so that the lock is held for one round trip.
    pub(super) async fn write(&self, live: &Live, events: &[&Event], writer: &[u8]) -> Result<(), Error> {
        let mut last: BTreeMap<&Key, Option<&Item>> = BTreeMap::new();
        let mut change = Columns::default();
        let mut place = (0, 0_i64);
        for event in events {
            place = if place.0 == event.revision() { (place.0, place.1 + 1) } else { (event.revision(), 0) };
            match event {
                Event::Init { .. } => {}
                Event::Put(item) => {
                    last.insert(&item.key, Some(item));
                    change.push(&item.key, place, item.expires, Some(&item.value));
                }
                Event::Delete { key, .. } => {
                    last.insert(key, None);
                    change.push(key, place, None, None);
                }
            }
        }
        let mut puts = Columns::default();
        let mut deletes = Vec::new();
        for (key, item) in last {
            match item {
                Some(item) => puts.push(key, (item.revision, 0), item.expires, Some(&item.value)),
                None => deletes.push(key.as_bytes()),
            }
        }
        let put = async {
            let params: [(&(dyn ToSql + Sync), Type); 4] = [
                (&puts.keys, Type::BYTEA_ARRAY),
                (&puts.revisions, Type::INT8_ARRAY),
                (&puts.expires, Type::INT8_ARRAY),
                (&puts.values, Type::BYTEA_ARRAY),
            ];
            if puts.keys.is_empty() { Ok(0) } else { live.execute_typed(&self.upsert, &params).await }
        };
        let delete =
            async { if deletes.is_empty() { Ok(0) } else { live.execute_typed(&self.delete, &[(&deletes, Type::BYTEA_ARRAY)]).await } };
        let record = async {
            let params: [(&(dyn ToSql + Sync), Type); 6] = [
                (&change.revisions, Type::INT8_ARRAY),
                (&change.places, Type::INT8_ARRAY),
                (&change.keys, Type::BYTEA_ARRAY),
                (&change.expires, Type::INT8_ARRAY),
                (&change.values, Type::BYTEA_ARRAY),
                (&writer, Type::BYTEA),
            ];
            live.execute_typed(&self.record, &params).await
        };
        futures::try_join!(put, delete, record).map(drop)
    }

    /// The transaction that wrote a revision; `None` when the revision is not there, or not any more.
    pub(super) async fn written_by(&self, live: &Live, revision: u64) -> Result<Option<Vec<u8>>, Error> {
        let row = live.query_typed_opt(&self.written_by, &[(&signed(revision), Type::INT8)]).await?;
        row.map(|row| row.try_get(0)).transpose()
    }

    /// Forgets the oldest changes beyond the limits; the newest commit always stays.
    pub(super) async fn prune(&self, live: &Live, commits: usize, bytes: usize) -> Result<(), Error> {
        let s = &self.schema;
        let sql = format!(
            "DELETE FROM \"{s}\".change WHERE revision < (SELECT least(h.revision, greatest(h.revision - $1::int8 + 1, coalesce((
               SELECT max(revision) + 1 FROM (SELECT revision,
                 sum(octet_length(key) + coalesce(octet_length(value), 0) + 64) OVER (ORDER BY revision DESC, place DESC) AS size
                 FROM \"{s}\".change) a WHERE size > $2::int8), 0))) FROM (SELECT max(revision) AS revision FROM \"{s}\".change) h)"
        );
        let limits = [i64::try_from(commits).unwrap_or(i64::MAX), i64::try_from(bytes).unwrap_or(i64::MAX)];
        let [commits, bytes] = &limits;
        live.execute_typed(&sql, &[(commits, Type::INT8), (bytes, Type::INT8)]).await.map(drop)
    }
}

async fn page(live: &Live, sql: &str, from: &Key, to: &Key, limit: usize, now: Time) -> Result<Page, Error> {
    let limit = limit.clamp(1, MAX_PAGE);
    let (now, most) = (now.unix_millis(), i64::try_from(limit + 1).unwrap_or(i64::MAX));
    let params: [(&(dyn ToSql + Sync), Type); 5] = [
        (&from.as_bytes(), Type::BYTEA),
        (&to.as_bytes(), Type::BYTEA),
        (&now, Type::INT8),
        (&most, Type::INT8),
        (&PAGE_BYTES, Type::INT8),
    ];
    let rows = live.query_typed(sql, &params).await?;
    let mut page = Page { items: Vec::new(), next: None, revision: 0 };
    let mut found = 0;
    for row in &rows {
        page.revision = number(row, 0)?;
        let Some(all) = row.try_get::<_, Option<i64>>(1)? else { break };
        found = usize::try_from(all).unwrap_or(usize::MAX);
        page.items.push(item(row, 2)?);
    }
    if page.items.len() > limit {
        page.next = page.items.pop().map(|item| item.key);
    } else if page.items.len() < found {
        page.next = page.items.last().map(|item| item.key.successor());
    }
    Ok(page)
}

/// No rows when none are wanted.
async fn ask(live: &Live, wanted: bool, sql: &str, params: &[(&(dyn ToSql + Sync), Type)]) -> Result<Vec<tokio_postgres::Row>, Error> {
    if wanted { live.query_typed(sql, params).await } else { Ok(Vec::new()) }
}

/// Rows for `unnest`.
#[derive(Default)]
struct Columns<'a> {
    keys: Vec<&'a [u8]>,
    revisions: Vec<i64>,
    places: Vec<i64>,
    expires: Vec<Option<i64>>,
    values: Vec<Option<&'a [u8]>>,
}

impl<'a> Columns<'a> {
    fn push(&mut self, key: &'a Key, (revision, place): (u64, i64), expires: Option<Time>, value: Option<&'a Bytes>) {
        self.keys.push(key.as_bytes());
        self.revisions.push(signed(revision));
        self.places.push(place);
        self.expires.push(expires.map(Time::unix_millis));
        self.values.push(value.map(Bytes::as_ref));
    }
}

/// Rows of `changes` as commits.
fn collect(rows: &[tokio_postgres::Row]) -> Result<Changes, Error> {
    let mut commits: Vec<Commit> = Vec::new();
    let (mut latest, mut writer) = (0, None);
    for row in rows {
        latest = number(row, 0)?;
        let Some(revision) = row.try_get::<_, Option<i64>>(2)?.map(unsigned) else { break };
        let key = Key::stored(row.try_get::<_, Vec<u8>>(3)?);
        let event = match row.try_get::<_, Option<Vec<u8>>>(5)? {
            Some(value) => Event::Put(Item { key, value: value.into(), revision, expires: time(row, 4)? }),
            None => Event::Delete { key, revision },
        };
        writer = row.try_get(6)?;
        match commits.last_mut() {
            Some(commit) if commit.revision == revision => commit.events.push(event),
            _ => commits.push(Commit { revision, events: vec![event] }),
        }
    }
    Ok(Changes { revision: latest, commits: commits.into_iter().map(Arc::new).collect(), writer })
}

fn item(row: &tokio_postgres::Row, first: usize) -> Result<Item, Error> {
    Ok(Item {
        key: Key::stored(row.try_get::<_, Vec<u8>>(first)?),
        revision: number(row, first + 1)?,
        expires: time(row, first + 2)?,
        value: row.try_get::<_, Vec<u8>>(first + 3)?.into(),
    })
}

fn number(row: &tokio_postgres::Row, column: usize) -> Result<u64, Error> {
    row.try_get::<_, i64>(column).map(unsigned)
}

fn time(row: &tokio_postgres::Row, column: usize) -> Result<Option<Time>, Error> {
    Ok(row.try_get::<_, Option<i64>>(column)?.map(Time::from_unix_millis))
}

/// Revisions are counted from 0 and never come near the sign.
fn signed(revision: u64) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

fn unsigned(revision: i64) -> u64 {
    u64::try_from(revision).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_as_they_were_released() {
        crate::hold::text("postgres.txt", &Sql::new("lockgate").creation(crate::postgres::open::LAYOUT));
    }
}
