//! Chunks that are whole, in the wrong place: re-ordered, doubled, left out, taken from another file of the same key.

use crate::forge::{Parts, apart};
use crate::support::{pinned, read, records, refused, to, with, write};
use backup::{CHUNK, Part, Protection, ReadError, Trust, Unlock};
use std::io::{Cursor, Read, Seek, SeekFrom};
use types::Code;

/// A manifest, four chunks of records, summary, seal.
fn parts(protection: &Protection, seed: u64) -> Parts {
    let parts = apart(&write(&records(7, CHUNK / 2 - 40), protection, seed).0);
    assert_eq!(parts.chunks.iter().map(|chunk| chunk.kind).collect::<Vec<_>>(), [1, 2, 2, 2, 2, 3, 4]);
    parts
}

#[test]
fn chunks_that_change_places_are_out_of_order() {
    let mut parts = parts(&to(1), 1);
    parts.chunks.swap(2, 3);
    let error = refused(&parts.together(), &with(1));
    assert!(matches!(error, ReadError::OutOfOrder { expected: 2, found: 3 }), "{error}");
    assert_eq!(error.code(), Code::BackupDamaged);
}

#[test]
fn a_chunk_twice_and_a_chunk_left_out_are_out_of_order() {
    let whole = parts(&to(1), 1);
    let mut twice = whole.clone();
    twice.chunks.insert(3, whole.chunks[2].clone());
    assert!(matches!(refused(&twice.together(), &with(1)), ReadError::OutOfOrder { expected: 3, found: 2 }));
    for at in 0..whole.chunks.len() {
        let mut less = whole.clone();
        less.chunks.remove(at);
        let error = refused(&less.together(), &with(1));
        let last = at + 1 == whole.chunks.len();
        assert!(
            if last { matches!(error, ReadError::Truncated { .. }) } else { matches!(error, ReadError::OutOfOrder { .. }) },
            "{at}: {error}"
        );
    }
}

#[test]
fn a_chunk_of_another_backup_of_the_same_key_is_told() {
    for protection in [to(1), Protection::Unencrypted] {
        let (mut ours, theirs) = (parts(&protection, 1), parts(&protection, 2));
        ours.chunks[3] = theirs.chunks[3].clone();
        assert!(matches!(backup::check(ours.together().as_slice(), &pinned()), Err(ReadError::Spliced(3))));
    }
}

/// With tag, number and digest made good, as somebody does who knows the format: now cryptography has to tell.
#[test]
fn what_is_made_to_fit_fails_its_encryption_and_its_signature() {
    let (ours, theirs) = (parts(&to(1), 1), parts(&to(1), 2));
    let mut spliced = ours.clone();
    spliced.chunks[3].payload = theirs.chunks[3].payload.clone();
    let mut swapped = ours.clone();
    let (second, third) = (swapped.chunks[2].payload.clone(), swapped.chunks[3].payload.clone());
    (swapped.chunks[2].payload, swapped.chunks[3].payload) = (third, second);
    let mut headed = ours.clone();
    headed.header = ours.clone().header("\"example\"", "\"exbmple\"").header;
    for (forged, chunk) in [(spliced, 3), (swapped, 2), (headed, 0)] {
        let file = forged.together();
        let error = read(&file, &with(1), &Trust::Any).unwrap_err();
        assert!(matches!(error, ReadError::Damaged(Part::Chunk(found)) if found == chunk), "{error}");
        assert!(matches!(backup::check(file.as_slice(), &Trust::Any), Err(ReadError::BadSignature)));
        // Signed anew by somebody else: whole, but not for a reader who knows the cluster.
        let signed = forged.sealed(2);
        assert!(matches!(read(&signed, &with(1), &Trust::Any), Err(ReadError::Damaged(_))));
    }
}

#[test]
fn an_unencrypted_file_changed_by_a_stranger_fails_its_signature_only() {
    let mut forged = parts(&Protection::Unencrypted, 1);
    forged.chunks[1].payload[20] ^= 1;
    let forged = forged.together();
    let error = refused(&forged, &Unlock::Unencrypted);
    // The summary's digest of the contents would tell as well; the signature is looked at first.
    assert!(matches!(error, ReadError::BadSignature | ReadError::Malformed { .. }), "{error}");
}

/// Shows one file at the first reading and another at the second.
struct Fickle {
    now: Cursor<Vec<u8>>,
    later: Option<Vec<u8>>,
}
impl Read for Fickle {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        self.now.read(to)
    }
}
impl Seek for Fickle {
    fn seek(&mut self, to: SeekFrom) -> std::io::Result<u64> {
        if to == SeekFrom::Start(0) {
            self.now = Cursor::new(self.later.take().unwrap());
        }
        self.now.seek(to)
    }
}

#[test]
fn a_file_that_changes_between_the_two_passes_is_refused() {
    let check = |protection: &Protection, unlock: &Unlock, change: &dyn Fn(&mut Parts)| {
        let first = parts(protection, 1);
        let mut second = first.clone();
        change(&mut second);
        let source = Fickle { now: Cursor::new(first.together()), later: Some(second.sealed(1)) };
        let verified = backup::verify(source, unlock, &pinned()).unwrap();
        verified.records().and_then(|records| records.map(|record| record.map(drop)).collect::<Result<Vec<()>, _>>()).unwrap_err()
    };
    let error = check(&to(1), &with(1), &|file| file.chunks[2].payload[0] ^= 1);
    assert!(matches!(error, ReadError::Damaged(Part::Chunk(2))), "{error}");
    let error = check(&to(1), &with(1), &|file| *file = parts(&to(1), 2));
    assert!(matches!(error, ReadError::Changed), "{error}");
    let error = check(&Protection::Unencrypted, &Unlock::Unencrypted, &|file| *file.chunks[2].payload.last_mut().unwrap() ^= 1);
    assert!(matches!(error, ReadError::Changed), "{error}");
    let error = check(&Protection::Unencrypted, &Unlock::Unencrypted, &|file| drop(file.chunks.remove(2)));
    assert!(matches!(error, ReadError::Changed), "{error}");
}
