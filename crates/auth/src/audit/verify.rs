//! Proves the log: every link of every chain in every sink, the anchors in the store, and that the sinks say the same.
//!
//! A chain holds when each line follows on the one before, from a beginning that is accounted for (the cluster's birth, a restore,
//! or a removal by retention that an event of the log tells of) to an end that is not before what the store has seen. The first
//! line that does not is named. Files and PostgreSQL agree when their hashes at one place are equal: all before are then, too.

use super::{
    Anchor, Audit, AuditError, Known,
    retention::removal,
    sink::{Extent, Lines, Sink, SinkError},
};
use std::collections::{BTreeMap, HashSet};
use types::HostId;
use wire::audit::{Broken, Digest, Head};

/// What the store knows of every Auth Service's log.
pub(crate) type AllKnown = BTreeMap<HostId, Known>;

/// One chain in one sink.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct ChainVerdict {
    pub(crate) chain: HostId,
    pub(crate) name: String,
    pub(crate) sink: &'static str,
    pub(crate) begin: u64,
    /// Behind the last event whose link holds.
    pub(crate) end: Head,
    /// The first thing that is wrong.
    pub(crate) fault: Option<String>,
    /// What is no fault and should be known; empty when there is nothing.
    pub(crate) note: String,
}

/// What verification came to: each chain, this Auth Service's files first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Verdict {
    pub(crate) chains: Vec<ChainVerdict>,
    /// What could not be looked at.
    pub(crate) unseen: Option<String>,
}

impl Verdict {
    /// The first fault, and whose.
    pub(crate) fn fault(&self) -> Option<String> {
        let broken = self.chains.iter().find_map(|chain| {
            let fault = chain.fault.as_ref()?;
            Some(if chain.sink == "files" { fault.clone() } else { format!("{fault} (the log of {} in {})", chain.name, chain.sink) })
        });
        broken.or_else(|| self.unseen.clone())
    }
    pub(crate) fn note(&self) -> String {
        let notes = self.chains.iter().filter(|chain| !chain.note.is_empty());
        let told =
            notes.map(
                |chain| {
                    if chain.sink == "files" { chain.note.clone() } else { format!("{} in {}: {}", chain.name, chain.sink, chain.note) }
                },
            );
        told.collect::<Vec<_>>().join("; ")
    }
}

/// Follows one chain.
struct Walk<'a> {
    sink: &'a dyn Sink,
    extent: &'a Extent,
    anchors: Vec<Head>,
    /// Places that the store has seen and that were met here.
    met: usize,
    head: Head,
    fault: Option<String>,
}

impl Walk<'_> {
    /// To the end; what it meets of removals is told to `removals`.
    async fn go(&mut self, removals: &mut HashSet<(HostId, u64, Digest)>) -> Result<(), SinkError> {
        let mut lines = self.sink.read(self.extent.chain, self.head.events);
        self.meet();
        while self.head.events < self.extent.end.events {
            let batch = match lines.next().await {
                Ok(batch) => batch,
                Err(SinkError::Damaged { place, detail }) => {
                    self.fault = Some(format!("{detail} ({place})"));
                    return Ok(());
                }
                Err(error) => return Err(error),
            };
            if batch.is_empty() {
                self.fault = Some(Broken::Missing { index: self.head.events }.to_string());
                return Ok(());
            }
            for line in batch.iter().take_while(|line| line.index < self.extent.end.events) {
                if let Err(broken) = self.head.follow(line.parts()) {
                    self.fault = Some(broken.to_string());
                    return Ok(());
                }
                if let Some((chain, at)) = removal(&line.event) {
                    removals.insert((chain, at.events, at.hash));
                }
                self.meet();
                if self.fault.is_some() {
                    return Ok(());
                }
            }
            if batch.last().is_some_and(|last| last.index >= self.extent.end.events) && self.head.events < self.extent.end.events {
                self.fault = Some(Broken::Missing { index: self.head.events }.to_string());
                return Ok(());
            }
        }
        if self.head.hash != self.extent.end.hash {
            self.fault = Some(format!("the log's end is not the one that was written (event {})", self.head.events.saturating_sub(1)));
        }
        Ok(())
    }

    /// Compares with what the store has seen at this place.
    fn meet(&mut self) {
        for anchor in self.anchors.iter().filter(|anchor| anchor.events == self.head.events) {
            if anchor.hash == self.head.hash {
                self.met = self.met.saturating_add(1);
            } else {
                self.fault = Some(REPLACED.into());
            }
        }
    }
}

const REPLACED: &str = "events that were acknowledged are gone, or were replaced";

impl Audit {
    /// Reads everything there is, as far as it is written now.
    pub(crate) async fn verify(&self, known: &AllKnown) -> Result<Verdict, AuditError> {
        let (mut chains, mut removals, mut unseen) = (Vec::new(), HashSet::new(), None);
        for extent in self.files().chains().await? {
            chains.push((self.walk(self.files(), &extent, known, &mut removals).await?, extent));
        }
        if let Some(sink) = self.postgres() {
            let looked = async {
                for extent in sink.chains().await? {
                    chains.push((self.walk(sink, &extent, known, &mut removals).await?, extent));
                }
                let seen: Vec<HostId> =
                    chains.iter().filter(|(verdict, _)| verdict.sink == sink.name()).map(|(verdict, _)| verdict.chain).collect();
                let gone =
                    known.iter().find(|(chain, known)| !seen.contains(*chain) && known.shipped().is_some_and(|head| head.events > 0));
                Ok::<_, SinkError>(gone.map(|(chain, _)| format!("the log of {chain} is gone from {}", sink.place())))
            };
            unseen = match looked.await {
                Ok(gone) => gone,
                Err(error) => Some(format!("PostgreSQL could not be verified: {error}")),
            };
            self.compare(sink, &mut chains).await?;
        }
        for (verdict, extent) in &mut chains {
            self.account(verdict, extent, known.get(&extent.chain), &removals);
        }
        Ok(Verdict { chains: chains.into_iter().map(|(verdict, _)| verdict).collect(), unseen })
    }

    async fn walk(
        &self,
        sink: &dyn Sink,
        extent: &Extent,
        known: &AllKnown,
        removals: &mut HashSet<(HostId, u64, Digest)>,
    ) -> Result<ChainVerdict, SinkError> {
        let own = sink.name() == self.files().name();
        let anchor = known.get(&extent.chain).and_then(|known| known.anchor.as_ref());
        let anchors = anchor.map(|Anchor { head, shipped }| [Some(*head), *shipped].into_iter().flatten().collect()).unwrap_or_default();
        let mut walk = Walk { sink, extent, anchors, met: 0, head: extent.begin.head, fault: None };
        walk.go(removals).await?;
        // What must be here at least: the files have all that was written, PostgreSQL what had arrived.
        let least = anchor.and_then(|anchor| if own { Some(anchor.head) } else { anchor.shipped });
        let mut fault = walk.fault;
        if fault.is_none() && least.is_some_and(|least| least.events > walk.head.events) {
            fault = Some(REPLACED.into());
        }
        let waits = anchor.map_or(0, |anchor| anchor.head.events.saturating_sub(walk.head.events));
        let note =
            if own || waits == 0 { String::new() } else { format!("{waits} events had not arrived when its Auth Service was last heard") };
        let fault = fault.map(|fault| if own { self.located(&fault, walk.head.events) } else { fault });
        Ok(ChainVerdict {
            chain: extent.chain,
            name: extent.name.clone(),
            sink: sink.name(),
            begin: extent.begin.head.events,
            end: walk.head,
            fault,
            note,
        })
    }

    /// With the file in which it is, once.
    fn located(&self, fault: &str, index: u64) -> String {
        if fault.ends_with(')') || fault == REPLACED { fault.to_owned() } else { format!("{fault} ({})", self.files().file_of(index)) }
    }

    /// This Auth Service's chain here and there.
    async fn compare(&self, sink: &dyn Sink, chains: &mut [(ChainVerdict, Extent)]) -> Result<(), AuditError> {
        let own = self.chain();
        let Some(here) = chains.iter().find(|(verdict, _)| verdict.sink == self.files().name()).map(|(verdict, _)| verdict.clone()) else {
            return Ok(());
        };
        let Some((there, _)) = chains.iter_mut().find(|(verdict, _)| verdict.chain == own && verdict.sink == sink.name()) else {
            return Ok(());
        };
        if here.fault.is_some() || there.fault.is_some() {
            return Ok(());
        }
        let upto = here.end.events.min(there.end.events);
        if upto <= here.begin || (upto == there.end.events && self.files().hash_before(upto).await?.is_none_or(|head| head == there.end)) {
            return Ok(());
        }
        let from = here.begin.max(there.begin);
        let (mut ours, mut theirs) = (Stepping::new(self.files().read(own, from)), Stepping::new(sink.read(own, from)));
        for index in from..upto {
            if ours.next().await? != theirs.next().await? {
                there.fault = Some(format!("event {index} is not the one in the files"));
                return Ok(());
            }
        }
        if there.end.events > here.end.events {
            there.fault = Some(format!("it has {} events, but the files have {}", there.end.events, here.end.events));
        }
        Ok(())
    }

    /// Whether the beginning is accounted for.
    fn account(&self, verdict: &mut ChainVerdict, extent: &Extent, known: Option<&Known>, removals: &HashSet<(HostId, u64, Digest)>) {
        let begin = extent.begin.head;
        let origin = known.and_then(|known| known.origin.as_ref());
        let mut notes = Vec::new();
        if let Some(origin) = origin.filter(|origin| *origin.head() == begin) {
            notes.push(origin.note());
        } else if removals.contains(&(extent.chain, begin.events, begin.hash)) {
            notes.push(format!("the events before {} were removed by retention", begin.events));
        } else if begin != Head::genesis(&self.cluster()) && verdict.fault.is_none() {
            verdict.fault = Some(format!("the events before {} are gone, and no event tells of a removal", begin.events));
        }
        if !verdict.note.is_empty() {
            notes.push(std::mem::take(&mut verdict.note));
        }
        verdict.note = notes.join("; ");
    }
}

/// One hash after the other.
struct Stepping {
    lines: Box<dyn Lines>,
    batch: std::vec::IntoIter<wire::audit::Line>,
}

impl Stepping {
    fn new(lines: Box<dyn Lines>) -> Self {
        Self { lines, batch: Vec::new().into_iter() }
    }
    async fn next(&mut self) -> Result<Option<(u64, Digest)>, SinkError> {
        if self.batch.len() == 0 {
            self.batch = self.lines.next().await?.into_iter();
        }
        Ok(self.batch.next().map(|line| (line.index, line.hash)))
    }
}
