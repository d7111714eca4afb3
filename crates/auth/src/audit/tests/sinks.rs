//! What every sink promises, asked of both.

use super::*;
use bytes::Bytes;
use sink::{Checkpoint, Sink};
use wire::audit::{Digest, Line};

/// A sink with an empty chain of `host(1)`.
struct Case {
    sink: Box<dyn Sink>,
    begin: Head,
    _dir: tempfile::TempDir,
}

fn files() -> Case {
    let dir = tempfile::tempdir().unwrap();
    let clock = ManualClock::new(Time::from_unix(START));
    let begin = Checkpoint { head: Head::genesis(&cluster()), time: Time::EPOCH, removed: 0 };
    let files = Files::open(dir.path(), host(1), "auth1".into(), begin.clone(), clock.shared()).unwrap();
    Case { sink: Box::new(Ticking { files, clock }), begin: begin.head, _dir: dir }
}

async fn postgres() -> Case {
    let sink = Postgres::new(&options(servers::postgres().port), cluster()).unwrap();
    let begin = Checkpoint { head: Head::genesis(&cluster()), time: Time::EPOCH, removed: 0 };
    sink.begin(host(1), "auth1", &begin).await.unwrap();
    Case { sink: Box::new(sink), begin: begin.head, _dir: tempfile::tempdir().unwrap() }
}

async fn both(check: impl AsyncFn(Case)) {
    check(files()).await;
    check(postgres().await).await;
}

/// Files by the day, for retention removes whole ones: each batch is a day later.
struct Ticking {
    files: Files,
    clock: ManualClock,
}
type Wait<'a, T> = futures::future::BoxFuture<'a, Result<T, SinkError>>;
impl Sink for Ticking {
    fn name(&self) -> &'static str {
        self.files.name()
    }
    fn append<'a>(&'a self, chain: HostId, behind: Head, lines: &'a [Line]) -> Wait<'a, ()> {
        self.clock.advance(Duration::from_secs(86_400));
        self.files.append(chain, behind, lines)
    }
    fn chains(&self) -> Wait<'_, Vec<sink::Extent>> {
        self.files.chains()
    }
    fn read(&self, chain: HostId, from: u64) -> Box<dyn sink::Lines> {
        self.files.read(chain, from)
    }
    fn search<'a>(&'a self, query: &'a Query) -> Wait<'a, Found> {
        self.files.search(query)
    }
    fn span(&self, chain: HostId, from: Option<Time>, to: Option<Time>) -> Wait<'_, Option<(u64, u64)>> {
        self.files.span(chain, from, to)
    }
    fn older(&self, chain: HostId, time: Time) -> Wait<'_, Option<Head>> {
        self.files.older(chain, time)
    }
    fn cut<'a>(&'a self, chain: HostId, at: &'a Checkpoint) -> Wait<'a, ()> {
        self.files.cut(chain, at)
    }
}

/// Events of these seconds.
fn chained(head: &mut Head, seconds: &[i64]) -> Vec<Line> {
    let event = |at: &i64| {
        let time = Time::from_unix(START + at);
        format!(
            r#"{{"event":"exec","code":"L3002I","time":"{time}","uid":"{}","user":"u{at}","sid":"s{}","x":"é\u0000"}}"#,
            uuid::Uuid::nil(),
            at % 2
        )
    };
    seconds.iter().map(|at| Line::chained(head, Bytes::from(event(at)))).collect()
}

async fn read(sink: &dyn Sink, from: u64) -> Vec<Line> {
    let mut lines = sink.read(host(1), from);
    let mut all = Vec::new();
    loop {
        let batch = lines.next().await.unwrap();
        if batch.is_empty() {
            return all;
        }
        all.extend(batch);
    }
}

#[tokio::test]
async fn what_was_added_is_there_byte_by_byte_and_again_changes_nothing() {
    both(async |case: Case| {
        let sink = case.sink.as_ref();
        let mut head = case.begin;
        let lines = chained(&mut head, &(0..1200).collect::<Vec<_>>());
        sink.append(host(1), case.begin, &lines[..700]).await.unwrap();
        let middle = Head { events: 600, hash: lines[599].hash };
        // Partly there already, as after an answer that was lost.
        sink.append(host(1), middle, &lines[600..]).await.unwrap();
        sink.append(host(1), middle, &lines[600..]).await.unwrap();
        assert_eq!(read(sink, 0).await, lines);
        assert_eq!(read(sink, 1190).await, lines[1190..]);
        let extent = sink.chains().await.unwrap().remove(0);
        assert_eq!((extent.chain, extent.name.as_str(), extent.begin.head, extent.end), (host(1), "auth1", case.begin, head));
    })
    .await;
}

#[tokio::test]
async fn lines_behind_a_hole_or_in_place_of_others_are_refused() {
    both(async |case: Case| {
        let sink = case.sink.as_ref();
        let mut head = case.begin;
        let lines = chained(&mut head, &[0, 1, 2, 3]);
        sink.append(host(1), case.begin, &lines[..2]).await.unwrap();
        let hole = Head { events: 3, hash: lines[2].hash };
        assert!(sink.append(host(1), hole, &lines[3..]).await.is_err(), "{}", sink.name());
        let mut fork = Head { events: 2, hash: Digest::from_bytes([9; 32]) };
        let behind = fork;
        let other = chained(&mut fork, &[7]);
        assert!(sink.append(host(1), behind, &other).await.is_err(), "{}", sink.name());
        assert_eq!(read(sink, 0).await, lines[..2]);
    })
    .await;
}

#[tokio::test]
async fn searches_filter_and_page_both_ways_in_the_order_of_time() {
    both(async |case: Case| {
        let sink = case.sink.as_ref();
        let mut head = case.begin;
        for seconds in [[0, 1, 2], [86_400, 5, 86_402], [172_800, 172_801, 1]] {
            let behind = head;
            let lines = chained(&mut head, &seconds);
            sink.append(host(1), behind, &lines).await.unwrap();
        }
        let ask = async |query: Query| {
            let found = sink.search(&query).await.unwrap();
            (indexes(&found), found.next)
        };
        let all = vec![7, 6, 5, 3, 4, 2, 8, 1, 0];
        assert_eq!(ask(Query::default()).await, (all.clone(), None));
        for (oldest_first, limit) in [(false, 1), (false, 4), (true, 2), (true, 9)] {
            let (mut query, mut got) = (Query { limit, oldest_first, ..Query::default() }, Vec::new());
            loop {
                let (page, next) = ask(query.clone()).await;
                assert!(page.len() <= limit);
                got.extend(page);
                query.page = next;
                if next.is_none() {
                    break;
                }
            }
            let expected: Vec<u64> = if oldest_first { all.iter().rev().copied().collect() } else { all.clone() };
            assert_eq!(got, expected, "{} {limit}", sink.name());
        }
        let at = |second: i64| Some(Time::from_unix(START + second));
        let empty = Query::default;
        assert_eq!(ask(Query { user: "u1".into(), ..empty() }).await.0, [8, 1]);
        assert_eq!(ask(Query { session: "s1".into(), ..empty() }).await.0, [7, 4, 8, 1]);
        assert_eq!(ask(Query { kinds: ["L3002I".into()].into(), limit: 1, ..empty() }).await.0, [7]);
        assert_eq!(ask(Query { kinds: ["exec".into(), "nothing".into()].into(), limit: 1, ..empty() }).await.0, [7]);
        assert_eq!(ask(Query { kinds: ["nothing".into()].into(), ..empty() }).await.0, [0; 0]);
        assert_eq!(ask(Query { from: at(2), to: at(86_402), ..empty() }).await.0, [3, 4, 2]);
        assert_eq!(sink.span(host(1), at(2), at(86_402)).await.unwrap(), Some((2, 5)));
        assert_eq!(sink.span(host(1), at(200_000), None).await.unwrap(), None);
        assert_eq!(sink.span(host(1), None, None).await.unwrap(), Some((0, 9)));
    })
    .await;
}

#[tokio::test]
async fn a_cut_removes_a_beginning_and_the_rest_still_follows() {
    both(async |case: Case| {
        let sink = case.sink.as_ref();
        let (mut head, mut all) = (case.begin, Vec::new());
        for day in 0..4i64 {
            let behind = head;
            let lines = chained(&mut head, &[day * 86_400, day * 86_400 + 1]);
            sink.append(host(1), behind, &lines).await.unwrap();
            all.extend(lines);
        }
        let older = sink.older(host(1), Time::from_unix(START + 2 * 86_400)).await.unwrap().unwrap();
        assert_eq!((older.events, older.hash), (4, all[3].hash));
        assert_eq!(sink.older(host(1), Time::from_unix(START)).await.unwrap(), None);
        let checkpoint = Checkpoint { head: older, time: Time::from_unix(START), removed: 4 };
        for _ in 0..2 {
            sink.cut(host(1), &checkpoint).await.unwrap();
            let extent = sink.chains().await.unwrap().remove(0);
            assert_eq!((extent.begin, extent.end), (checkpoint.clone(), head));
            assert_eq!(read(sink, 4).await, all[4..]);
            assert_eq!(indexes(&sink.search(&Query::default()).await.unwrap()), [7, 6, 5, 4]);
        }
        let behind = head;
        let more = chained(&mut head, &[9 * 86_400]);
        sink.append(host(1), behind, &more).await.unwrap();
        let mut follows = older;
        read(sink, 4).await.iter().for_each(|line| follows.follow(line.parts()).unwrap());
        assert_eq!(follows, head);
    })
    .await;
}

#[tokio::test]
async fn the_strangest_events_find_their_place() {
    both(async |case: Case| {
        let sink = case.sink.as_ref();
        let mut head = case.begin;
        let events = [
            r#"{"event":"x","time":"9999-12-31T23:59:59.999999999Z","user":"\u0000"}"#.to_owned(),
            r#"{"event":"x","time":"-9999-01-01T00:00:00Z","user":["no"],"sid":7}"#.to_owned(),
            r#"{"event":"x","time":"0001-01-01T00:00:00Z"}"#.to_owned(),
            format!(r#"{{"event":"{0}","code":"{0}","time":"2027-01-01T00:00:00Z","user":"{0}","sid":"{0}"}}"#, "ü".repeat(9000)),
            "{}".to_owned(),
        ];
        let lines: Vec<Line> = events.iter().map(|event| Line::chained(&mut head, event.clone().into())).collect();
        sink.append(host(1), case.begin, &lines).await.unwrap();
        assert_eq!(read(sink, 0).await, lines);
        assert_eq!(indexes(&sink.search(&Query { user: "ü".repeat(9000), ..Query::default() }).await.unwrap()), [3]);
        assert_eq!(indexes(&sink.search(&Query { user: "\0".into(), ..Query::default() }).await.unwrap()), [0]);
        assert_eq!(indexes(&sink.search(&Query::default()).await.unwrap())[..2], [0, 3]);
    })
    .await;
}
