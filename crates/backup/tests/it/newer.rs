//! Files of releases that do not exist yet, and files that no release writes.

use crate::forge::{Chunk, Parts, apart};
use crate::support::{open, pinned, read, records, refused, to, with, write};
use backup::{Protection, ReadError, Trust, Unlock};
use std::collections::BTreeMap;
use std::io::Cursor;
use types::Code;

fn parts() -> Parts {
    apart(&write(&records(2, 30), &Protection::Unencrypted, 1).0)
}

fn with_chunk(at: usize, kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut parts = parts();
    parts.chunks.insert(at, Chunk { kind, flags, tag: [0; 8], number: 0, payload: payload.to_vec() });
    parts.sealed(1)
}

#[test]
fn a_newer_format_is_refused_and_names_the_release_that_reads_it() {
    let mut newer = parts().header("\"0.9.0\"", "\"3.1.0\"");
    newer.format = 2;
    // Of the header only the release has to be there.
    let frozen = Parts { header: br#"{"product":"3.1.0","else":[1]}"#.to_vec(), ..newer.clone() };
    for file in [newer.sealed(1), frozen.sealed(1)] {
        let error = backup::inspect(file.as_slice()).unwrap_err();
        assert_eq!(error.to_string(), "the backup needs format 2 of backups, which this release does not know; Lockgate 3.1.0 wrote it");
        let public = error.public();
        assert_eq!((public.code.as_str(), public.hint.as_deref()), ("LG-BACKUP-002", Some("use `tctl` of Lockgate 3.1.0 or newer")));
    }
}

#[test]
fn what_a_reader_must_know_and_does_not_is_newer_too() {
    let files = [
        parts().header("\"requires\":[]", "\"requires\":[\"sparse\"]").sealed(1),
        parts().header("\"type\":\"none\"", "\"type\":\"kyber\"").sealed(1),
        with_chunk(1, 5, 0, b"of a later release"),
        with_chunk(3, 127, 0, b"of a later release"),
        {
            let mut parts = parts();
            parts.chunks[1].flags = 2;
            parts.sealed(1)
        },
    ];
    for file in files {
        let error = refused(&file, &Unlock::Unencrypted);
        assert!(matches!(error, ReadError::Newer { .. }), "{error}");
        assert!(matches!(backup::check(file.as_slice(), &Trust::Any), Err(ReadError::Newer { .. })));
        assert_eq!(error.code(), Code::BackupNewer);
    }
}

#[test]
fn optional_sections_and_unknown_keys_are_passed_over_and_told() {
    let mut writer = open(&to(1), 1);
    let all = records(2, 30);
    writer.record(&all[0].key, &all[0].value).unwrap();
    writer.section(0x80, b"audit log").unwrap();
    writer.section(0x80, &[b'x'; 10_000]).unwrap();
    writer.section(0xff, b"").unwrap();
    all[1..].iter().for_each(|record| writer.record(&record.key, &record.value).unwrap());
    let (_, file) = writer.finish().unwrap();
    let verified = backup::verify(Cursor::new(&file), &with(1), &pinned()).unwrap();
    assert_eq!(verified.skipped(), &BTreeMap::from([(0x80, 2), (0xff, 1)]));
    assert_eq!(verified.records().unwrap().collect::<Result<Vec<_>, _>>().unwrap(), all);
    // Packed in a way of its own.
    assert!(read(&with_chunk(2, 0x90, 0x7e, b"??"), &Unlock::Unencrypted, &pinned()).is_ok());
    let more = parts().header("\"requires\":[]", "\"comment\":{\"of\":\"a later release\"},\"requires\":[]").sealed(1);
    assert!(read(&more, &Unlock::Unencrypted, &pinned()).is_ok());
}

#[test]
fn what_no_release_writes_is_refused_even_when_signed() {
    let change = |change: &dyn Fn(&mut Parts)| {
        let mut parts = parts();
        change(&mut parts);
        parts.sealed(1)
    };
    let files = [
        ("no manifest", change(&|parts| drop(parts.chunks.remove(0)))),
        ("two manifests", change(&|parts| parts.chunks.insert(1, parts.chunks[0].clone()))),
        ("records after the summary", change(&|parts| parts.chunks.swap(1, 2))),
        ("no summary", change(&|parts| drop(parts.chunks.remove(2)))),
        ("two summaries", change(&|parts| parts.chunks.insert(2, parts.chunks[2].clone()))),
        ("records left out", change(&|parts| drop(parts.chunks.remove(1)))),
        ("records twice", change(&|parts| parts.chunks.insert(1, parts.chunks[1].clone()))),
        ("an optional section behind the summary", with_chunk(3, 0x80, 0, b"late")),
        (
            "a record that is cut",
            change(&|parts| {
                parts.chunks[1].flags = 0;
                parts.chunks[1].payload = b"\0\x01\0\0\0\x05kval".to_vec();
            }),
        ),
        (
            "an empty key",
            change(&|parts| {
                parts.chunks[1].flags = 0;
                parts.chunks[1].payload = vec![0; 6];
            }),
        ),
        (
            "nothing compressed",
            change(&|parts| {
                parts.chunks[1].flags = 1;
                parts.chunks[1].payload = b"\0\0\0\x05rubbish".to_vec();
            }),
        ),
        (
            "a manifest that is no JSON",
            change(&|parts| {
                parts.chunks[0].flags = 0;
                parts.chunks[0].payload = b"{".to_vec();
            }),
        ),
        ("a header that is no JSON", change(&|parts| parts.header = b"[".to_vec())),
        ("recipients that are no names", {
            let (file, _) = write(&records(1, 10), &to(1), 1);
            apart(&file).header("\"id\":\"age1", "\"id\":\"\\u001b[2J").sealed(1)
        }),
    ];
    for (what, file) in files {
        let error = refused(&file, &Unlock::Unencrypted);
        assert!(matches!(error, ReadError::Malformed { .. }), "{what}: {error}");
    }
}

#[test]
fn a_chunk_that_unpacks_to_more_than_it_says_is_refused() {
    // A hundred million zeros in some bytes, said to be five.
    let bomb = zstd::bulk::compress(&vec![0; 100_000_000], 19).unwrap();
    for (says, large) in [(5u32, false), (4_259_840, false), (4_259_841, true), (u32::MAX, true)] {
        let mut parts = parts();
        parts.chunks[1].flags = 1;
        parts.chunks[1].payload = [says.to_be_bytes().as_slice(), &bomb].concat();
        let file = parts.sealed(1);
        let held = allocation_counter::measure(|| {
            let error = refused(&file, &Unlock::Unencrypted);
            assert_eq!(matches!(error, ReadError::TooLarge { .. }), large, "{says}: {error}");
        });
        assert!(held.bytes_max < 8 << 20, "{says}: {} bytes", held.bytes_max);
    }
}
