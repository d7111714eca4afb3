//! Feeds the watches: one watch of etcd for a handle, from where it last was, whatever happens to the connection.

use super::client::{Fault, What};
use super::layout::Head;
use super::past::Stream;
use super::reader::Reader;
use crate::remote::pause;
use crate::watch::Hub;
use std::sync::Arc;

pub(super) struct Pump {
    reader: Arc<Reader>,
    hub: Arc<Hub>,
    /// The last transaction that was passed on.
    last: Head,
    attempt: u32,
}

impl Pump {
    pub(super) fn new(reader: Arc<Reader>, hub: Arc<Hub>, last: Head) -> Self {
        Self { reader, hub, last, attempt: 0 }
    }

    /// Until closed.
    pub(super) async fn run(mut self) {
        let closed = self.reader.closed.clone();
        loop {
            let fault = tokio::select! {
                () = closed.cancelled() => return,
                fault = self.follow() => fault,
            };
            // Said once, not many times a second.
            if self.attempt == 0 {
                tracing::warn!(place = self.reader.client.place(), ?fault, "the watch of etcd broke; starting it again");
            }
            tokio::select! {
                () = closed.cancelled() => return,
                () = tokio::time::sleep(pause(self.attempt)) => {}
            }
            self.attempt = self.attempt.saturating_add(1);
        }
    }

    /// Follows etcd until something fails.
    async fn follow(&mut self) -> Fault {
        loop {
            if let Err(fault) = self.verify().await {
                return fault;
            }
            let mut stream = match Stream::open(&self.reader, self.last.at + 1).await {
                Ok(stream) => stream,
                Err(fault) => return fault,
            };
            loop {
                match stream.next(&self.reader).await {
                    Ok((head, commits)) => {
                        self.attempt = 0;
                        self.last = head;
                        self.hub.publish(commits.into_iter().map(Arc::new));
                    }
                    // What is between is gone: those who still need it are told when they ask for it.
                    Err(Fault { what: What::Compacted, .. }) => break,
                    Err(fault) => return fault,
                }
            }
            match self.reader.head().await {
                Ok(head) => {
                    self.hub.advance(head.revision);
                    self.last = head;
                }
                Err(error) => return Fault { what: What::Store(error), sure: true },
            }
        }
    }

    /// Whether this is still the etcd that was followed: one restored from a copy has gone back.
    async fn verify(&mut self) -> Result<(), Fault> {
        let same = match self.reader.head_at(self.last.at).await {
            Ok(head) => head.as_ref() == Some(&self.last),
            Err(Fault { what: What::Compacted, .. }) => return Ok(()),
            Err(Fault { what: What::Future, .. }) => false,
            Err(fault) => return Err(fault),
        };
        if !same {
            let head = self.reader.head().await.map_err(|error| Fault { what: What::Store(error), sure: true })?;
            tracing::warn!(
                place = self.reader.client.place(),
                had = self.last.revision,
                has = head.revision,
                "etcd has gone back; all watches start anew"
            );
            self.hub.rewind(head.revision);
            self.last = head;
        }
        Ok(())
    }
}
