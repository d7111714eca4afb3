//! Reading a backup: what needs no key ([`inspect`], [`check`]), everything ([`verify`]), and only then the records.
//!
//! [`verify`] reads the whole file once: every digest, every tag, the order, the counts, the signature. Only what it returns has
//! records, and it reads the file a second time to hand them out, proving each chunk before its first record and comparing
//! the whole with the first pass at the end. A restore therefore commits to nothing before [`Records`] has ended without an
//! error. The source must be able to go back: spool what cannot (a pipe) into a file first. One chunk is held at a time.

use crate::chunk::{Chain, ChunkHead, Source};
use crate::crypt::{self, Cipher, FileKey, Unlock};
use crate::error::{Part, ReadError};
use crate::format::{FLAG_ZSTD, KIND_MANIFEST, KIND_RECORDS, KIND_SEAL, KIND_SUMMARY, MAX_CHUNK, OPTIONAL, SIGNATURE};
use crate::header::{self, Front, Head, Manifest};
use crate::hex::Hex;
use crate::record::{self, Record, Summary, Tally};
use crate::sign::Trust;
use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use zstd::bulk::Decompressor;

/// The header of a file, unproven: nothing but the header was read.
pub fn inspect(source: impl Read) -> Result<Head, ReadError> {
    Ok(header::read(&mut Source::new(source))?.head)
}

/// A file that is whole and signed; what is inside was not opened.
#[derive(Clone, PartialEq, Debug)]
pub struct Checked {
    pub head: Head,
    pub chunks: u64,
    pub bytes: u64,
    pub digest: crate::Digest,
}

/// Proves without a key that a file is whole, in order, and signed by whom `trust` says. For where backups are kept.
pub fn check(source: impl Read, trust: &Trust) -> Result<Checked, ReadError> {
    let mut walk = Walk::open(source, trust)?;
    while walk.step()? != Step::Sealed {}
    Ok(Checked { chunks: walk.number, bytes: walk.source.at(), digest: Hex(walk.sealed), head: walk.front.head })
}

/// Proves everything, and counts. Nothing of it is handed out before this has ended well.
pub fn verify<R: Read + Seek>(source: R, unlock: &Unlock, trust: &Trust) -> Result<Verified<R>, ReadError> {
    verify_each(source, unlock, trust, &mut |_, _| {})
}

/// The same, and shows key and value of each record on the way, when its own chunk was proven and the whole file was not. To look at, as
/// a check that comes for the price of this pass: what is concluded counts only once this has ended well.
pub fn verify_each<R: Read + Seek>(
    mut source: R,
    unlock: &Unlock,
    trust: &Trust,
    look: &mut dyn FnMut(&[u8], &[u8]),
) -> Result<Verified<R>, ReadError> {
    let start = source.stream_position().map_err(ReadError::Io)?;
    let mut walk = Walk::open(source, trust)?;
    let key = crypt::unlock(&walk.front.encryption, unlock, &walk.front.head.id)?;
    walk.opening = Some(Opening::new(key.clone(), &walk.front)?);
    let (mut tally, mut manifest, mut summary, mut skipped) = (Tally::new(), None, None, BTreeMap::new());
    loop {
        let part = Part::Chunk(walk.number);
        match walk.step()? {
            Step::Manifest => manifest = Some(json::<Manifest>(part, walk.plain())?),
            Step::Records => {
                let mut rest = walk.plain();
                while !rest.is_empty() {
                    let taken = record::take(rest).map_err(|bad| ReadError::malformed(part, bad))?;
                    tally.add(taken.key, taken.value).map_err(|bad| ReadError::malformed(part, bad))?;
                    look(taken.key, taken.value);
                    rest = taken.rest;
                }
            }
            Step::Summary => summary = Some((part, json::<Summary>(part, walk.plain())?)),
            Step::Skipped(kind) => *skipped.entry(kind).or_default() += 1,
            Step::Sealed => break,
        }
    }
    let ours = tally.finish();
    let (Some(manifest), Some((part, summary))) = (manifest, summary) else {
        return Err(ReadError::malformed(Part::Header, "no manifest or summary follows it"));
    };
    if ours != summary {
        return Err(ReadError::malformed(part, "it counts other records than there are"));
    }
    let (bytes, digest) = (walk.source.at(), walk.sealed);
    Ok(Verified {
        start,
        key,
        manifest,
        summary,
        skipped,
        bytes,
        digest,
        header: walk.front.digest,
        head: walk.front.head,
        source: walk.source.into_inner(),
    })
}

fn json<T: serde::de::DeserializeOwned>(part: Part, bytes: &[u8]) -> Result<T, ReadError> {
    serde_json::from_slice(bytes).map_err(|error| ReadError::malformed(part, error))
}

/// A file of which everything was proven.
pub struct Verified<R> {
    source: R,
    start: u64,
    key: Option<FileKey>,
    /// The header's digest; the second pass must meet the same.
    header: [u8; 32],
    digest: [u8; 32],
    head: Head,
    manifest: Manifest,
    summary: Summary,
    skipped: BTreeMap<u8, u64>,
    bytes: u64,
}

impl<R> Verified<R> {
    pub fn head(&self) -> &Head {
        &self.head
    }
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
    pub fn summary(&self) -> &Summary {
        &self.summary
    }
    /// Sections of a newer release that this one does not know and may leave out: kind, number of chunks. Tell the operator.
    pub fn skipped(&self) -> &BTreeMap<u8, u64> {
        &self.skipped
    }
    /// The length of the file.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }
    /// The same as [`crate::Written::digest`].
    pub fn digest(&self) -> crate::Digest {
        Hex(self.digest)
    }
}

impl<R: Read + Seek> Verified<R> {
    /// The records, in a second pass. Only when it ends without an error is what it gave the backup.
    pub fn records(mut self) -> Result<Records<R>, ReadError> {
        self.source.seek(SeekFrom::Start(self.start)).map_err(ReadError::Io)?;
        let mut walk = Walk::open(self.source, &Trust::Any)?;
        if walk.front.digest != self.header {
            return Err(ReadError::Changed);
        }
        walk.opening = Some(Opening::new(self.key, &walk.front)?);
        Ok(Records { walk, at: 0, digest: self.digest, summary: self.summary, over: false })
    }
}

impl<R: Read + Seek> Verified<R> {
    /// As [`Verified::records`], for whoever goes through the records more than once.
    pub fn pass(&mut self) -> Result<Records<&mut R>, ReadError> {
        self.source.seek(SeekFrom::Start(self.start)).map_err(ReadError::Io)?;
        let mut walk = Walk::open(&mut self.source, &Trust::Any)?;
        if walk.front.digest != self.header {
            return Err(ReadError::Changed);
        }
        walk.opening = Some(Opening::new(self.key.clone(), &walk.front)?);
        Ok(Records { walk, at: 0, digest: self.digest, summary: self.summary.clone(), over: false })
    }
}

/// The records of a verified file, in order of their keys. Ends at the first error.
pub struct Records<R> {
    walk: Walk<R>,
    at: usize,
    digest: [u8; 32],
    summary: Summary,
    over: bool,
}

impl<R> Records<R> {
    /// How much there is to come in all: for progress.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }
}

impl<R: Read> Records<R> {
    fn advance(&mut self) -> Result<Option<Record>, ReadError> {
        loop {
            if let Some(rest) = self.walk.plain().get(self.at..).filter(|rest| !rest.is_empty()) {
                let taken = record::take(rest).map_err(|_| ReadError::Changed)?;
                let record = Record { key: taken.key.to_vec(), value: taken.value.to_vec() };
                self.at += rest.len() - taken.rest.len();
                return Ok(Some(record));
            }
            self.at = match self.walk.step()? {
                Step::Records => 0,
                Step::Manifest | Step::Summary | Step::Skipped(_) => usize::MAX,
                Step::Sealed if self.walk.sealed == self.digest => return Ok(None),
                Step::Sealed => return Err(ReadError::Changed),
            };
        }
    }
}

impl<R: Read> Iterator for Records<R> {
    type Item = Result<Record, ReadError>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let next = self.advance();
        self.over = !matches!(next, Ok(Some(_)));
        next.transpose()
    }
}

/// What one chunk was.
#[derive(PartialEq)]
enum Step {
    Manifest,
    Records,
    Summary,
    /// A section that this release does not know and need not.
    Skipped(u8),
    Sealed,
}

/// What may come next.
#[derive(Clone, Copy, PartialEq)]
enum Stage {
    Manifest,
    Body,
    Seal,
}

/// Opens payloads; absent when a file is only checked.
struct Opening {
    cipher: Option<Cipher>,
    zstd: Decompressor<'static>,
}

impl Opening {
    fn new(key: Option<FileKey>, front: &Front) -> Result<Self, ReadError> {
        let lost = ReadError::Crypto("deriving keys");
        let cipher = key.map(|key| key.cipher(&front.head.id, front.digest).ok_or(lost)).transpose()?;
        Ok(Self { cipher, zstd: Decompressor::new().map_err(ReadError::Io)? })
    }
}

/// One way through a file, chunk by chunk.
struct Walk<R> {
    source: Source<R>,
    front: Front,
    opening: Option<Opening>,
    chain: Chain,
    /// The chain before the seal, once the seal was read.
    sealed: [u8; 32],
    number: u64,
    stage: Stage,
    payload: Vec<u8>,
    plain: Vec<u8>,
    /// The chunk was compressed: its bytes are in `plain`, else in `payload`.
    unpacked: bool,
}

impl<R: Read> Walk<R> {
    fn open(source: R, trust: &Trust) -> Result<Self, ReadError> {
        let mut source = Source::new(source);
        let front = header::read(&mut source)?;
        // The signature is at the end; a stranger's file is not read that far.
        if !trust.accepts(&front.head.signer) {
            let expected = if let Trust::Pinned(pins) = trust { pins.clone() } else { Vec::new() };
            let (cluster, found) = (front.head.cluster, front.head.signer.fingerprint());
            return Err(ReadError::ForeignSigner { cluster, found, expected });
        }
        let chain = Chain(front.digest);
        let (payload, plain) = (Vec::new(), Vec::new());
        Ok(Self {
            source,
            front,
            opening: None,
            chain,
            sealed: [0; 32],
            number: 0,
            stage: Stage::Manifest,
            payload,
            plain,
            unpacked: false,
        })
    }

    /// The bytes of the last chunk, when the file is being opened.
    fn plain(&self) -> &[u8] {
        if self.unpacked { &self.plain } else { &self.payload }
    }

    fn step(&mut self) -> Result<Step, ReadError> {
        let before = self.chain.0;
        let head = self.source.chunk(self.number, &self.front.head.id, &mut self.chain, &mut self.payload)?;
        self.number += 1;
        let part = Part::Chunk(head.number);
        let step = match (head.kind, self.stage) {
            (KIND_SEAL, Stage::Seal) => return self.seal(head, before),
            (KIND_MANIFEST, Stage::Manifest) => Step::Manifest,
            (KIND_RECORDS, Stage::Body) => Step::Records,
            (KIND_SUMMARY, Stage::Body) => Step::Summary,
            (kind, Stage::Body) if kind & OPTIONAL != 0 => Step::Skipped(kind),
            (kind, _) if kind & OPTIONAL != 0 || (KIND_MANIFEST..=KIND_SEAL).contains(&kind) => {
                return Err(ReadError::malformed(part, format!("a section of kind {kind} in this place")));
            }
            (kind, _) => return Err(self.newer(format!("sections of kind {kind}"))),
        };
        self.stage = if step == Step::Summary { Stage::Seal } else { Stage::Body };
        self.decrypt(&head, part)?;
        // What is skipped is proven like the rest, and not unpacked: how it is packed may be newer too.
        if !matches!(step, Step::Skipped(_)) {
            self.unpack(&head, part)?;
        }
        Ok(step)
    }

    fn newer(&self, needs: String) -> ReadError {
        ReadError::Newer { needs, written_by: Some(self.front.head.product.clone()) }
    }

    /// Decrypts the payload in place, if there is a key to do it with.
    fn decrypt(&mut self, head: &ChunkHead, part: Part) -> Result<(), ReadError> {
        self.unpacked = false;
        let Some(cipher) = self.opening.as_ref().and_then(|opening| opening.cipher.as_ref()) else { return Ok(()) };
        cipher.open(head.number, &head.bytes, &mut self.payload).ok_or(ReadError::Damaged(part))
    }

    /// Unpacks the payload, if the file is being opened.
    fn unpack(&mut self, head: &ChunkHead, part: Part) -> Result<(), ReadError> {
        if head.flags & !FLAG_ZSTD != 0 {
            return Err(self.newer(format!("flags {:#04x} of a section", head.flags)));
        }
        let Some(opening) = &mut self.opening else { return Ok(()) };
        if head.flags & FLAG_ZSTD == 0 {
            return bounded(part, self.payload.len() as u64).map(drop);
        }
        let short = || ReadError::malformed(part, "its compressed bytes");
        let (length, packed) = self.payload.split_first_chunk::<4>().ok_or_else(short)?;
        let length = bounded(part, u64::from(u32::from_be_bytes(*length)))?;
        self.plain.resize(length, 0);
        let unpacked = opening.zstd.decompress_to_buffer(packed, self.plain.as_mut_slice());
        self.unpacked = true;
        if unpacked.is_ok_and(|count| count == length) { Ok(()) } else { Err(short()) }
    }

    /// The last chunk: the signature holds, and nothing follows.
    fn seal(&mut self, head: ChunkHead, before: [u8; 32]) -> Result<Step, ReadError> {
        self.unpacked = false;
        if head.flags != 0 {
            return Err(self.newer(format!("flags {:#04x} of the seal", head.flags)));
        }
        if self.payload.len() != SIGNATURE || !self.front.head.signer.sealed(&before, &self.payload) {
            return Err(ReadError::BadSignature);
        }
        let at = self.source.at();
        if self.source.fill(&mut [0])? != 0 {
            return Err(ReadError::Trailing { at });
        }
        self.sealed = before;
        Ok(Step::Sealed)
    }
}

fn bounded(part: Part, length: u64) -> Result<usize, ReadError> {
    let too_large = || ReadError::TooLarge { what: part.to_string(), size: length, limit: MAX_CHUNK as u64 };
    usize::try_from(length).ok().filter(|length| *length <= MAX_CHUNK).ok_or_else(too_large)
}
