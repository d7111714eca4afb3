//! The connections that read: each does one thing at a time, and a reader takes whichever is free.
//!
//! tokio-postgres would let all readers share one connection and send without waiting for answers. Behind a transaction-pooling
//! proxy that is not safe: between two transactions it gives the server's connection to somebody else, and it may do so when half of the
//! next request has passed (pgbouncer's issue 759, supavisor's 1061). Then answers come to whoever did not ask. So nothing is sent
//! outside a transaction before the last answer is there in full, and a connection whose answer was not awaited is dropped.

use super::Options;
use super::link::{Link, Live};
use crate::StoreError;
use crate::remote::OpenError;
use std::sync::{Mutex, PoisonError};
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_postgres::Error;

/// Connections at most; made when so many readers are there at once.
const LANES: usize = 4;

pub(super) struct Lanes {
    /// The one that was used last is used next.
    free: Mutex<Vec<Link>>,
    turns: Semaphore,
    place: String,
}

/// One reader's use of a connection.
struct Turn<'a> {
    lanes: &'a Lanes,
    link: Option<Link>,
    /// The answer came in full.
    answered: bool,
    _permit: SemaphorePermit<'a>,
}

impl Lanes {
    pub(super) fn new(options: &Options, hosts: &[(String, u16)]) -> Result<Self, OpenError> {
        let free: Vec<Link> = (0..LANES).map(|_| Link::new(options, hosts)).collect::<Result<_, _>>()?;
        let place = free.first().map(|link| link.place().to_owned()).unwrap_or_default();
        Ok(Self { free: Mutex::new(free), turns: Semaphore::new(LANES), place })
    }

    pub(super) fn place(&self) -> &str {
        &self.place
    }

    /// Does one thing on a connection: one attempt. May be dropped half way.
    pub(super) async fn once<T, F>(&self, read: impl FnOnce(Live) -> F) -> Result<T, StoreError>
    where
        F: Future<Output = Result<T, Error>>,
    {
        let permit = self.turns.acquire().await.map_err(|_| StoreError::Closed)?;
        let link = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let mut turn = Turn { lanes: self, link, answered: false, _permit: permit };
        // There are as many as there are permits.
        let Some(link) = &turn.link else { return Err(StoreError::Closed) };
        let live = link.live().await?;
        match read(live.clone()).await {
            Ok(done) => {
                turn.answered = true;
                Ok(done)
            }
            // The end of the answer may still be on its way.
            Err(error) => Err(link.lost(&live, &error)),
        }
    }

    /// Connections that are in use end with their readers.
    pub(super) fn close(&self) {
        self.turns.close();
        self.free.lock().unwrap_or_else(PoisonError::into_inner).iter().for_each(Link::close);
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        let Some(link) = self.link.take() else { return };
        if !self.answered || self.lanes.turns.is_closed() {
            link.close();
        }
        self.lanes.free.lock().unwrap_or_else(PoisonError::into_inner).push(link);
    }
}
