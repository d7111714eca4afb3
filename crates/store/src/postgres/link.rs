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

const CONNECT: Duration = Duration::from_secs(5);

/// A client and the task that moves its bytes; the connection ends with the last copy.
#[derive(Clone)]
pub(super) struct Live(Arc<(Client, AbortOnDropHandle<()>)>);

impl std::ops::Deref for Live {
    type Target = Client;
    fn deref(&self) -> &Client {
        &self.0.0
    }
}

pub(super) struct Link {
    config: Config,
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
    pub(super) fn new(options: &Options, hosts: &[(String, u16)]) -> Result<Self, OpenError> {
        let mut config = Config::new();
        for (host, port) in hosts {
            config.host(host).port(*port);
        }
        config
            .user(&options.user)
            .dbname(&options.database)
            .application_name("lockgate")
            .connect_timeout(CONNECT)
            .keepalives_idle(Duration::from_secs(10))
            .tcp_user_timeout(Duration::from_secs(20))
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .ssl_mode(if options.tls.is_some() { SslMode::Require } else { SslMode::Disable });
        // Read now too, so that a missing file is said at the start.
        options.password_file.as_deref().map(password).transpose()?;
        let tls = options.tls.as_ref().map(|tls| client_config(tls, &[])).transpose()?;
        let place = format!("PostgreSQL {}/{}.{}", options.hosts.join(","), options.database, options.schema);
        Ok(Self {
            config,
            password_file: options.password_file.clone(),
            tls: tls::Rustls(tls),
            tasks: Tasks::default(),
            place,
            slot: Mutex::new(None),
            connecting: Semaphore::new(1),
        })
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// The connection, made if there is none. One attempt.
    pub(super) async fn live(&self) -> Result<Live, StoreError> {
        if let Some(live) = self.present() {
            return Ok(live);
        }
        let _turn = self.connecting.acquire().await.map_err(|_| StoreError::Closed)?;
        if let Some(live) = self.present() {
            return Ok(live);
        }
        let mut config = self.config.clone();
        if let Some(file) = &self.password_file {
            let refused = |error: OpenError| StoreError::Refused { place: self.place.clone(), detail: error.to_string() };
            config.password(password(file).map_err(refused)?.expose());
        }
        // Each host of the list has the time of its own connecting, and a login besides.
        let limit = CONNECT * u32::try_from(config.get_hosts().len().max(1)).unwrap_or(1) + CONNECT;
        let connecting = config.connect(self.tls.clone());
        let (client, connection) = match tokio::time::timeout(limit, connecting).await {
            Ok(connected) => connected.map_err(|error| fault::named(&self.place, &error))?,
            Err(_) => return Err(self.silent()),
        };
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
    pub(super) fn lost(&self, live: &Live, error: &Error) -> StoreError {
        let named = fault::named(&self.place, error);
        if live.is_closed() || fault::passes(&named) {
            self.forget(live);
        }
        named
    }

    /// Forgets this connection, unless it was replaced already.
    pub(super) fn forget(&self, live: &Live) {
        let mut slot = self.slot.lock().unwrap_or_else(PoisonError::into_inner);
        if slot.as_ref().is_some_and(|present| Arc::ptr_eq(&present.0, &live.0)) {
            *slot = None;
        }
    }

    pub(super) fn close(&self) {
        *self.slot.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// No answer in time. The connection is not used again: what comes late would be taken for something else.
    pub(super) fn silent(&self) -> StoreError {
        self.close();
        StoreError::Unreachable { place: self.place.clone(), detail: "no answer in time".into() }
    }
}
