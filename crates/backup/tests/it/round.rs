//! What is written reads back.

use crate::support::{Dice, manifest, open, origin, passphrase, pinned, private, read, records, signer, to, with, write};
use backup::{CHUNK, Lock, MAX_VALUE, Protection, Record, Summary, Tally, Trust, Unlock, WriteError, Writer};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::io::{Cursor, Seek, SeekFrom};
use types::{Code, Secret};

fn contents() -> impl Strategy<Value = BTreeMap<Vec<u8>, Vec<u8>>> {
    let key = prop_oneof![proptest::collection::vec(any::<u8>(), 1..40), "[a-c]{1,3}(/[a-c]{1,3}){0,3}".prop_map(String::into_bytes)];
    let value = prop_oneof![proptest::collection::vec(any::<u8>(), 0..200), (0usize..200_000).prop_map(|size| vec![b'v'; size])];
    proptest::collection::btree_map(key, value, 0..30)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_records_come_back_as_they_were(contents in contents(), how in 0..3, seed in any::<u64>()) {
        let all: Vec<Record> = contents.into_iter().map(|(key, value)| Record { key, value }).collect();
        let (protection, unlock) = match how {
            0 => (to(seed), with(seed)),
            1 => (passphrase("a long passphrase"), Unlock::Passphrase(Secret::new("a long passphrase"))),
            _ => (Protection::Unencrypted, Unlock::Unencrypted),
        };
        let (file, written) = write(&all, &protection, seed);
        let (summary, back) = read(&file, &unlock, &pinned()).unwrap();
        prop_assert_eq!(&back, &all);
        prop_assert_eq!(&summary, &written.summary);
        prop_assert_eq!(backup::check(file.as_slice(), &pinned()).unwrap().digest, written.digest);
    }

    #[test]
    fn bytes_that_are_no_backup_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        prop_assert!(backup::inspect(bytes.as_slice()).is_err());
        prop_assert!(backup::check(bytes.as_slice(), &Trust::Any).is_err());
    }
}

#[test]
fn everything_said_about_a_backup_is_read_back() {
    let (file, written) = write(&records(10, 100), &to(7), 1);
    let head = backup::inspect(file.as_slice()).unwrap();
    assert_eq!(head, written.head);
    assert_eq!((&head.cluster, head.cluster_id, &head.product), (&origin().cluster, origin().cluster_id, &origin().product));
    assert_eq!(head.created, origin().created);
    assert_eq!(head.lock, Lock::Recipients(vec![private(7).recipient().unwrap().short_id()]));
    let verified = backup::verify(Cursor::new(&file), &with(7), &pinned()).unwrap();
    assert_eq!(verified.manifest(), &manifest());
    assert_eq!(verified.digest(), written.digest);
    assert_eq!(verified.summary().kinds, BTreeMap::from([("control".to_owned(), 1), ("doc/node".to_owned(), 10)]));
}

#[test]
fn each_of_several_recipients_opens_the_file_and_nobody_else() {
    let protection = Protection::Recipients((1..=3).map(|seed| private(seed).recipient().unwrap()).collect());
    let (file, _) = write(&records(2, 10), &protection, 1);
    for seed in 1..=3 {
        assert_eq!(read(&file, &with(seed), &pinned()).unwrap().1, records(2, 10));
    }
    // Among other keys, too.
    assert!(read(&file, &Unlock::Keys(vec![private(8), private(3)]), &pinned()).is_ok());
    assert!(read(&file, &with(4), &pinned()).is_err());
}

#[test]
fn a_backup_in_the_middle_of_a_larger_file_is_read_from_where_it_starts() {
    let (file, _) = write(&records(2, 10), &to(1), 1);
    let mut cursor = Cursor::new([b"before it".as_slice(), &file].concat());
    cursor.seek(SeekFrom::Start(9)).unwrap();
    let verified = backup::verify(cursor, &with(1), &pinned()).unwrap();
    assert_eq!(verified.records().unwrap().count(), 3);
}

#[test]
fn the_largest_record_has_a_chunk_of_its_own() {
    let all = [("a", 10), ("b", MAX_VALUE), ("c", CHUNK), ("d", 10)];
    let all = all.map(|(key, size)| Record { key: key.into(), value: vec![b'x'; size] });
    let (file, _) = write(&all, &to(1), 1);
    assert_eq!(backup::check(file.as_slice(), &pinned()).unwrap().chunks, 1 + 4 + 2);
    assert_eq!(read(&file, &with(1), &pinned()).unwrap().1, all);
}

#[test]
fn equal_contents_have_equal_content_digests_whatever_the_file() {
    let all = records(20, 50);
    let (one, other) = (write(&all, &to(1), 1), write(&all, &Protection::Unencrypted, 2));
    assert_ne!(one.0, other.0);
    let counted = |records: &[Record]| {
        let mut tally = Tally::new();
        records.iter().for_each(|record| tally.add(&record.key, &record.value).unwrap());
        tally.finish()
    };
    let same: [Summary; 2] = [one.1.summary, other.1.summary];
    assert_eq!(same, [counted(&all), counted(&all)]);
    assert_ne!(counted(&all).content, counted(&all[1..]).content);
}

#[test]
fn records_out_of_order_or_too_large_are_not_written() {
    let mut writer = open(&to(1), 1);
    writer.record(b"b", b"").unwrap();
    for (key, value) in [(b"a".as_slice(), b"".as_slice()), (b"b", b""), (b"", b""), (&[b'k'; 4097], b""), (b"c", &vec![0; MAX_VALUE + 1])]
    {
        assert!(matches!(writer.record(key, value), Err(WriteError::Record(_))), "{}", key.escape_ascii());
    }
    for (kind, size) in [(4, 1), (127, 1), (128, backup::MAX_CHUNK + 1)] {
        assert!(matches!(writer.section(kind, &vec![0; size]), Err(WriteError::Section { .. })));
    }
    let (_, file) = writer.finish().unwrap();
    assert_eq!(read(&file, &with(1), &pinned()).unwrap().1, [Record { key: b"b".to_vec(), value: Vec::new() }]);
}

/// Takes so many bytes, then fails as a full disk does.
struct Full(usize);
impl std::io::Write for Full {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(std::io::ErrorKind::StorageFull)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[test]
fn after_a_failed_write_nothing_more_is_added() {
    let mut dice = Dice(1);
    let mut writer = Writer::create(Full(2000), &origin(), &manifest(), &to(1), signer(1), &mut |bytes| dice.fill(bytes)).unwrap();
    let all = records(20, CHUNK / 2);
    let error = all.iter().find_map(|record| writer.record(&record.key, &record.value).err()).unwrap();
    assert_eq!(error.code(), Code::BackupIo);
    assert!(matches!(writer.record(b"zzz", b""), Err(WriteError::GivenUp)));
    assert!(matches!(writer.finish(), Err(WriteError::GivenUp)));
}
