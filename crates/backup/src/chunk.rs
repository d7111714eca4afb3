//! Chunks as they stand in the file: head, payload, digest. What is inside the payload is for `read` and `write`.
//!
//! Promises, without any key: a chunk that is damaged, not in its place, or of another file is told as exactly that; nothing
//! is allocated before its length is known to be within bounds, and then only as the bytes arrive. The running chain covers the
//! front and every chunk in order, and is what the seal signs.

use crate::error::{Part, ReadError};
use crate::format::{CHUNK_HEAD, MAX_STORED};
use crate::header::BackupId;
use aws_lc_rs::digest::{Context, SHA256};
use std::io::{ErrorKind, Read};

/// A chunk without its payload.
#[derive(Clone, Copy)]
pub(crate) struct ChunkHead {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) number: u64,
    /// As it stands in the file; encryption is bound to it.
    pub(crate) bytes: [u8; CHUNK_HEAD],
}

impl ChunkHead {
    /// `length` is of the payload in the file, with its tag.
    pub(crate) fn new(kind: u8, flags: u8, file: &BackupId, number: u64, length: u32) -> Self {
        let mut bytes = [0; CHUNK_HEAD];
        let parts = [kind, flags].into_iter().chain(tag_of(file)).chain(number.to_be_bytes()).chain(length.to_be_bytes());
        bytes.iter_mut().zip(parts).for_each(|(to, from)| *to = from);
        Self { kind, flags, number, bytes }
    }
}

/// The first half of the file's number.
fn tag_of(file: &BackupId) -> [u8; 8] {
    file.0.0.first_chunk().copied().unwrap_or_default()
}

/// The digest of everything up to and including the last chunk.
#[derive(Clone, Copy)]
pub(crate) struct Chain(pub(crate) [u8; 32]);

impl Chain {
    pub(crate) fn add(&mut self, digest: &[u8; 32]) {
        self.0 = sha256(&[&self.0, digest]);
    }
}

/// What stands behind a payload.
pub(crate) fn digest_of(head: &ChunkHead, payload: &[u8]) -> [u8; 32] {
    sha256(&[&head.bytes, payload])
}

fn sha256(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    context.finish().as_ref().try_into().unwrap_or_default()
}

/// Bytes with a count, so that an end too early has its place.
pub(crate) struct Source<R> {
    inner: R,
    at: u64,
}

impl<R: Read> Source<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, at: 0 }
    }
    pub(crate) fn into_inner(self) -> R {
        self.inner
    }
    /// How many bytes were read.
    pub(crate) fn at(&self) -> u64 {
        self.at
    }
    pub(crate) fn cut(&self) -> ReadError {
        ReadError::Truncated { at: self.at }
    }

    /// Fills as much as there is.
    pub(crate) fn fill(&mut self, to: &mut [u8]) -> Result<usize, ReadError> {
        let mut filled = 0;
        while let Some(rest) = to.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.inner.read(rest) {
                Ok(0) => break,
                Ok(count) => filled += count.min(rest.len()),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(ReadError::Io(error)),
            }
        }
        self.at += filled as u64;
        Ok(filled)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], ReadError> {
        let mut array = [0; N];
        if self.fill(&mut array)? == N { Ok(array) } else { Err(self.cut()) }
    }

    /// `length` bytes into a buffer that is used again; grows only as bytes arrive.
    pub(crate) fn read_into(&mut self, to: &mut Vec<u8>, what: &str, length: u64, limit: usize) -> Result<(), ReadError> {
        to.clear();
        if length > limit as u64 {
            return Err(ReadError::TooLarge { what: what.to_owned(), size: length, limit: limit as u64 });
        }
        let got = self.inner.by_ref().take(length).read_to_end(to).map_err(ReadError::Io)?;
        self.at += got as u64;
        if got as u64 == length { Ok(()) } else { Err(self.cut()) }
    }

    pub(crate) fn bytes(&mut self, what: &str, length: u64, limit: usize) -> Result<Vec<u8>, ReadError> {
        let mut bytes = Vec::new();
        self.read_into(&mut bytes, what, length, limit).map(|()| bytes)
    }

    /// Reads chunk number `expected` of that file; its payload as it stands goes into the buffer.
    pub(crate) fn chunk(
        &mut self,
        expected: u64,
        file: &BackupId,
        chain: &mut Chain,
        payload: &mut Vec<u8>,
    ) -> Result<ChunkHead, ReadError> {
        let bytes: [u8; CHUNK_HEAD] = self.array()?;
        let [kind, flags, tag @ .., n0, n1, n2, n3, n4, n5, n6, n7, l0, l1, l2, l3] = bytes;
        let head = ChunkHead { kind, flags, number: u64::from_be_bytes([n0, n1, n2, n3, n4, n5, n6, n7]), bytes };
        let length = u32::from_be_bytes([l0, l1, l2, l3]);
        self.read_into(payload, &Part::Chunk(expected).to_string(), u64::from(length), MAX_STORED)?;
        let claimed: [u8; 32] = self.array()?;
        let digest = digest_of(&head, payload);
        if digest != claimed {
            return Err(ReadError::Damaged(Part::Chunk(expected)));
        }
        // Whole, but is it the one that belongs here?
        if tag != tag_of(file) {
            return Err(ReadError::Spliced(expected));
        }
        if head.number != expected {
            return Err(ReadError::OutOfOrder { expected, found: head.number });
        }
        chain.add(&digest);
        Ok(head)
    }
}
