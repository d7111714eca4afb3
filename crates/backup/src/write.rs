//! Writing a backup: front, manifest, records as they come, summary, seal. One chunk is held at a time.
//!
//! Whoever writes into a file writes beside its place and renames after [`Writer::finish`]: until then it is not a backup. A chunk
//! that does not get smaller is stored as it is.

use crate::chunk::{Chain, ChunkHead, digest_of};
use crate::crypt::{Cipher, Protection};
use crate::error::WriteError;
use crate::format::{CHUNK, FLAG_ZSTD, KIND_MANIFEST, KIND_RECORDS, KIND_SEAL, KIND_SUMMARY, MAX_CHUNK, OPTIONAL, RECORD_HEAD, TAG};
use crate::header::{self, Head, Manifest, Origin};
use crate::hex::Hex;
use crate::keys::Entropy;
use crate::record::{self, Summary, Tally};
use crate::sign::{Signer, seal_message};
use std::io::{self, Write};
use zstd::bulk::Compressor;

/// Zstandard's own default: a quarter of the time of level 9 for a few per cent more bytes.
const LEVEL: i32 = 3;

/// Fewer bytes are stored as they are: nothing worth having comes of compressing them.
const WORTH_PACKING: usize = 512;

/// Writes one backup into any sink.
pub struct Writer<W: Write> {
    sink: W,
    head: Head,
    signer: Box<dyn Signer>,
    cipher: Option<Cipher>,
    zstd: Compressor<'static>,
    chain: Chain,
    number: u64,
    written: u64,
    tally: Tally,
    /// Records not written yet.
    plain: Vec<u8>,
    payload: Vec<u8>,
    packed: Vec<u8>,
    gave_up: bool,
}

/// A backup that is complete.
#[derive(Clone, PartialEq, Debug)]
pub struct Written {
    pub head: Head,
    pub summary: Summary,
    /// The length of the file.
    pub bytes: u64,
    /// What the signature is over: the digest of everything before the seal.
    pub digest: crate::Digest,
}

impl<W: Write> Writer<W> {
    /// Writes the front and the manifest. `entropy` is asked for keys, here only.
    pub fn create(
        sink: W,
        origin: &Origin,
        manifest: &Manifest,
        protection: &Protection,
        signer: Box<dyn Signer>,
        entropy: Entropy<'_>,
    ) -> Result<Self, WriteError> {
        let (bytes, front, key) = header::make(origin, protection, signer.public_key(), entropy)?;
        let lost = WriteError::Crypto("deriving keys");
        let cipher = key.map(|key| key.cipher(&front.head.id, front.digest).ok_or(lost)).transpose()?;
        let mut writer = Self {
            sink,
            head: front.head,
            signer,
            cipher,
            zstd: Compressor::new(LEVEL)?,
            chain: Chain(front.digest),
            number: 0,
            written: 0,
            tally: Tally::new(),
            plain: Vec::new(),
            payload: Vec::new(),
            packed: Vec::new(),
            gave_up: false,
        };
        writer.put(&bytes)?;
        writer.section_of(KIND_MANIFEST, &serde_json::to_vec(manifest).map_err(io::Error::from)?)?;
        Ok(writer)
    }

    /// What the file says about itself.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// The next record; keys must grow.
    pub fn record(&mut self, key: &[u8], value: &[u8]) -> Result<(), WriteError> {
        self.still_good()?;
        self.tally.add(key, value)?;
        if !self.plain.is_empty() && self.plain.len() + RECORD_HEAD + key.len() + value.len() > CHUNK {
            self.flush()?;
        }
        record::put(&mut self.plain, key, value)?;
        Ok(())
    }

    /// A section that readers who do not know its kind (128 to 255) skip. Compressed and encrypted like records.
    pub fn section(&mut self, kind: u8, bytes: &[u8]) -> Result<(), WriteError> {
        self.still_good()?;
        if kind & OPTIONAL == 0 || bytes.len() > MAX_CHUNK {
            return Err(WriteError::Section { kind, size: bytes.len() });
        }
        self.flush()?;
        self.section_of(kind, bytes)
    }

    /// Writes the summary and the seal, and flushes the sink. Only now it is a backup.
    pub fn finish(mut self) -> Result<(Written, W), WriteError> {
        self.still_good()?;
        self.flush()?;
        let summary = std::mem::take(&mut self.tally).finish();
        self.section_of(KIND_SUMMARY, &serde_json::to_vec(&summary).map_err(io::Error::from)?)?;
        let digest = Hex(self.chain.0);
        self.payload.clear();
        self.payload.extend(self.signer.sign(&seal_message(&self.chain.0))?);
        let head = self.next_head(KIND_SEAL, 0, 0)?;
        self.put_chunk(head)?;
        self.sink.flush()?;
        Ok((Written { head: self.head, summary, bytes: self.written, digest }, self.sink))
    }

    fn still_good(&self) -> Result<(), WriteError> {
        if self.gave_up { Err(WriteError::GivenUp) } else { Ok(()) }
    }

    /// Writes the records that wait.
    fn flush(&mut self) -> Result<(), WriteError> {
        if self.plain.is_empty() {
            return Ok(());
        }
        let plain = std::mem::take(&mut self.plain);
        let done = self.section_of(KIND_RECORDS, &plain);
        self.plain = plain;
        self.plain.clear();
        done
    }

    fn section_of(&mut self, kind: u8, plain: &[u8]) -> Result<(), WriteError> {
        let flags = self.pack(plain)?;
        let head = self.next_head(kind, flags, if self.cipher.is_some() { TAG } else { 0 })?;
        if let Some(cipher) = &self.cipher {
            cipher.seal(head.number, &head.bytes, &mut self.payload).ok_or(WriteError::Crypto("encrypting a chunk"))?;
        }
        self.put_chunk(head)
    }

    /// Fills the payload: compressed if that is shorter.
    fn pack(&mut self, plain: &[u8]) -> Result<u8, WriteError> {
        self.payload.clear();
        self.packed.clear();
        let mut length = plain.len();
        if length >= WORTH_PACKING {
            self.packed.reserve(zstd::zstd_safe::compress_bound(plain.len()));
            length = self.zstd.compress_to_buffer(plain, &mut self.packed)?;
        }
        if length + 4 >= plain.len() {
            self.payload.extend_from_slice(plain);
            return Ok(0);
        }
        self.payload.extend(u32::try_from(plain.len()).map_err(io::Error::other)?.to_be_bytes());
        self.payload.extend_from_slice(&self.packed);
        Ok(FLAG_ZSTD)
    }

    /// The head of the chunk whose payload is ready; `more` bytes will be added to it.
    fn next_head(&self, kind: u8, flags: u8, more: usize) -> Result<ChunkHead, WriteError> {
        let length = u32::try_from(self.payload.len() + more).map_err(io::Error::other)?;
        Ok(ChunkHead::new(kind, flags, &self.head.id, self.number, length))
    }

    fn put_chunk(&mut self, head: ChunkHead) -> Result<(), WriteError> {
        let digest = digest_of(&head, &self.payload);
        let payload = std::mem::take(&mut self.payload);
        let done = self.put(&head.bytes).and_then(|()| self.put(&payload)).and_then(|()| self.put(&digest));
        self.payload = payload;
        self.chain.add(&digest);
        self.number += 1;
        done
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), WriteError> {
        let done = self.sink.write_all(bytes);
        self.gave_up |= done.is_err();
        self.written += bytes.len() as u64;
        Ok(done?)
    }
}
