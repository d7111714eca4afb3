//! Bytes from the client on their way to a program that may read slowly, or never.
//!
//! The connection's loop must never wait for one channel's program: that would stop its neighbours, and the program's own
//! output, without which it may never read again. russh grants a channel new window as soon as bytes arrive, whoever has
//! read them; so they are taken at once, kept in memory up to [`MEMORY`], then in a nameless file, up to [`MOST`]. What
//! normally keeps the queue short is [`super::stream::Flow`], which stops reading from the network. Written by the handler,
//! read by the session's input pump.

use super::stream::Flow;
use bytes::Bytes;
use std::{
    collections::VecDeque,
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::sync::Notify;

/// Bytes kept in memory, per channel.
pub(crate) const MEMORY: usize = 1 << 20;
/// The most bytes kept at all, per channel.
pub(crate) const MOST: u64 = 1 << 30;
const PIECE: usize = 256 * 1024;

/// Why no more bytes are taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Overflow {
    #[error("more than {MOST} bytes wait for a program that does not read them")]
    TooMuch,
    #[error("bytes that wait for a program cannot be kept: {0}")]
    Spill(#[from] io::Error),
}

/// A queue with one writer and one reader.
#[derive(Debug)]
pub(crate) struct Input {
    inner: Mutex<Inner>,
    more: Notify,
    flow: Arc<Flow>,
    spill_dir: PathBuf,
}

#[derive(Debug, Default)]
struct Inner {
    memory: VecDeque<Bytes>,
    memory_len: usize,
    spill: Option<Spill>,
    ended: bool,
    abandoned: bool,
}

/// What did not fit into memory; read to its end before memory is used again.
#[derive(Debug)]
struct Spill {
    file: File,
    read: u64,
    written: u64,
}

impl Input {
    pub(crate) fn new(flow: Arc<Flow>, spill_dir: PathBuf) -> Arc<Self> {
        flow.opened();
        Arc::new(Self { inner: Mutex::default(), more: Notify::new(), flow, spill_dir })
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes bytes; never waits. After an end or when nobody reads any more they are dropped.
    pub(crate) fn push(&self, bytes: Bytes) -> Result<(), Overflow> {
        let mut inner = self.lock();
        if inner.ended || inner.abandoned || bytes.is_empty() {
            return Ok(());
        }
        let len = bytes.len();
        if inner.spill.is_none() && inner.memory_len.saturating_add(len) <= MEMORY {
            inner.memory_len = inner.memory_len.saturating_add(len);
            inner.memory.push_back(bytes);
        } else {
            let spill = match &mut inner.spill {
                Some(spill) => spill,
                none => none.insert(Spill { file: self.nameless()?, read: 0, written: 0 }),
            };
            if spill.written.saturating_sub(spill.read) > MOST {
                return Err(Overflow::TooMuch);
            }
            // Into the page cache: as quick as a copy, and rare.
            spill.file.write_all_at(&bytes, spill.written)?;
            spill.written = spill.written.saturating_add(u64::try_from(len).unwrap_or(u64::MAX));
        }
        drop(inner);
        self.flow.queued(len);
        self.more.notify_one();
        Ok(())
    }

    fn nameless(&self) -> io::Result<File> {
        use rustix::fs::{Mode, OFlags};
        let fd = rustix::fs::open(&self.spill_dir, OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC, Mode::RUSR | Mode::WUSR)?;
        Ok(File::from(fd))
    }

    /// No more bytes will come.
    pub(crate) fn end(&self) {
        self.lock().ended = true;
        self.more.notify_one();
    }

    /// Nobody will read what is left.
    pub(crate) fn abandon(&self) {
        let mut inner = self.lock();
        let left = inner.left();
        *inner = Inner { abandoned: true, ..Inner::default() };
        drop(inner);
        self.flow.taken(left);
        self.more.notify_one();
    }

    /// The next bytes; `None` after the end. Safe to cancel.
    pub(crate) async fn next(&self) -> io::Result<Option<Bytes>> {
        loop {
            {
                let mut inner = self.lock();
                if let Some(bytes) = inner.take()? {
                    drop(inner);
                    self.flow.taken(bytes.len());
                    return Ok(Some(bytes));
                }
                if inner.ended || inner.abandoned {
                    return Ok(None);
                }
            }
            self.more.notified().await;
        }
    }
}

impl Inner {
    fn left(&self) -> usize {
        let spilled = self.spill.as_ref().map_or(0, |spill| spill.written.saturating_sub(spill.read));
        self.memory_len.saturating_add(usize::try_from(spilled).unwrap_or(usize::MAX))
    }

    fn take(&mut self) -> io::Result<Option<Bytes>> {
        if let Some(bytes) = self.memory.pop_front() {
            self.memory_len = self.memory_len.saturating_sub(bytes.len());
            return Ok(Some(bytes));
        }
        let Some(spill) = &mut self.spill else { return Ok(None) };
        let left = usize::try_from(spill.written.saturating_sub(spill.read)).unwrap_or(usize::MAX);
        if left == 0 {
            self.spill = None;
            return Ok(None);
        }
        let mut piece = vec![0; left.min(PIECE)];
        spill.file.read_exact_at(&mut piece, spill.read)?;
        spill.read = spill.read.saturating_add(u64::try_from(piece.len()).unwrap_or(u64::MAX));
        if spill.read == spill.written {
            self.spill = None;
        }
        Ok(Some(piece.into()))
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        let left = self.lock().left();
        self.flow.taken(left);
        self.flow.closed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn drain(input: &Input) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(bytes) = input.lock().take().unwrap() {
            input.flow.taken(bytes.len());
            all.extend(bytes);
        }
        all
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn bytes_come_out_as_they_went_in_whatever_was_spilled(sizes in prop::collection::vec((1usize..400_000, any::<bool>()), 1..24)) {
            let dir = tempfile::tempdir().unwrap();
            let flow = Flow::new();
            let input = Input::new(flow.clone(), dir.path().into());
            let (mut put, mut got): (Vec<u8>, Vec<u8>) = (Vec::new(), Vec::new());
            for (at, (size, read)) in sizes.into_iter().enumerate() {
                let bytes = vec![u8::try_from(at).unwrap(); size];
                put.extend(&bytes);
                input.push(bytes.into()).unwrap();
                prop_assert!(input.lock().memory_len <= MEMORY);
                if read {
                    let taken: Vec<u8> = drain(&input);
                    got.extend(taken);
                }
            }
            got.extend(drain(&input));
            prop_assert!(put == got);
            prop_assert_eq!(flow.waiting(), 0);
        }
    }

    #[tokio::test]
    async fn the_end_comes_after_the_last_byte() {
        let input = Input::new(Flow::new(), std::env::temp_dir());
        input.push(Bytes::from_static(b"last")).unwrap();
        input.end();
        assert_eq!(input.next().await.unwrap().unwrap(), "last");
        assert_eq!(input.next().await.unwrap(), None);
    }
}
