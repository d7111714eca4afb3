//! Every byte counts: small files, all changes of one bit, all lengths.

use crate::support::{pinned, read, records, refused, to, with, write};
use backup::{Part, Protection, ReadError, Trust, Unlock};
use types::Code;

fn small(protection: &Protection) -> Vec<u8> {
    write(&records(3, 30), protection, 3).0
}

#[test]
fn every_single_flipped_bit_is_refused_with_and_without_the_key() {
    for (protection, unlock) in [(to(1), with(1)), (Protection::Unencrypted, Unlock::Unencrypted)] {
        let mut file = small(&protection);
        assert!(read(&file, &unlock, &Trust::Any).is_ok());
        for at in 0..file.len() {
            for bit in 0..8 {
                file[at] ^= 1 << bit;
                // Any signer would do: the bytes themselves are refused.
                assert!(read(&file, &unlock, &Trust::Any).is_err(), "byte {at}, bit {bit}");
                assert!(backup::check(file.as_slice(), &Trust::Any).is_err(), "byte {at}, bit {bit}, without the key");
                file[at] ^= 1 << bit;
            }
        }
    }
}

#[test]
fn every_length_but_the_whole_is_cut_off_at_that_byte() {
    for (protection, unlock) in [(to(1), with(1)), (Protection::Unencrypted, Unlock::Unencrypted)] {
        let file = small(&protection);
        for length in 0..file.len() {
            let error = refused(&file[..length], &unlock);
            assert!(matches!(error, ReadError::Truncated { at } if at == length as u64), "{length}: {error}");
            assert_eq!(error.code(), Code::BackupTruncated);
        }
    }
}

#[test]
fn one_byte_more_is_one_too_many() {
    let mut file = small(&to(1));
    file.push(b'\n');
    let end = file.len() as u64 - 1;
    assert!(matches!(refused(&file, &with(1)), ReadError::Trailing { at } if at == end));
    assert!(matches!(backup::check(file.as_slice(), &Trust::Any), Err(ReadError::Trailing { .. })));
}

#[test]
fn a_damaged_chunk_is_named() {
    let file = small(&to(1));
    let parts = crate::forge::apart(&file);
    let mut at = parts.front().len();
    for (number, chunk) in parts.chunks.iter().enumerate() {
        let mut broken = file.clone();
        broken[at + 22] ^= 1;
        let error = refused(&broken, &with(1));
        assert!(matches!(error, ReadError::Damaged(Part::Chunk(found)) if found == number as u64), "{error}");
        at += chunk.bytes().len();
    }
    let mut broken = file;
    broken[20] ^= 1;
    assert_eq!(refused(&broken, &with(1)).to_string(), "the header of the backup is damaged");
}

#[test]
fn a_file_copied_as_text_or_of_another_kind_is_not_a_backup() {
    let file = small(&to(1));
    let as_text: Vec<u8> = file.iter().copied().filter(|byte| *byte != b'\r').collect();
    for bytes in [as_text.as_slice(), b"SQLite format 3\0", b"age-encryption.org/v1\n", b"\x28\xb5\x2f\xfd\0\0\0\0\0\0\0\0"] {
        let error = backup::inspect(bytes).unwrap_err();
        assert!(matches!(error, ReadError::NotABackup), "{error}");
        assert_eq!(error.public().code, "LG-BACKUP-001");
    }
}

#[test]
fn lengths_beyond_the_bounds_are_refused_before_anything_is_held() {
    let file = small(&to(1));
    let front = crate::forge::apart(&file).front().len();
    for at in [10, front + 18] {
        let mut broken = file.clone();
        broken[at..at + 4].copy_from_slice(&u32::MAX.to_be_bytes());
        let held = allocation_counter::measure(|| {
            assert!(matches!(backup::check(broken.as_slice(), &Trust::Any), Err(ReadError::TooLarge { .. })));
        });
        assert!(held.bytes_max < 64 << 10, "{} bytes", held.bytes_max);
    }
    // Within the bounds, but not there: held is what came, not what was claimed.
    let mut broken = file;
    broken[front + 18..front + 22].copy_from_slice(&4_000_000u32.to_be_bytes());
    let held = allocation_counter::measure(|| drop(backup::check(broken.as_slice(), &pinned())));
    assert!(held.bytes_max < 64 << 10, "{} bytes", held.bytes_max);
}
