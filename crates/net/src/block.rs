//! Memory for bytes in bulk, and where in a page it begins.
//!
//! Blocks are borrowed for as long as data is on its way, so that what is idle holds none. None of them begins at the start
//! of a page: glibc before 2.39 copies with `rep movsb`, which AMD's Zen 3 and Zen 4 do at a twentieth of their speed when the
//! target begins within 64 bytes *after* the source, counted within pages (glibc bug 30994; measured here: 3.4 instead of 78
//! GB/s). TLS and SSH put headers of 5 and 14 bytes before what they copy into fresh memory, so sources at the start of a page
//! are the bad case; those [`HEAD`] bytes behind it are not.

use bytes::{Buf as _, BytesMut};
use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
};

/// How far from the start of a page: more than any header.
const HEAD: usize = 128;
/// Bytes of one block: four TLS records, which rustls encrypts and sends in one go.
const BLOCK: usize = 64 * 1024;
/// Blocks that a thread keeps for the next comer.
const POOLED: usize = 8;
/// The granularity of the fault, and the reach of it.
const PAGE: usize = 4096;
const REACH: usize = 64;
/// What a TLS record begins with.
const RECORD_HEAD: usize = 5;

thread_local! {
    static BLOCKS: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// A block of the thread's pool.
#[derive(Debug)]
pub(crate) struct Block(Box<[u8]>);

impl Block {
    pub(crate) fn borrow() -> Self {
        Self(BLOCKS.with_borrow_mut(Vec::pop).unwrap_or_else(|| vec![0; HEAD.saturating_add(BLOCK)].into_boxed_slice()))
    }
}

impl Deref for Block {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.0.get(HEAD..).unwrap_or_default()
    }
}
impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.0.get_mut(HEAD..).unwrap_or_default()
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let block = std::mem::take(&mut self.0);
        // At the thread's end there is no pool any more.
        let _freed = BLOCKS.try_with(|blocks| {
            if let Ok(mut blocks) = blocks.try_borrow_mut()
                && blocks.len() < POOLED
            {
                blocks.push(block);
            }
        });
    }
}

/// Makes room for `len` bytes in a buffer that is empty or nearly so.
pub fn make_room(buffer: &mut BytesMut, len: usize) {
    buffer.reserve(len.saturating_add(HEAD));
    if buffer.is_empty() && buffer.as_ptr().addr() % PAGE < HEAD {
        buffer.resize(HEAD, 0);
        buffer.advance(HEAD);
    }
}

/// How much to give to TLS at once: all, or one record that ends where the next does not begin at the start of a page.
pub(crate) fn first_part(bytes: &[u8]) -> &[u8] {
    /// Plain bytes of one record.
    const RECORD: usize = 16 * 1024;
    let behind_page = bytes.as_ptr().addr() % PAGE;
    let is_slow = (RECORD_HEAD.wrapping_sub(behind_page) % PAGE) < REACH;
    match bytes.get(..RECORD.saturating_sub(HEAD)) {
        Some(first) if is_slow && bytes.len() > RECORD => first,
        Some(_) | None => bytes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_borrowed_again_and_never_begins_with_a_page() {
        let mut block = Block::borrow();
        assert_eq!(block.len(), BLOCK);
        block.fill(7);
        let at = block.as_ptr();
        drop(block);
        assert_eq!(Block::borrow().as_ptr(), at);
        let mut buffer = BytesMut::new();
        make_room(&mut buffer, 65_536);
        assert!(buffer.is_empty() && buffer.capacity() >= 65_536 && buffer.as_ptr().addr() % PAGE >= HEAD);
    }

    #[test]
    fn what_begins_with_a_page_goes_out_so_that_the_rest_does_not() {
        let memory = vec![0; 3 * 65_536];
        let start = memory.as_ptr().align_offset(PAGE);
        let check = |behind: usize, len: usize, expected: usize| {
            let bytes = &memory[start + behind..start + behind + len];
            let first = first_part(bytes);
            assert_eq!(first.len(), expected, "{behind} {len}");
            assert!(first.len() == len || first_part(&bytes[first.len()..]).len() == len - first.len());
        };
        check(0, 65_536, 16_256);
        check(4, 65_536, 16_256);
        check(6, 65_536, 65_536);
        check(200, 65_536, 65_536);
        check(4090, 65_536, 16_256);
        check(0, 16_384, 16_384);
        check(0, 0, 0);
    }
}
