//! The audit log as its callers see it: `log` its files against a hostile disk, `sinks` what both sinks promise, `shipping` the way
//! to a real PostgreSQL and what harm does to it, `keeping` retention. The server and the harmful proxy are the store's.

#[path = "../../../types/tests/it/hold.rs"]
pub(in crate::audit) mod hold;
#[path = "tests/keeping.rs"]
mod keeping;
#[path = "tests/log.rs"]
mod log;
#[path = "../../../store/tests/it/proxy.rs"]
#[allow(dead_code, reason = "what only the store's own tests need")]
mod proxy;
#[path = "../../../store/tests/it/servers/mod.rs"]
#[allow(dead_code, unused_imports, reason = "what only the store's own tests need of its servers")]
mod servers;
#[path = "tests/shipping.rs"]
mod shipping;
#[path = "tests/sinks.rs"]
mod sinks;

use super::*;
use net::{clock::ManualClock, health::Health};
use std::{
    fs,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};
use store::postgres::Options;

fn cluster() -> ClusterId {
    ClusterId::from_uuid(uuid::Uuid::from_u128(7))
}
fn host(number: u128) -> HostId {
    HostId::from_uuid(uuid::Uuid::from_u128(number))
}

/// The start of a day.
const START: i64 = 1_800_057_600;

/// The directory of one Auth Service's log, and what surrounds it.
struct Log {
    dir: tempfile::TempDir,
    host: HostId,
    clock: ManualClock,
    health: Board,
    metrics: Arc<Metrics>,
    settings: Settings,
    group: Group,
}

impl Log {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
            host: host(1),
            clock: ManualClock::new(Time::from_unix(START)),
            health: Board::default(),
            metrics: Arc::default(),
            settings: Settings::default(),
            group: Group::new("test"),
        }
    }

    /// With PostgreSQL.
    fn shared(options: Options) -> Self {
        Self { settings: Settings { shared: Some(Shared::new(options)), ..Settings::default() }, ..Self::new() }
    }

    fn opening(&self, known: Known) -> Opening {
        Opening {
            dir: self.dir.path().to_owned(),
            cluster: cluster(),
            host: self.host,
            name: format!("auth{}", self.host.as_uuid().as_u128()),
            known,
            settings: self.settings.clone(),
            clock: self.clock.shared(),
            metrics: self.metrics.clone(),
            health: self.health.clone(),
        }
    }

    async fn open_knowing(&self, known: Known) -> Audit {
        Audit::open(self.opening(known), &self.group).await.unwrap()
    }
    async fn open(&self) -> Audit {
        self.open_knowing(Known::default()).await
    }

    /// Waits until everything has arrived.
    async fn arrived(&self, audit: &Audit) {
        let (_, state) = audit.0.postgres.as_ref().unwrap();
        let mut state = state.clone();
        let all = state.wait_for(|state| state.end.is_some_and(|end| end.events >= audit.head().events));
        tokio::time::timeout(Duration::from_secs(30), all).await.expect("it arrives").unwrap();
    }

    /// Ends the process that had it, in good order.
    async fn close(&mut self, audit: Audit) {
        audit.close();
        assert!(std::mem::replace(&mut self.group, Group::new("test")).join(Duration::from_secs(20)).await);
    }

    /// Ends it as `kill -9` would.
    async fn kill(&mut self, audit: Audit) {
        std::mem::replace(&mut self.group, Group::new("test")).abort();
        drop(audit);
        tokio::task::yield_now().await;
    }
}

/// Settings for a schema of its own at that port.
fn options(port: u16) -> Options {
    let mut options = servers::postgres_options(port, "audit");
    options.patience = Duration::from_millis(500);
    options
}

fn anchored(audit: &Audit) -> AllKnown {
    [(audit.chain(), Known { anchor: audit.anchor(), origin: None })].into()
}

async fn write_users(audit: &Audit, users: std::ops::Range<u32>) {
    for user in users {
        audit.record(audit.event(EventKind::Login).with("user", format!("u{user}"))).await.unwrap();
    }
}

/// Chain and index of what was found.
fn places(found: &Found) -> Vec<(u128, u64)> {
    found.rows.iter().map(|row| (row.at.chain.as_uuid().as_u128(), row.at.index)).collect()
}
fn indexes(found: &Found) -> Vec<u64> {
    found.rows.iter().map(|row| row.at.index).collect()
}

async fn search(audit: &Audit, query: Query) -> Found {
    audit.search(&query).await.unwrap().0
}

/// The fault of this Auth Service's log, with nothing known of it but itself.
async fn fault(audit: &Audit, known: &AllKnown) -> Option<String> {
    audit.verify(known).await.unwrap().fault()
}

fn unique() -> u32 {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    COUNT.fetch_add(1, Ordering::Relaxed)
}
