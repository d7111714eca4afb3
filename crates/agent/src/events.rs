//! Audit events of this host: written to disk at once, delivered in order, forgotten when the Auth Service has them.
//!
//! Each process writes files of its own, in the first place that no other process holds (a live restart has two for a while); what
//! a dead one left is taken over. New events are appended to `events.jsonl` and synced, also while a delivery is under way; the delivery takes the whole file away under another name, sends
//! it in batches, and deletes it after the last was acknowledged. A process that dies in between sends some events twice:
//! they have uids. When the disk is full, events still travel from memory, and the log says so. An event that the Auth Service will
//! never take is put aside, so that it holds up none behind it.

use crate::{metrics::Metrics, world::Upstream};
use futures::future::BoxFuture;
use net::{backoff::Backoff, turn::Turn};
use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};
use types::Event;

const QUEUE: usize = 1024;
const BATCH: usize = 100;
/// For delivering what is left when the service ends.
const LAST_DELIVERY: Duration = Duration::from_secs(3);
const FRESH: &str = "events.jsonl";
const SENDING: &str = "events.sending.jsonl";
const ASIDE: &str = "events.refused.jsonl";
/// What is put aside beyond so many bytes is told in the log and counted only.
const MAX_ASIDE: u64 = 16 << 20;
/// The most bytes of one event's line.
const MAX_LINE: usize = 256 * 1024;

/// Where services report events. Clones share the queue.
#[derive(Clone, Debug)]
pub struct Audit(mpsc::Sender<Report>);

/// An event, and who waits until it is on disk.
#[derive(Debug)]
struct Report {
    event: Event,
    kept: Option<oneshot::Sender<()>>,
}

/// The other end of the queue.
#[derive(Debug)]
pub struct Reports(mpsc::Receiver<Report>);

impl Reports {
    /// The next event; nobody waits for it any more.
    pub async fn recv(&mut self) -> Option<Event> {
        self.0.recv().await.map(|report| report.event)
    }
    /// The next event, if one is there.
    pub fn try_recv(&mut self) -> Option<Event> {
        self.0.try_recv().ok().map(|report| report.event)
    }
}

impl Audit {
    /// A queue, and its other end for the keeper.
    pub fn new() -> (Self, Reports) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        (Self(sender), Reports(receiver))
    }

    /// Reports an event. Waits when very many wait.
    pub async fn emit(&self, event: Event) {
        self.report(Report { event, kept: None }).await;
    }

    /// The same, and returns when the event outlives this process, if the disk takes it.
    pub async fn emit_kept(&self, event: Event) {
        let (kept, told) = oneshot::channel();
        self.report(Report { event, kept: Some(kept) }).await;
        let _kept_or_nobody_keeps = told.await;
    }

    async fn report(&self, report: Report) {
        if let Err(lost) = self.0.send(report).await {
            let event = lost.0.event;
            tracing::error!(event = %event.event, code = %event.code, "an audit event came after the service had stopped");
        }
    }
}

/// Keeps events on disk and delivers them.
pub(crate) struct Keeper {
    dir: PathBuf,
    place: Place,
    /// Others may have left something.
    orphans: bool,
    upstream: Arc<dyn Upstream>,
    backoff: Backoff,
    metrics: Arc<Metrics>,
    /// Could not be written to disk.
    memory: VecDeque<Event>,
}

/// An event that will never be taken, and why.
struct Refused {
    event: Event,
    why: String,
}

/// Processes of one host at once, and more.
const PLACES: usize = 16;

/// The names of a process's files, held by a lock.
struct Place {
    number: usize,
    /// None when the disk refused it.
    _lock: Option<File>,
}

impl Place {
    fn take(dir: &Path) -> Self {
        let free = (0..PLACES).find_map(|number| Some(Self { number, _lock: Some(Self::lock(dir, number)?) }));
        free.unwrap_or_else(|| {
            tracing::error!(dir = %dir.display(), "no place for audit events can be locked in the spool");
            Self { number: 0, _lock: None }
        })
    }
    fn lock(dir: &Path, number: usize) -> Option<File> {
        let open = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(dir.join(format!("events.{number}.lock")));
        open.ok().filter(|file| rustix::fs::flock(file, rustix::fs::FlockOperation::NonBlockingLockExclusive).is_ok())
    }
}

fn fresh(number: usize) -> String {
    if number == 0 { FRESH.into() } else { format!("events.{number}.jsonl") }
}
fn sending(number: usize) -> String {
    if number == 0 { SENDING.into() } else { format!("events.{number}.sending.jsonl") }
}

/// What is on its way.
enum Taken {
    /// All of `SENDING`.
    File,
    /// So many of the oldest in memory.
    Memory(usize),
}

type Delivery = BoxFuture<'static, Result<Vec<Refused>, types::Public>>;

impl Keeper {
    pub(crate) fn new(dir: &Path, upstream: Arc<dyn Upstream>, backoff: Backoff, metrics: Arc<Metrics>) -> Self {
        Self { dir: dir.to_owned(), place: Place::take(dir), orphans: true, upstream, backoff, metrics, memory: VecDeque::new() }
    }

    /// Writes and delivers until every [`Audit`] is gone; then tries for a moment to deliver what is left. A delivery that takes long
    /// keeps nothing from the disk. `alone`: see [`crate::World`].
    pub(crate) async fn run(mut self, mut reports: Reports, alone: Turn) {
        let mut others = !alone.is_ours();
        let mut batch = Vec::new();
        let mut under_way: Option<(Taken, Delivery)> = None;
        let mut next = Instant::now();
        loop {
            let due = under_way.is_none() && self.pending();
            let delivering = async {
                match &mut under_way {
                    Some((_, delivery)) => delivery.await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                taken = reports.0.recv_many(&mut batch, QUEUE) => {
                    if taken == 0 {
                        break;
                    }
                    self.keep(std::mem::take(&mut batch)).await;
                }
                () = tokio::time::sleep_until(next), if due => under_way = self.take_up(),
                () = alone.ours(), if others => (others, self.orphans) = (false, true),
                delivered = delivering => {
                    next = Instant::now() + self.settle(under_way.take().map(|(taken, _)| taken), delivered);
                }
            }
        }
        let last = async {
            loop {
                let Some((taken, delivery)) = under_way.take().or_else(|| self.take_up()) else { return };
                let delivered = delivery.await;
                tokio::time::sleep(self.settle(Some(taken), delivered)).await;
            }
        };
        if tokio::time::timeout(LAST_DELIVERY, last).await.is_err() {
            tracing::info!("audit events stay in the spool until the next start");
        }
    }

    fn pending(&self) -> bool {
        self.orphans || !self.memory.is_empty() || self.sending().exists() || self.fresh().exists()
    }
    fn fresh(&self) -> PathBuf {
        self.dir.join(fresh(self.place.number))
    }
    fn sending(&self) -> PathBuf {
        self.dir.join(sending(self.place.number))
    }

    /// Takes over a file that a dead process left; false when there is none.
    fn adopt(&mut self) -> bool {
        let own = self.place.number;
        for number in (0..PLACES).filter(|number| *number != own) {
            for left in [sending(number), fresh(number)].map(|name| self.dir.join(name)) {
                if left.exists() && Place::lock(&self.dir, number).is_some() && std::fs::rename(left, self.sending()).is_ok() {
                    return true;
                }
            }
        }
        self.orphans = false;
        false
    }

    /// Begins to deliver what has waited longest. Only between two writes: the file that is taken away is written no more.
    fn take_up(&mut self) -> Option<(Taken, Delivery)> {
        let (fresh, sending) = (self.fresh(), self.sending());
        let orphan = !sending.exists() && self.orphans && self.adopt();
        let (taken, events) = if orphan || sending.exists() || std::fs::rename(&fresh, &sending).is_ok() {
            (Taken::File, read(&sending, &self.metrics).map_err(|error| unreadable(&error)))
        } else if self.memory.is_empty() {
            return None;
        } else {
            let some: Vec<Event> = self.memory.iter().take(BATCH).cloned().collect();
            (Taken::Memory(some.len()), Ok(some))
        };
        let upstream = self.upstream.clone();
        let delivery = async move {
            let mut aside = Vec::new();
            for batch in events?.chunks(BATCH) {
                for refused in upstream.events(batch.to_vec()).await? {
                    let event = usize::try_from(refused.index).ok().and_then(|index| batch.get(index));
                    aside.extend(event.map(|event| Refused { event: event.clone(), why: refused.why }));
                }
            }
            Ok(aside)
        };
        Some((taken, Box::pin(delivery)))
    }

    /// Forgets what was delivered; how long to wait before the next.
    fn settle(&mut self, taken: Option<Taken>, delivered: Result<Vec<Refused>, types::Public>) -> Duration {
        match delivered {
            Ok(refused) => refused.iter().for_each(|refused| self.put_aside(refused)),
            Err(error) => {
                tracing::debug!(%error, "audit events wait in the spool");
                return self.backoff.next();
            }
        }
        match taken {
            Some(Taken::File) => {
                if let Err(error) = std::fs::remove_file(self.sending()) {
                    tracing::error!(%error, "delivered audit events cannot be deleted from the spool");
                    return self.backoff.next();
                }
            }
            Some(Taken::Memory(count)) => drop(self.memory.drain(..count.min(self.memory.len()))),
            None => {}
        }
        self.backoff.reset();
        Duration::ZERO
    }

    fn put_aside(&self, Refused { event, why }: &Refused) {
        self.metrics.refused();
        tracing::error!(event = %event.event, uid = %event.uid, why, "the Auth Service refuses an audit event; it is put aside in {ASIDE}");
        let put = || {
            let mut file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(self.dir.join(ASIDE))?;
            if file.metadata()?.len() > MAX_ASIDE {
                return Err(io::Error::other("there is too much already"));
            }
            writeln!(file, "{}", serde_json::json!({"why": why, "event": event}))
        };
        if let Err(error) = put() {
            tracing::error!(%error, "{ASIDE} cannot be written");
            self.metrics.lost();
        }
    }

    async fn keep(&mut self, reports: Vec<Report>) {
        let (events, waiting): (Vec<Event>, Vec<_>) = reports.into_iter().map(|report| (report.event, report.kept)).unzip();
        let path = self.fresh();
        // What was torn before stays a line of its own.
        let mut lines = vec![b'\n'];
        for event in &events {
            if serde_json::to_writer(&mut lines, event).is_ok() {
                lines.push(b'\n');
            }
        }
        let written = tokio::task::spawn_blocking(move || {
            let mut file = std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
            file.write_all(&lines)?;
            file.sync_data()
        });
        if let Err(error) = written.await.map_err(io::Error::other).and_then(|result| result) {
            tracing::error!(%error, events = events.len(), "audit events cannot be written to the spool; they are kept in memory");
            self.memory.extend(events);
            // Old ones first: what is lost is said, never silent.
            while self.memory.len() > 100 * QUEUE {
                if let Some(lost) = self.memory.pop_front() {
                    self.metrics.lost();
                    tracing::error!(event = %lost.event, uid = %lost.uid, "an audit event was lost");
                }
            }
        }
        // In memory they are as safe as they can be.
        for kept in waiting.into_iter().flatten() {
            let _ = kept.send(());
        }
    }
}

fn unreadable(error: &io::Error) -> types::Public {
    tracing::error!(%error, "audit events in the spool cannot be read now; they stay there");
    types::Public::new(types::Code::Unavailable, format!("the spool cannot be read: {error}"))
}

/// The events in a file; a torn or foreign line is left out and logged.
fn read(path: &Path, metrics: &Metrics) -> io::Result<Vec<Event>> {
    let mut events = Vec::new();
    for line in io::BufReader::new(File::open(path)?).split(b'\n') {
        let line = line?;
        match serde_json::from_slice(line.get(..line.len().min(MAX_LINE)).unwrap_or_default()) {
            Ok(event) => events.push(event),
            Err(error) if !line.is_empty() => {
                metrics.lost();
                tracing::error!(%error, "a line in the spool is not an audit event");
            }
            Err(_) => {}
        }
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;
    use types::{Code, EventKind, Public, Time, kind::Recording};
    use wire::api::RefusedEvent;

    #[derive(Default)]
    struct Fake {
        failures: Mutex<u32>,
        got: Mutex<Vec<Event>>,
    }
    impl Upstream for Fake {
        fn events(&self, events: Vec<Event>) -> BoxFuture<'_, Result<Vec<RefusedEvent>, Public>> {
            let mut failures = self.failures.lock().unwrap();
            let result = if *failures > 0 {
                *failures -= 1;
                Err(Public::new(Code::Unavailable, "away"))
            } else {
                // As the Auth Service does with what is none of a host's business.
                let foreign = |event: &Event| event.event == EventKind::Login.name();
                let refused = (0..).zip(&events).filter(|(_, event)| foreign(event));
                let refused = refused.map(|(index, _)| RefusedEvent { index, why: "no".into() }).collect();
                self.got.lock().unwrap().extend(events.into_iter().filter(|event| !foreign(event)));
                Ok(refused)
            };
            Box::pin(async { result })
        }
        fn recording(&self, _about: Recording, _file: PathBuf) -> BoxFuture<'_, Result<(), Public>> {
            Box::pin(async { Ok(()) })
        }
    }

    fn quick() -> Backoff {
        Backoff::new(Duration::from_millis(1), Duration::from_millis(5), 1)
    }

    fn event(number: u128) -> Event {
        Event::new(EventKind::Exec, Time::EPOCH, uuid::Uuid::from_u128(number))
    }

    #[tokio::test]
    async fn events_outlive_an_auth_service_that_is_away_and_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let upstream = Arc::new(Fake { failures: Mutex::new(3), ..Fake::default() });
        let (audit, events) = Audit::new();
        let keeper = Keeper::new(dir.path(), upstream.clone(), quick(), Arc::default());
        let feed = async move {
            for number in 0..250 {
                audit.emit(event(number)).await;
            }
        };
        tokio::join!(feed, keeper.run(events, Turn::always()));
        let got: Vec<u128> = upstream.got.lock().unwrap().iter().map(|event| event.uid.as_u128()).collect();
        let mut unique = got.clone();
        unique.dedup();
        assert_eq!(unique, (0..250).collect::<Vec<_>>());
    }

    #[tokio::test]
    async fn events_of_a_killed_process_are_delivered_by_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let lines: String = (0..3).map(|number| serde_json::to_string(&event(number)).unwrap() + "\n").collect();
        std::fs::write(dir.path().join(FRESH), lines + "{\"event\":\"to").unwrap();
        let upstream = Arc::new(Fake::default());
        let (audit, events) = Audit::new();
        drop(audit);
        Keeper::new(dir.path(), upstream.clone(), quick(), Arc::default()).run(events, Turn::always()).await;
        assert_eq!(upstream.got.lock().unwrap().len(), 3);
        assert!(!dir.path().join(FRESH).exists() && !dir.path().join(SENDING).exists());
    }

    #[tokio::test]
    async fn an_event_that_is_kept_behind_a_torn_line_is_delivered() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(FRESH), "{\"event\":\"to").unwrap();
        let upstream = Arc::new(Fake::default());
        let (_audit, _reports) = Audit::new();
        let mut keeper = Keeper::new(dir.path(), upstream, quick(), Arc::default());
        keeper.keep(vec![Report { event: event(1), kept: None }]).await;
        assert_eq!(read(&dir.path().join(FRESH), &Metrics::default()).unwrap().len(), 1);
    }

    #[tokio::test]
    async fn an_event_that_is_refused_for_good_holds_up_none_behind_it_and_is_put_aside() {
        let dir = tempfile::tempdir().unwrap();
        let (upstream, metrics) = (Arc::new(Fake::default()), Arc::new(Metrics::default()));
        let (audit, reports) = Audit::new();
        let refused = Event::new(EventKind::Login, Time::EPOCH, uuid::Uuid::from_u128(1));
        let feed = async move {
            for event in [event(0), refused, event(2)] {
                audit.emit(event).await;
            }
        };
        tokio::join!(feed, Keeper::new(dir.path(), upstream.clone(), quick(), metrics.clone()).run(reports, Turn::always()));
        let got: Vec<u128> = upstream.got.lock().unwrap().iter().map(|event| event.uid.as_u128()).collect();
        assert_eq!(got, [0, 2]);
        assert_eq!(metrics.samples().map(|(_, value)| value), [0, 1]);
        assert!(std::fs::read_to_string(dir.path().join(ASIDE)).unwrap().contains("user.login"));
        assert!(!dir.path().join(FRESH).exists() && !dir.path().join(SENDING).exists());
    }

    #[tokio::test]
    async fn events_that_cannot_be_read_stay_in_the_spool() {
        let dir = tempfile::tempdir().unwrap();
        // Nobody can read a folder as a file, root neither.
        std::fs::create_dir(dir.path().join(SENDING)).unwrap();
        let mut keeper = Keeper::new(dir.path(), Arc::new(Fake::default()), quick(), Arc::default());
        let (_, delivery) = keeper.take_up().unwrap();
        assert!(delivery.await.is_err());
        assert!(dir.path().join(SENDING).exists());
    }

    #[tokio::test]
    async fn two_processes_keep_events_side_by_side_and_the_younger_delivers_what_the_older_left() {
        let dir = tempfile::tempdir().unwrap();
        let report = |number| vec![Report { event: event(number), kept: None }];
        let mut older = Keeper::new(dir.path(), Arc::new(Hangs), quick(), Arc::default());
        older.keep(report(1)).await;
        assert!(matches!(older.take_up(), Some((Taken::File, _))));
        older.keep(report(2)).await;
        let upstream = Arc::new(Fake::default());
        let younger = Keeper::new(dir.path(), upstream.clone(), quick(), Arc::default());
        let (audit, reports) = Audit::new();
        let before = net::turn::Switch::new(false);
        let count = || upstream.got.lock().unwrap().len();
        let story = async {
            audit.emit(event(3)).await;
            while count() < 1 {
                tokio::task::yield_now().await;
            }
            assert_eq!(read(&dir.path().join(FRESH), &Metrics::default()).unwrap().len(), 1, "the older one's stay while it lives");
            drop(older);
            before.set(true);
            while count() < 3 {
                tokio::task::yield_now().await;
            }
            drop(audit);
        };
        tokio::join!(younger.run(reports, before.turn()), story);
        let got: Vec<u128> = upstream.got.lock().unwrap().iter().map(|event| event.uid.as_u128()).collect();
        assert_eq!(got, [3, 1, 2]);
    }

    /// Takes nothing and refuses nothing, as an Auth Service that hangs.
    struct Hangs;
    impl Upstream for Hangs {
        fn events(&self, _events: Vec<Event>) -> BoxFuture<'_, Result<Vec<RefusedEvent>, Public>> {
            Box::pin(std::future::pending())
        }
        fn recording(&self, _about: Recording, _file: PathBuf) -> BoxFuture<'_, Result<(), Public>> {
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test]
    async fn events_are_on_disk_although_a_delivery_hangs() {
        let dir = tempfile::tempdir().unwrap();
        let (audit, reports) = Audit::new();
        let keeper = Keeper::new(dir.path(), Arc::new(Hangs), quick(), Arc::default());
        let report = async {
            for number in 0..3 {
                tokio::time::timeout(Duration::from_secs(20), audit.emit_kept(event(number))).await.unwrap();
            }
        };
        tokio::select! {
            () = keeper.run(reports, Turn::always()) => panic!("it ended"),
            () = report => {}
        }
        let kept = [FRESH, SENDING].iter().flat_map(|name| read(&dir.path().join(name), &Metrics::default()).unwrap_or_default());
        assert_eq!(kept.map(|event| event.uid.as_u128()).collect::<std::collections::BTreeSet<_>>().len(), 3);
    }
}
