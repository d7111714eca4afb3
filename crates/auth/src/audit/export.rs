//! The log as JSON lines that prove themselves: of each chain one piece without a gap, from the first event of the period to the
//! last, with what lies between them (an agent that was offline delivers later).
//!
//! Read in batches and handed on in pieces, so that memory stays the same whatever the log's size. With PostgreSQL the export is
//! everybody's, and the end that has not arrived there comes from the files; when it cannot be read there is no export, rather
//! than half of one. Verified without a cluster by `wire::audit::Runs`.

use super::{
    Audit, AuditError,
    sink::{Sink, SinkError},
};
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio::sync::mpsc;
use types::{HostId, Time};
use wire::audit::Digest;

/// Bytes handed on at once.
const PIECE: usize = 256 << 10;

/// What was exported of one chain.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(crate) struct Exported {
    pub(crate) instance: HostId,
    pub(crate) name: String,
    pub(crate) first: u64,
    pub(crate) last: u64,
    /// Of the last.
    pub(crate) hash: Digest,
}

/// The part of a chain that comes from one sink.
struct Piece<'a> {
    sink: &'a dyn Sink,
    from: u64,
    to: u64,
}

impl Audit {
    /// Sends the lines; what they were. Ends when nobody takes them any more.
    pub(crate) async fn export(
        &self,
        from: Option<Time>,
        to: Option<Time>,
        lines: &mpsc::Sender<Bytes>,
    ) -> Result<Vec<Exported>, AuditError> {
        let mut done = Vec::new();
        let own = self.chain();
        let there = match self.postgres() {
            Some(sink) => sink.chains().await?,
            None => Vec::new(),
        };
        for extent in there.iter().filter(|extent| extent.chain != own) {
            let Some(sink) = self.postgres() else { break };
            if let Some((first, end)) = sink.span(extent.chain, from, to).await? {
                let pieces = [Piece { sink, from: first, to: end }];
                done.extend(send(extent.chain, &extent.name, extent.begin.head.events, extent.begin.head.hash, &pieces, lines).await?);
            }
        }
        done.extend(self.export_own(&there, from, to, lines).await?);
        Ok(done)
    }

    async fn export_own(
        &self,
        there: &[super::sink::Extent],
        from: Option<Time>,
        to: Option<Time>,
        lines: &mpsc::Sender<Bytes>,
    ) -> Result<Option<Exported>, AuditError> {
        let (own, files) = (self.chain(), self.files());
        let Some(here) = files.chains().await?.into_iter().next() else { return Ok(None) };
        let arrived = there.iter().find(|extent| extent.chain == own);
        let mut begin = here.begin.head;
        let mut span = files.span(own, from, to).await?;
        let mut pieces = Vec::new();
        if let (Some(sink), Some(arrived)) = (self.postgres(), arrived)
            && arrived.begin.head.events < here.begin.head.events
        {
            // PostgreSQL keeps more of the past.
            begin = arrived.begin.head;
            if let Some((first, end)) = sink.span(own, from, to).await? {
                span = Some(span.map_or((first, end), |(there, last)| (first.min(there), end.max(last))));
                let seam = span.map_or(end, |(_, last)| last.min(here.begin.head.events));
                if first < seam {
                    pieces.push(Piece { sink, from: first, to: seam });
                }
            }
        }
        let Some((first, end)) = span else { return Ok(None) };
        let first = first.max(here.begin.head.events);
        if first < end {
            pieces.push(Piece { sink: files, from: first, to: end });
        }
        Ok(send(own, &here.name, begin.events, begin.hash, &pieces, lines).await?)
    }
}

async fn send(
    chain: HostId,
    name: &str,
    begin: u64,
    begin_hash: Digest,
    pieces: &[Piece<'_>],
    lines: &mpsc::Sender<Bytes>,
) -> Result<Option<Exported>, SinkError> {
    let mut done: Option<Exported> = None;
    let mut waiting = BytesMut::new();
    for piece in pieces {
        // One before, for its hash.
        let from = if piece.from > begin { piece.from.saturating_sub(1) } else { piece.from };
        let mut prev = (piece.from <= begin).then_some(begin_hash);
        let mut reader = piece.sink.read(chain, from);
        let mut next = from;
        while next < piece.to {
            let batch = reader.next().await?;
            if batch.is_empty() {
                break;
            }
            for line in batch.iter().take_while(|line| line.index < piece.to) {
                next = line.index.saturating_add(1);
                if line.index < piece.from {
                    prev = Some(line.hash);
                    continue;
                }
                let before = if done.is_none() { prev } else { None };
                waiting.extend_from_slice(&line.parts().export(chain, before));
                let first = done.as_ref().map_or(line.index, |done| done.first);
                done = Some(Exported { instance: chain, name: name.to_owned(), first, last: line.index, hash: line.hash });
                if waiting.len() >= PIECE && lines.send(waiting.split().freeze()).await.is_err() {
                    return Err(SinkError::Closed);
                }
            }
            if batch.last().is_some_and(|last| last.index >= piece.to) {
                break;
            }
        }
    }
    if !waiting.is_empty() && lines.send(waiting.freeze()).await.is_err() {
        return Err(SinkError::Closed);
    }
    Ok(done)
}
