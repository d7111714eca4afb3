//! A large store takes no more memory than a small one. `BACKUP_SOAK_MIB=1024` makes it a gibibyte.

use crate::support::{Dice, manifest, origin, pinned, signer, to, with};
use allocation_counter::measure;
use backup::Writer;
use std::io::{BufReader, BufWriter, Seek, SeekFrom};

/// What writing or reading may hold at any moment, in bytes, whatever the size of the store.
const HELD: u64 = 2 << 20;

#[test]
fn writing_verifying_and_reading_hold_a_few_chunks_whatever_the_size() {
    let mebibytes: u64 = std::env::var("BACKUP_SOAK_MIB").map_or(64, |text| text.parse().unwrap());
    let mut file = tempfile::tempfile().unwrap();
    let mut dice = Dice(9);
    // Half noise, half text: compressed and stored chunks.
    let mut value = vec![b'v'; 8 << 10];
    let count = mebibytes << 7;
    let writing = measure(|| {
        let sink = BufWriter::new(&mut file);
        let mut writer = Writer::create(sink, &origin(), &manifest(), &to(1), signer(1), &mut |bytes| dice.fill(bytes)).unwrap();
        for index in 0..count {
            dice.fill(&mut value[..4 << 10]);
            writer.record(format!("doc/node/n{index:012}").as_bytes(), &value).unwrap();
        }
        let (written, _) = writer.finish().unwrap();
        assert_eq!(written.summary.records, count);
    });
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut verified = None;
    let verifying = measure(|| verified = Some(backup::verify(BufReader::new(&mut file), &with(1), &pinned()).unwrap()));
    let verified = verified.unwrap();
    assert!(verified.bytes() > mebibytes << 19);
    let reading =
        measure(|| assert_eq!(verified.records().unwrap().map(|record| record.unwrap().value.len() as u64).sum::<u64>(), mebibytes << 20));
    for (what, held) in [("writing", writing), ("verifying", verifying), ("reading", reading)] {
        assert!(held.bytes_max < HELD, "{what} held {} bytes", held.bytes_max);
    }
}
