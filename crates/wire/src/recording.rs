//! The recording of one session as a file: what appeared on the terminal, when.
//!
//! Layout: the line `LGREC1\n`, then frames. A frame is: length of what follows the check (u32), check (8 bytes), kind
//! (u8), milliseconds since the start (u64), payload; integers big-endian. The check is the first 8 bytes of
//! SHA-256 over the previous frame's check and this frame's kind, time and payload, so that a changed, lost or re-ordered
//! frame is noticed; a torn last frame (`kill -9`) is the end, not an error. The first frame is the [`Header`] as JSON.
//! The agent writes with [`Writer`]; `tsh play` and the Auth's sink read with [`Reader`]. Kinds of a newer release are
//! skipped.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use types::{Extra, kind::Recording};

/// How every recording begins.
pub const MAGIC: &[u8] = b"LGREC1\n";
/// The most bytes of a frame after its check.
pub const MAX_FRAME: usize = 256 * 1024;
const FIXED: usize = 9;

/// What was recorded, and on what terminal.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Header {
    pub recording: Recording,
    /// Columns and rows; zero for an exec without a terminal.
    #[serde(default)]
    pub width: u32,
    #[serde(default)]
    pub height: u32,
    #[serde(default)]
    pub term: String,
    #[serde(flatten)]
    pub extra: Extra,
}

/// One thing that happened.
#[derive(Clone, PartialEq, Debug)]
pub struct Entry {
    /// Milliseconds since the session's start.
    pub at: u64,
    pub what: What,
}

#[derive(Clone, PartialEq, Debug)]
pub enum What {
    Header(Box<Header>),
    /// Bytes the user saw (standard output).
    Output(Bytes),
    /// Bytes on standard error of an exec.
    Stderr(Bytes),
    Resize {
        width: u32,
        height: u32,
    },
    /// Bytes not kept, because an exec without terminal wrote more than the limit: how many, on both streams.
    Omitted {
        bytes: u64,
    },
    /// The session's end: exit status, or the signal's name.
    End(End),
    /// Of a newer release.
    Unknown(u8),
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct End {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<String>,
}

/// Why bytes are not a recording.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadRecording {
    #[error("not a recording of Lockgate")]
    Foreign,
    #[error("frame {0} is damaged")]
    Damaged(u64),
    #[error("frame {0} is longer than {MAX_FRAME} bytes")]
    TooLong(u64),
    #[error("the header cannot be read: {0}")]
    Header(String),
}

/// Turns entries into bytes to append to a file.
#[derive(Default)]
pub struct Writer {
    check: [u8; 8],
    begun: bool,
}

impl Writer {
    pub fn new() -> Self {
        Self::default()
    }
    /// Bytes of one entry (several frames when a payload is long); the magic line precedes the first.
    pub fn encode(&mut self, at: u64, what: &What) -> Bytes {
        let mut out = BytesMut::new();
        if !self.begun {
            out.put_slice(MAGIC);
            self.begun = true;
        }
        match what {
            What::Header(header) => self.frame(&mut out, 0, at, &serde_json::to_vec(header).unwrap_or_default()),
            What::Output(bytes) => bytes.chunks(MAX_FRAME - FIXED).for_each(|part| self.frame(&mut out, 1, at, part)),
            What::Stderr(bytes) => bytes.chunks(MAX_FRAME - FIXED).for_each(|part| self.frame(&mut out, 2, at, part)),
            What::Resize { width, height } => {
                let (w, h) = (width.to_be_bytes(), height.to_be_bytes());
                self.frame(&mut out, 3, at, &[w, h].concat());
            }
            What::Omitted { bytes } => self.frame(&mut out, 4, at, &bytes.to_be_bytes()),
            What::End(end) => self.frame(&mut out, 5, at, &serde_json::to_vec(end).unwrap_or_default()),
            What::Unknown(kind) => self.frame(&mut out, *kind, at, &[]),
        }
        out.freeze()
    }

    fn frame(&mut self, out: &mut BytesMut, kind: u8, at: u64, payload: &[u8]) {
        let payload = payload.get(..MAX_FRAME - FIXED).unwrap_or(payload);
        self.check = check(&self.check, kind, at, payload);
        out.put_u32(u32::try_from(payload.len().saturating_add(FIXED)).unwrap_or(u32::MAX));
        out.put_slice(&self.check);
        out.put_u8(kind);
        out.put_u64(at);
        out.put_slice(payload);
    }
}

fn check(previous: &[u8; 8], kind: u8, at: u64, payload: &[u8]) -> [u8; 8] {
    let digest = Sha256::new().chain_update(previous).chain_update([kind]).chain_update(at.to_be_bytes()).chain_update(payload).finalize();
    digest.first_chunk().copied().unwrap_or_default()
}

/// Turns bytes, in pieces of any size, into entries.
#[derive(Default)]
pub struct Reader {
    buffer: BytesMut,
    check: [u8; 8],
    begun: bool,
    frames: u64,
}

impl Reader {
    pub fn new() -> Self {
        Self::default()
    }
    /// Adds bytes; then call [`Reader::next`] until it says `None`.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }
    /// The next whole entry; `None` when more bytes are needed (at the file's end: a torn tail, or nothing).
    #[allow(clippy::should_implement_trait, reason = "an iterator would hide that more bytes may come")]
    pub fn next(&mut self) -> Result<Option<Entry>, BadRecording> {
        if !self.begun {
            let known = self.buffer.len().min(MAGIC.len());
            if self.buffer.get(..known) != MAGIC.get(..known) {
                return Err(BadRecording::Foreign);
            }
            if known < MAGIC.len() {
                return Ok(None);
            }
            self.buffer.advance(MAGIC.len());
            self.begun = true;
        }
        let Some(header) = self.buffer.first_chunk::<4>() else { return Ok(None) };
        let len = usize::try_from(u32::from_be_bytes(*header)).unwrap_or(usize::MAX);
        if len > MAX_FRAME {
            return Err(BadRecording::TooLong(self.frames));
        }
        if len < FIXED {
            return Err(BadRecording::Damaged(self.frames));
        }
        if self.buffer.len() < len.saturating_add(12) {
            return Ok(None);
        }
        self.buffer.advance(4);
        let mut frame = self.buffer.split_to(len.saturating_add(8)).freeze();
        let mut said = [0; 8];
        frame.copy_to_slice(&mut said);
        let (kind, at) = (frame.get_u8(), frame.get_u64());
        if check(&self.check, kind, at, &frame) != said {
            return Err(BadRecording::Damaged(self.frames));
        }
        self.check = said;
        let what = self.what(kind, frame)?;
        self.frames = self.frames.saturating_add(1);
        Ok(Some(Entry { at, what }))
    }

    fn what(&self, kind: u8, mut payload: Bytes) -> Result<What, BadRecording> {
        let damaged = || BadRecording::Damaged(self.frames);
        Ok(match kind {
            0 => What::Header(Box::new(serde_json::from_slice(&payload).map_err(|error| BadRecording::Header(error.to_string()))?)),
            1 => What::Output(payload),
            2 => What::Stderr(payload),
            3 if payload.len() == 8 => What::Resize { width: payload.get_u32(), height: payload.get_u32() },
            4 if payload.len() == 8 => What::Omitted { bytes: payload.get_u64() },
            5 => What::End(serde_json::from_slice(&payload).map_err(|_| damaged())?),
            3 | 4 => return Err(damaged()),
            other => What::Unknown(other),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_all(bytes: &[u8], cut: usize) -> Result<Vec<Entry>, BadRecording> {
        let (mut reader, mut entries) = (Reader::new(), Vec::new());
        for part in bytes.chunks(cut) {
            reader.push(part);
            while let Some(entry) = reader.next()? {
                entries.push(entry);
            }
        }
        Ok(entries)
    }

    fn any_what() -> impl Strategy<Value = What> {
        prop_oneof![
            prop::collection::vec(any::<u8>(), 1..300).prop_map(|bytes| What::Output(bytes.into())),
            prop::collection::vec(any::<u8>(), 1..300).prop_map(|bytes| What::Stderr(bytes.into())),
            (any::<u32>(), any::<u32>()).prop_map(|(width, height)| What::Resize { width, height }),
            any::<u64>().prop_map(|bytes| What::Omitted { bytes }),
            any::<Option<u32>>().prop_map(|status| What::End(End { status, signal: None })),
        ]
    }

    proptest! {
        #[test]
        fn a_recording_survives_any_cutting(whats in prop::collection::vec(any_what(), 1..20), cut in 1usize..100) {
            let mut writer = Writer::new();
            let bytes: Vec<u8> = whats.iter().flat_map(|what| writer.encode(5, what)).collect();
            let got: Vec<What> = read_all(&bytes, cut).unwrap().into_iter().map(|entry| entry.what).collect();
            prop_assert_eq!(got, whats);
        }

        #[test]
        fn a_torn_tail_loses_only_the_last_entry(whats in prop::collection::vec(any_what(), 2..10), torn in 1usize..9) {
            let mut writer = Writer::new();
            let bytes: Vec<u8> = whats.iter().flat_map(|what| writer.encode(5, what)).collect();
            let got = read_all(&bytes[..bytes.len() - torn], 64).unwrap();
            prop_assert_eq!(got.len(), whats.len() - 1);
        }

        #[test]
        fn a_flipped_bit_is_noticed(byte in 7usize..200, bit in 0u8..8) {
            let mut writer = Writer::new();
            let mut bytes: Vec<u8> = (0..10).flat_map(|i| writer.encode(i, &What::Output(Bytes::from_static(b"some output")))).collect();
            bytes[byte] ^= 1 << bit;
            // Either an error, or (a length made longer) fewer entries: never ten that differ.
            let whole = read_all(&bytes, 4096);
            prop_assert!(whole.is_err() || whole.unwrap().len() < 10);
        }

        #[test]
        fn attack_row_21_any_bytes_are_read_without_panic_or_large_allocation(bytes in prop::collection::vec(any::<u8>(), 0..500), magic in any::<bool>()) {
            let mut stream = if magic { MAGIC.to_vec() } else { Vec::new() };
            stream.extend(bytes);
            let _outcome = read_all(&stream, 7);
        }
    }
}
