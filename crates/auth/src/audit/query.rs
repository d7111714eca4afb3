//! What is asked of the log, and in which order it answers: by time, then chain, then index, the same in every sink.
//!
//! A page ends at a [`Cursor`], which is a place in that order and no row number: pages stay right while events are added and
//! removed, and a question begun at one sink can go on at another. Pure; the sinks (`files`, `postgres`) do the reading, and
//! [`merge`] puts their answers together.

use bytes::Bytes;
use serde::Deserialize;
use std::{borrow::Cow, collections::BTreeSet};
use types::{HostId, Time};

/// Events in one page.
pub(crate) const MAX_PAGE: usize = 1000;
const DEFAULT_PAGE: usize = 500;
/// Bytes of events in one page, unless one event alone has more: what a message holds, with room to spare.
pub(super) const MAX_PAGE_BYTES: usize = 4 << 20;
/// Characters of a user, a kind or a session that are compared: what an index takes.
const FACET: usize = 200;

/// What is asked for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Query {
    pub(crate) from: Option<Time>,
    /// Events from this moment on are left out.
    pub(crate) to: Option<Time>,
    /// Names or codes of events; empty is all.
    pub(crate) kinds: BTreeSet<String>,
    pub(crate) user: String,
    pub(crate) session: String,
    pub(crate) limit: usize,
    /// Goes on behind this place, in the direction asked for.
    pub(crate) page: Option<Cursor>,
    pub(crate) oldest_first: bool,
}

/// A place in the order of all events. Microseconds since 1970: PostgreSQL knows no smaller ones.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Cursor {
    pub(super) micros: i64,
    pub(super) chain: HostId,
    pub(super) index: u64,
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}_{}_{}", self.micros, self.index, self.chain)
    }
}
impl std::str::FromStr for Cursor {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = "the page token cannot be read";
        let mut parts = text.splitn(3, '_');
        let mut part = || parts.next().ok_or(bad);
        let (micros, index, chain) = (part()?, part()?, part()?);
        let micros: i64 = micros.parse().map_err(|_| bad)?;
        let index: u64 = index.parse().map_err(|_| bad)?;
        Ok(Self { micros: micros.clamp(LEAST, MOST), chain: chain.parse().map_err(|_| bad)?, index: index.min(i64::MAX.unsigned_abs()) })
    }
}

/// The years 1 to 9999: what both sinks can hold, whatever an event claims.
const LEAST: i64 = -62_135_596_800_000_000;
const MOST: i64 = 253_402_300_799_999_999;

/// The time as it is compared.
pub(super) fn micros(at: Time) -> i64 {
    let micros = at.to_offset().unix_timestamp_nanos().div_euclid(1000);
    i64::try_from(micros).unwrap_or(if micros < 0 { LEAST } else { MOST }).clamp(LEAST, MOST)
}

/// What of an event is searched by.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Facets {
    pub(super) micros: i64,
    pub(super) kind: String,
    pub(super) code: String,
    pub(super) user: String,
    pub(super) session: String,
}

impl Facets {
    /// Of an event's JSON. What is not there is empty; a time that cannot be read is 1970.
    pub(super) fn of(event: &[u8]) -> Self {
        #[derive(Deserialize, Default)]
        struct Seen<'a> {
            #[serde(borrow, default)]
            event: Text<'a>,
            #[serde(borrow, default)]
            code: Text<'a>,
            #[serde(borrow, default)]
            time: Text<'a>,
            #[serde(borrow, default)]
            user: Text<'a>,
            #[serde(borrow, default)]
            sid: Text<'a>,
        }
        let seen: Seen<'_> = serde_json::from_slice(event).unwrap_or_default();
        Self {
            micros: seen.time.0.parse().map_or(0, micros),
            kind: facet(&seen.event.0),
            code: facet(&seen.code.0),
            user: facet(&seen.user.0),
            session: facet(&seen.sid.0),
        }
    }
}

/// A text, or nothing where something else stands.
#[derive(Default)]
struct Text<'a>(Cow<'a, str>);

impl<'de: 'a, 'a> Deserialize<'de> for Text<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl<'de> serde::de::Visitor<'de> for Visitor {
            type Value = Text<'de>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("anything")
            }
            fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Borrowed(text)))
            }
            fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
                Ok(Text(Cow::Owned(text.to_owned())))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
                Ok(Text::default())
            }
            fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
                Ok(Text::default())
            }
            fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
                Ok(Text::default())
            }
            fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
                Ok(Text::default())
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Text::default())
            }
            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
                while seq.next_element::<serde::de::IgnoredAny>()?.is_some() {}
                Ok(Text::default())
            }
            fn visit_map<A: serde::de::MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                while map.next_entry::<serde::de::IgnoredAny, serde::de::IgnoredAny>()?.is_some() {}
                Ok(Text::default())
            }
        }
        from.deserialize_any(Visitor)
    }
}

/// As it is compared and indexed: bounded, and without the one character that PostgreSQL's text cannot hold.
pub(super) fn facet(text: &str) -> String {
    text.chars().take(FACET).map(|c| if c == '\0' { '\u{fffd}' } else { c }).collect()
}

impl Query {
    pub(super) fn page_size(&self) -> usize {
        if self.limit == 0 { DEFAULT_PAGE } else { self.limit.min(MAX_PAGE) }
    }

    /// Whether the period has room for events between these times, both included.
    pub(super) fn touches(&self, oldest: i64, newest: i64) -> bool {
        let page = self.page.map(|page| page.micros);
        let (after, before) = if self.oldest_first { (page, None) } else { (None, page) };
        self.from.is_none_or(|from| newest >= micros(from))
            && self.to.is_none_or(|to| oldest < micros(to))
            && after.is_none_or(|after| newest >= after)
            && before.is_none_or(|before| oldest <= before)
    }

    /// Whether an event at this place belongs to the answer from here on.
    pub(super) fn wants(&self, at: Cursor, facets: &Facets) -> bool {
        self.from.is_none_or(|from| at.micros >= micros(from))
            && self.to.is_none_or(|to| at.micros < micros(to))
            && self.page.is_none_or(|page| self.before(page, at))
            && (self.kinds.is_empty() || self.kinds.contains(&facets.kind) || self.kinds.contains(&facets.code))
            && (self.user.is_empty() || facets.user == facet(&self.user))
            && (self.session.is_empty() || facets.session == facet(&self.session))
    }

    /// Whether `a` comes before `b` in the direction asked for.
    pub(super) fn before(&self, a: Cursor, b: Cursor) -> bool {
        if self.oldest_first { a < b } else { a > b }
    }

    pub(super) fn sort(&self, rows: &mut [Row]) {
        rows.sort_unstable_by(|a, b| if self.oldest_first { a.at.cmp(&b.at) } else { b.at.cmp(&a.at) });
    }
}

/// One event found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Row {
    pub(super) at: Cursor,
    pub(super) event: Bytes,
}

impl Row {
    pub(super) fn of(chain: HostId, index: u64, event: Bytes) -> (Self, Facets) {
        let facets = Facets::of(&event);
        (Self { at: Cursor { micros: facets.micros, chain, index }, event }, facets)
    }

    /// The event as people and programs read it: with its place in its chain.
    pub(crate) fn shown(&self) -> Option<types::Event> {
        let mut event: types::Event = serde_json::from_slice(&self.event).ok()?;
        event.fields.insert("ei".into(), self.at.index.into());
        event.fields.insert("instance".into(), self.at.chain.to_string().into());
        Some(event)
    }
}

/// A page of events, in order.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Found {
    pub(crate) rows: Vec<Row>,
    /// Where the next page goes on; `None`: there is nothing more.
    pub(crate) next: Option<Cursor>,
}

/// The page that rows in order make, when those behind `known` may not all be there (`None`: all are).
pub(super) fn page(query: &Query, mut rows: Vec<Row>, known: Option<Cursor>) -> Found {
    if let Some(known) = known {
        rows.retain(|row| !query.before(known, row.at));
    }
    let mut bytes = 0usize;
    let fits = |row: &Row| {
        bytes = bytes.saturating_add(row.event.len());
        bytes <= MAX_PAGE_BYTES
    };
    let room = rows.iter().map(fits).take_while(|fits| *fits).count().max(1).min(query.page_size());
    if rows.len() > room {
        rows.truncate(room);
        let next = rows.last().map(|row| row.at);
        return Found { rows, next };
    }
    Found { rows, next: known }
}

/// One page out of two sinks' pages of the same question. An event that both have is given once.
pub(super) fn merge(query: &Query, one: Found, other: Found) -> Found {
    let known = match (one.next, other.next) {
        (Some(a), Some(b)) => Some(if query.before(a, b) { a } else { b }),
        (a, b) => a.or(b),
    };
    let mut rows: Vec<Row> = one.rows.into_iter().chain(other.rows).collect();
    query.sort(&mut rows);
    rows.dedup_by_key(|row| row.at);
    page(query, rows, known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn host(number: u128) -> HostId {
        HostId::from_uuid(uuid::Uuid::from_u128(number))
    }

    #[test]
    fn facets_are_texts_of_the_event_and_nothing_else() {
        let check = |event: &str, user: &str, micros: i64| {
            let facets = Facets::of(event.as_bytes());
            assert_eq!((facets.user.as_str(), facets.micros), (user, micros), "{event}");
        };
        check(r#"{"event":"x","time":"1970-01-01T00:00:01.000001999Z","user":"al\"ice"}"#, "al\"ice", 1_000_001);
        check(r#"{"time":"soon","user":{"name":["x"]}}"#, "", 0);
        check(r#"{"user":null}"#, "", 0);
        check(r#"{"user":"a\u0000b"}"#, "a\u{fffd}b", 0);
        check("not json", "", 0);
        assert_eq!(Facets::of(format!(r#"{{"user":"{}"}}"#, "x".repeat(9000)).as_bytes()).user.len(), FACET);
    }

    #[test]
    fn times_beyond_the_calendar_are_held_at_its_ends() {
        assert_eq!((micros(Time::from_unix(i64::MIN)), micros(Time::from_unix(i64::MAX))), (LEAST, MOST));
        assert_eq!(micros("9999-12-31T23:59:59.999999999Z".parse().unwrap()), MOST);
        assert_eq!(micros("0001-01-01T00:00:00Z".parse().unwrap()), LEAST);
    }

    /// What a sink with these rows answers, `most` of them looked at.
    fn ask(query: &Query, rows: &[Row], most: usize) -> Found {
        let mut matching: Vec<Row> = rows.iter().filter(|row| query.wants(row.at, &Facets::of(&row.event))).cloned().collect();
        query.sort(&mut matching);
        let known = (matching.len() > most).then(|| matching[most - 1].at);
        page(query, matching, known)
    }

    proptest! {
        #[test]
        fn pages_of_two_sinks_together_are_all_events_once_and_in_order(
            times in prop::collection::vec((0i64..6, 0u128..3, any::<bool>(), any::<bool>()), 0..60),
            limit in 1usize..9, looks in (1usize..9, 1usize..9), oldest_first: bool,
        ) {
            let row = |at: usize, time: i64, chain: u128| {
                let event = format!(r#"{{"time":"{}"}}"#, Time::from_unix(time));
                Row::of(host(chain), u64::try_from(at).unwrap(), event.into()).0
            };
            let all: Vec<Row> = times.iter().enumerate().map(|(at, (time, chain, ..))| row(at, *time, *chain)).collect();
            let of = |side: fn(&(i64, u128, bool, bool)) -> bool| -> Vec<Row> {
                all.iter().zip(&times).filter(|(_, time)| side(time)).map(|(row, _)| row.clone()).collect()
            };
            // Each event is in one sink or in both.
            let (one, other) = (of(|time| time.2), of(|time| !time.2 || time.3));
            let mut query = Query { limit, oldest_first, ..Query::default() };
            let mut got = Vec::new();
            for _ in 0..200 {
                let found = merge(&query, ask(&query, &one, looks.0), ask(&query, &other, looks.1));
                prop_assert!(found.rows.len() <= limit);
                got.extend(found.rows);
                query.page = found.next;
                if found.next.is_none() {
                    break;
                }
            }
            let mut expected = all.clone();
            query.sort(&mut expected);
            prop_assert_eq!(got, expected);
        }

        #[test]
        fn a_page_token_survives_and_a_strange_one_is_refused(micros in LEAST..MOST, chain: u128, index in 0u64..1 << 63, text in ".{0,60}") {
            let cursor = Cursor { micros, chain: host(chain), index };
            prop_assert_eq!(cursor.to_string().parse::<Cursor>(), Ok(cursor));
            let _refused = text.parse::<Cursor>();
        }
    }
}
