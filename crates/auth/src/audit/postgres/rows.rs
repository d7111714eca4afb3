//! All SQL of the audit log: its tables, what is written, what is read.
//!
//! `log` is one row: the layout and whose cluster it is. `event` holds the events of every Auth Service: the JSON as it was hashed
//! (type `json` keeps the text), and beside it what is searched by. `checkpoint` says where each chain begins: one row at its birth,
//! one for each removal by retention; rows are only added. Every statement is sent unnamed and is a transaction of its own, so that
//! a transaction-pooling proxy may give each of them another connection. INSERT and SELECT are enough; DELETE is for retention.

use super::super::{
    query::{Cursor, Facets, Query, facet, micros},
    sink::{BATCH, BATCH_BYTES, Checkpoint, Extent},
};
use std::time::{Duration, SystemTime};
use store::postgres::Live;
use tokio_postgres::{
    Error,
    types::{ToSql, Type},
};
use types::{HostId, Time};
use wire::audit::{Digest, Head, Line};

/// What the tables look like; a newer one is refused.
pub(super) const LAYOUT: i64 = 1;
/// Rows removed in one transaction.
const CUT: i64 = 10_000;

pub(super) type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// The statements, with the schema's name in them.
pub(super) struct Sql {
    schema: String,
    insert: String,
}

/// A row of `event` as it was read.
pub(super) struct Stored {
    pub(super) chain: String,
    pub(super) line: Line,
}

impl Sql {
    pub(super) fn new(schema: &str) -> Self {
        let s = format!("\"{schema}\"");
        Self {
            schema: schema.into(),
            // Only behind a line that is there: a database that fell back to an older state (a failover) gets no hole.
            insert: format!(
                "INSERT INTO {s}.event (instance, index, time, kind, code, username, session, hash, event)
                 SELECT $1, u.index, u.time, u.kind, u.code, u.username, u.session, u.hash, u.event::json
                 FROM unnest($4::int8[], $5::timestamptz[], $6::text[], $7::text[], $8::text[], $9::text[], $10::bytea[], $11::text[])
                   AS u (index, time, kind, code, username, session, hash, event)
                 WHERE EXISTS (SELECT FROM {s}.event WHERE instance = $1 AND index = $2::int8 - 1 AND hash = $3)
                    OR EXISTS (SELECT FROM {s}.checkpoint WHERE instance = $1 AND events = $2::int8 AND hash = $3)
                 ON CONFLICT (instance, index) DO NOTHING"
            ),
        }
    }

    pub(super) fn log_name(&self) -> String {
        format!("\"{}\".log", self.schema)
    }

    /// One script that is safe when two run it at once. The advisory lock lasts as long as the transaction.
    pub(super) fn creation(&self, cluster: &str) -> String {
        let (schema, tables) = (&self.schema, tables(&self.schema));
        format!(
            "BEGIN;
SELECT pg_advisory_xact_lock(hashtext('lockgate audit'), hashtext('{schema}'));
{tables}INSERT INTO \"{schema}\".log (layout, cluster) VALUES ({LAYOUT}, '{cluster}') ON CONFLICT DO NOTHING;
COMMIT"
        )
    }

    pub(super) async fn claim(&self, live: &Live, cluster: &str) -> Result<(), Error> {
        let sql = format!("INSERT INTO \"{}\".log (layout, cluster) VALUES ($1, $2) ON CONFLICT DO NOTHING", self.schema);
        live.execute_typed(&sql, &[(&LAYOUT, Type::INT8), (&cluster, Type::TEXT)]).await.map(drop)
    }

    /// Layout and cluster.
    pub(super) async fn log(&self, live: &Live) -> Result<Option<(i64, String)>, Error> {
        let row = live.query_typed_opt(&format!("SELECT layout, cluster FROM \"{}\".log", self.schema), &[]).await?;
        row.map(|row| Ok((row.try_get(0)?, row.try_get(1)?))).transpose()
    }

    pub(super) async fn register(&self, live: &Live, chain: &str, name: &str, at: &Checkpoint) -> Result<(), Error> {
        let sql = format!(
            "INSERT INTO \"{}\".checkpoint (instance, name, events, hash, time, removed) VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
            self.schema
        );
        let (events, time, removed) = (signed(at.head.events), system(micros(at.time)), signed(at.removed));
        let hash = at.head.hash.as_bytes().as_slice();
        let params: [Param<'_>; 6] = [
            (&chain, Type::TEXT),
            (&name, Type::TEXT),
            (&events, Type::INT8),
            (&hash, Type::BYTEA),
            (&time, Type::TIMESTAMPTZ),
            (&removed, Type::INT8),
        ];
        live.execute_typed(&sql, &params).await.map(drop)
    }

    /// Every chain: its latest checkpoint, and its end.
    pub(super) async fn chains(&self, live: &Live, only: Option<&str>) -> Result<Vec<Extent>, Error> {
        let s = &self.schema;
        let sql = format!(
            "SELECT c.instance, c.name, c.events, c.hash, extract(epoch FROM c.time)::int8, c.removed, e.index, e.hash
             FROM (SELECT DISTINCT ON (instance) * FROM \"{s}\".checkpoint WHERE $1::text = '' OR instance = $1 ORDER BY instance, events DESC) c
             LEFT JOIN LATERAL (SELECT index, hash FROM \"{s}\".event WHERE instance = c.instance ORDER BY index DESC LIMIT 1) e ON true
             ORDER BY c.instance"
        );
        let rows = live.query_typed(&sql, &[(&only.unwrap_or_default(), Type::TEXT)]).await?;
        let mut chains = Vec::new();
        for row in rows {
            // A row that is not ours to read is somebody else's addition.
            let Ok(chain) = row.try_get::<_, String>(0)?.parse::<HostId>() else { continue };
            let Some(hash) = digest(&row.try_get::<_, Vec<u8>>(3)?) else { continue };
            let head = Head { events: unsigned(row.try_get(2)?), hash };
            let begin = Checkpoint { head, time: Time::from_unix(row.try_get(4)?), removed: unsigned(row.try_get(5)?) };
            let last = row.try_get::<_, Option<i64>>(6)?.map(unsigned);
            let hash = row.try_get::<_, Option<Vec<u8>>>(7)?.and_then(|hash| digest(&hash));
            let end = match (last, hash) {
                (Some(last), Some(hash)) if last >= head.events => Head { events: last.saturating_add(1), hash },
                _ => head,
            };
            chains.push(Extent { chain, name: row.try_get(1)?, begin, end });
        }
        Ok(chains)
    }

    /// How many of the lines were new.
    pub(super) async fn insert(&self, live: &Live, chain: &str, before: Head, lines: &[Line]) -> Result<u64, Error> {
        let facets: Vec<Facets> = lines.iter().map(|line| Facets::of(&line.event)).collect();
        let first = signed(before.events);
        let indexes: Vec<i64> = lines.iter().map(|line| signed(line.index)).collect();
        let times: Vec<SystemTime> = facets.iter().map(|facets| system(facets.micros)).collect();
        let kinds: Vec<&str> = facets.iter().map(|facets| facets.kind.as_str()).collect();
        let codes: Vec<&str> = facets.iter().map(|facets| facets.code.as_str()).collect();
        let users: Vec<&str> = facets.iter().map(|facets| facets.user.as_str()).collect();
        let sessions: Vec<&str> = facets.iter().map(|facets| facets.session.as_str()).collect();
        let hashes: Vec<&[u8]> = lines.iter().map(|line| line.hash.as_bytes().as_slice()).collect();
        let events: Vec<&str> = lines.iter().map(|line| std::str::from_utf8(&line.event).unwrap_or_default()).collect();
        let hash = before.hash.as_bytes().as_slice();
        let params: [Param<'_>; 11] = [
            (&chain, Type::TEXT),
            (&first, Type::INT8),
            (&hash, Type::BYTEA),
            (&indexes, Type::INT8_ARRAY),
            (&times, Type::TIMESTAMPTZ_ARRAY),
            (&kinds, Type::TEXT_ARRAY),
            (&codes, Type::TEXT_ARRAY),
            (&users, Type::TEXT_ARRAY),
            (&sessions, Type::TEXT_ARRAY),
            (&hashes, Type::BYTEA_ARRAY),
            (&events, Type::TEXT_ARRAY),
        ];
        live.execute_typed(&self.insert, &params).await
    }

    /// The hashes that stand in these places.
    pub(super) async fn hashes(&self, live: &Live, chain: &str, from: u64, to: u64) -> Result<Vec<(u64, Option<Digest>)>, Error> {
        let sql =
            format!("SELECT index, hash FROM \"{}\".event WHERE instance = $1 AND index >= $2 AND index < $3 ORDER BY index", self.schema);
        let (from, to) = (signed(from), signed(to));
        let rows = live.query_typed(&sql, &[(&chain, Type::TEXT), (&from, Type::INT8), (&to, Type::INT8)]).await?;
        rows.iter().map(|row| Ok((unsigned(row.try_get(0)?), digest(&row.try_get::<_, Vec<u8>>(1)?)))).collect()
    }

    /// The next lines of a chain; as many as a batch holds.
    pub(super) async fn lines(&self, live: &Live, chain: &str, from: u64) -> Result<Vec<Line>, Error> {
        let sql = format!(
            "SELECT index, hash, event FROM (SELECT *, coalesce(sum(octet_length(event)) OVER (ORDER BY index ROWS BETWEEN UNBOUNDED PRECEDING AND 1 PRECEDING), 0) AS before FROM (
               SELECT index, hash, event::text AS event FROM \"{}\".event WHERE instance = $1 AND index >= $2 ORDER BY index LIMIT {BATCH}) a) b
             WHERE before < {BATCH_BYTES} ORDER BY index",
            self.schema
        );
        let from = signed(from);
        let rows = live.query_typed(&sql, &[(&chain, Type::TEXT), (&from, Type::INT8)]).await?;
        rows.iter().map(line).collect()
    }

    pub(super) async fn search(&self, live: &Live, query: &Query, limit: i64) -> Result<Vec<Stored>, Error> {
        let kinds: Vec<String> = query.kinds.iter().map(|kind| facet(kind)).collect();
        let (user, session) = (facet(&query.user), facet(&query.session));
        let (from, to) = (query.from.map(|from| system(micros(from))), query.to.map(|to| system(micros(to))));
        let at = query.page.map(|Cursor { micros, chain, index }| (system(micros), chain.to_string(), signed(index)));
        let mut params: Vec<Param<'_>> = Vec::new();
        let mut wanted = Vec::new();
        if let Some(from) = &from {
            params.push((from, Type::TIMESTAMPTZ));
            wanted.push(format!("time >= ${}", params.len()));
        }
        if let Some(to) = &to {
            params.push((to, Type::TIMESTAMPTZ));
            wanted.push(format!("time < ${}", params.len()));
        }
        if !kinds.is_empty() {
            params.push((&kinds, Type::TEXT_ARRAY));
            let at = params.len();
            wanted.push(format!("(kind = ANY(${at}) OR code = ANY(${at}))"));
        }
        if !user.is_empty() {
            params.push((&user, Type::TEXT));
            wanted.push(format!("username = ${}", params.len()));
        }
        if !session.is_empty() {
            params.push((&session, Type::TEXT));
            wanted.push(format!("session = ${}", params.len()));
        }
        let (than, order) = if query.oldest_first { (">", "ASC") } else { ("<", "DESC") };
        if let Some((time, chain, index)) = &at {
            params.extend([(time as &(dyn ToSql + Sync), Type::TIMESTAMPTZ), (chain, Type::TEXT), (index, Type::INT8)]);
            let last = params.len();
            let (time, chain) = (last.saturating_sub(2), last.saturating_sub(1));
            wanted.push(format!("(time, instance, index) {than} (${time}, ${chain}, ${last})"));
        }
        params.push((&limit, Type::INT8));
        let sql = format!(
            "SELECT index, hash, event::text, instance FROM \"{}\".event {}{} ORDER BY time {order}, instance {order}, index {order} LIMIT ${}",
            self.schema,
            if wanted.is_empty() { "" } else { "WHERE " },
            wanted.join(" AND "),
            params.len()
        );
        let rows = live.query_typed(&sql, &params).await?;
        rows.iter().map(|row| Ok(Stored { line: line(row)?, chain: row.try_get(3)? })).collect()
    }

    /// The first index in the period, and the one behind the last.
    pub(super) async fn span(&self, live: &Live, chain: &str, from: Option<Time>, to: Option<Time>) -> Result<Option<(u64, u64)>, Error> {
        let sql = format!("SELECT min(index), max(index) FROM \"{}\".event WHERE instance = $1 AND time >= $2 AND time < $3", self.schema);
        let (from, to) = (system(from.map_or(i64::MIN, micros)), system(to.map_or(i64::MAX, micros)));
        let row = live.query_typed_one(&sql, &[(&chain, Type::TEXT), (&from, Type::TIMESTAMPTZ), (&to, Type::TIMESTAMPTZ)]).await?;
        let (first, last) = (row.try_get::<_, Option<i64>>(0)?, row.try_get::<_, Option<i64>>(1)?);
        Ok(first.zip(last).map(|(first, last)| (unsigned(first), unsigned(last).saturating_add(1))))
    }

    /// The first event of a chain that did not happen before that time.
    pub(super) async fn first_since(&self, live: &Live, chain: &str, time: Time) -> Result<Option<u64>, Error> {
        let sql = format!("SELECT index FROM \"{}\".event WHERE instance = $1 AND time >= $2 ORDER BY index LIMIT 1", self.schema);
        let time = system(micros(time));
        let row = live.query_typed_opt(&sql, &[(&chain, Type::TEXT), (&time, Type::TIMESTAMPTZ)]).await?;
        row.map(|row| row.try_get::<_, i64>(0).map(unsigned)).transpose()
    }

    pub(super) async fn may_delete(&self, live: &Live) -> Result<bool, Error> {
        let table = format!("\"{}\".event", self.schema);
        let row = live.query_typed_one("SELECT has_table_privilege($1, 'DELETE')", &[(&table, Type::TEXT)]).await?;
        row.try_get(0)
    }

    /// Removes some events before that one; how many.
    pub(super) async fn cut(&self, live: &Live, chain: &str, before: u64) -> Result<u64, Error> {
        let s = &self.schema;
        let sql = format!(
            "DELETE FROM \"{s}\".event WHERE instance = $1 AND index < least($2::int8,
               (SELECT min(index) FROM \"{s}\".event WHERE instance = $1) + {CUT})"
        );
        let before = signed(before);
        live.execute_typed(&sql, &[(&chain, Type::TEXT), (&before, Type::INT8)]).await
    }
}

/// The tables, as an owner may make them beforehand for a role that may only add and read. Safe to run again.
pub(in crate::audit) fn tables(schema: &str) -> String {
    let s = format!("\"{schema}\"");
    format!(
        "DO $$ BEGIN IF to_regnamespace('{s}') IS NULL THEN CREATE SCHEMA {s}; END IF; END $$;
CREATE TABLE IF NOT EXISTS {s}.log
  (id boolean PRIMARY KEY DEFAULT true CHECK (id), layout int8 NOT NULL, cluster text NOT NULL);
CREATE TABLE IF NOT EXISTS {s}.checkpoint
  (instance text COLLATE \"C\", events int8, hash bytea NOT NULL, name text NOT NULL, time timestamptz NOT NULL, removed int8 NOT NULL,
   PRIMARY KEY (instance, events));
CREATE TABLE IF NOT EXISTS {s}.event
  (instance text COLLATE \"C\", index int8, time timestamptz NOT NULL, kind text NOT NULL, code text NOT NULL,
   username text NOT NULL, session text NOT NULL, hash bytea NOT NULL, event json NOT NULL, PRIMARY KEY (instance, index));
CREATE INDEX IF NOT EXISTS event_time ON {s}.event (time, instance, index);
CREATE INDEX IF NOT EXISTS event_kind ON {s}.event (kind, time);
CREATE INDEX IF NOT EXISTS event_username ON {s}.event (username, time) WHERE username <> '';
CREATE INDEX IF NOT EXISTS event_session ON {s}.event (session, time) WHERE session <> '';
"
    )
}

fn line(row: &tokio_postgres::Row) -> Result<Line, Error> {
    let hash = digest(&row.try_get::<_, Vec<u8>>(1)?).unwrap_or(Digest::from_bytes([0; 32]));
    Ok(Line { index: unsigned(row.try_get(0)?), hash, event: row.try_get::<_, String>(2)?.into() })
}

/// A hash of another length is nobody's: no chain holds over it.
fn digest(bytes: &[u8]) -> Option<Digest> {
    bytes.try_into().ok().map(Digest::from_bytes)
}

/// Clamped to what `timestamptz` holds on every server.
fn system(micros: i64) -> SystemTime {
    let micros = micros.clamp(-62_135_596_800_000_000, 253_402_300_799_999_999);
    let length = Duration::from_micros(micros.unsigned_abs());
    let at = if micros < 0 { SystemTime::UNIX_EPOCH.checked_sub(length) } else { SystemTime::UNIX_EPOCH.checked_add(length) };
    at.unwrap_or(SystemTime::UNIX_EPOCH)
}

/// Indexes are counted from 0 and never come near the sign.
fn signed(index: u64) -> i64 {
    i64::try_from(index).unwrap_or(i64::MAX)
}

fn unsigned(index: i64) -> u64 {
    u64::try_from(index).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_are_as_they_were_released() {
        crate::audit::tests::hold::text("postgres-audit.txt", &Sql::new("audit").creation("00000000-0000-0000-0000-000000000007"));
    }
}
