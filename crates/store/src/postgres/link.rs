//! One connection that is made when it is needed and made anew when it was lost.

use super::{Options, fault, tls};
use crate::StoreError;
use crate::remote::{OpenError, Tasks, client_config, password};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio_postgres::config::{SslMode, TargetSessionAttrs};
use tokio_postgres::{Client, Config, Error};
use tokio_util::task::AbortOnDropHandle;

/// The most.
const CONNECT: Duration = Duration::from_secs(5);

/// A client and the task that moves its bytes; the connection ends with the last copy.
#[derive(Clone)]
pub struct Live(Arc<(Client, AbortOnDropHandle<()>)>);

impl std::ops::Deref for Live {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.0.0
    }
}

/// See the file's head. Cloned connections share one.
pub struct Link {
    hosts: Vec<Config>,
    /// For the connection and the login at one host.
    wait: Duration,
    password_file: Option<PathBuf>,
    tls: tls::Rustls,
    /// Nobody waits for them: they end with their clients, which somebody may hold for longer than the store is open.
    tasks: Tasks,
    place: String,
    slot: Mutex<Option<Live>>,
    /// One connection is made at a time: a thousand readers that lost theirs need one, not a thousand.
    connecting: Semaphore,
}

impl Link {
    /// For who keeps tables of its own beside a store's: the audit log does. Connects when [`live`](Self::live) is first asked.
    pub fn open(options: &Options) -> Result<Self, OpenError> {
        Self::new(options, &options.check()?)
    }

    pub(super) fn new(options: &Options, hosts: &[(String, u16)]) -> Result<Self, OpenError> {
        let wait = CONNECT.min(options.patience.max(Duration::from_secs(1)));
        let mut config = Config::new();
        config
            .user(&options.user)
            .dbname(&options.database)
            .application_name("lockgate")
            .connect_timeout(wait)
            .keepalives_idle(Duration::from_secs(10))
            .tcp_user_timeout(Duration::from_secs(20))
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .ssl_mode(if options.tls.is_some() { SslMode::Require } else { SslMode::Disable });
        // Read now too, so that a missing file is said at the start.
        options.password_file.as_deref().map(password).transpose()?;
        let tls = options.tls.as_ref().map(|tls| client_config(tls, &[])).transpose()?;
        let place = format!("PostgreSQL {}/{}.{}", options.hosts.join(","), options.database, options.schema);
        let one = |(host, port): &(String, u16)| {
            let mut config = config.clone();
            config.host(host).port(*port);
            config
        };
        Ok(Self {
            hosts: hosts.iter().map(one).collect(),
            wait,
            password_file: options.password_file.clone(),
            tls: tls::Rustls(tls),
            tasks: Tasks::default(),
            place,
            slot: Mutex::new(None),
            connecting: Semaphore::new(1),
        })
    }

    /// Server, database and schema, for messages.
    pub fn place(&self) -> &str {
        &self.place
    }

    /// The connection, made if there is none. One attempt.
    pub async fn live(&self) -> Result<Live, StoreError> {
        if let Some(live) = self.present() {
            return Ok(live);
        }
        let _turn = self.connecting.acquire().await.map_err(|_| StoreError::Closed)?;
        if let Some(live) = self.present() {
            return Ok(live);
        }
        let secret = match &self.password_file {
            Some(file) => {
                Some(password(file).map_err(|error| StoreError::Refused { place: self.place.clone(), detail: error.to_string() })?)
            }
            None => None,
        };
        // One by one: a host that takes connections and stands still must not hold up the way to the next.
        let mut tried = Err(fault::silent(&self.place));
        for host in &self.hosts {
            let mut config = host.clone();
            if let Some(secret) = &secret {
                config.password(secret.expose());
            }
            tried = match tokio::time::timeout(self.wait, config.connect(self.tls.clone())).await {
                Ok(connected) => connected.map_err(|error| fault::named(&self.place, &error)),
                Err(_) => Err(fault::silent(&self.place)),
            };
            if tried.is_ok() {
                break;
            }
        }
        let (client, connection) = tried?;
        // Its error also comes to whoever has a request in it.
        let moving = self.tasks.start("connection", async move { drop(connection.await) });
        let live = Live(Arc::new((client, moving)));
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(live.clone());
        Ok(live)
    }

    fn present(&self) -> Option<Live> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner).clone().filter(|live| !live.is_closed())
    }

    /// Names an error and forgets the connection if it cannot be used any more.
    pub fn lost(&self, live: &Live, error: &Error) -> StoreError {
        let named = fault::named(&self.place, error);
        if live.is_closed() || fault::passes(&named) {
            self.forget(live);
        }
        named
    }

    /// Forgets this connection, unless it was replaced already.
    pub fn forget(&self, live: &Live) {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_some_and(|present| Arc::ptr_eq(&present.0, &live.0)) {
            *slot = None;
        }
    }

    /// Forgets the connection, whichever it is.
    pub fn close(&self) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// No answer in time. The connection is not used again: what comes late would be taken for something else.
    pub fn silent(&self) -> StoreError {
        self.close();
        fault::silent(&self.place)
    }
}
