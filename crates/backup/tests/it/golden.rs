//! Files of released formats, which every later release reads: one per format and kind of lock, with what opens it.
//!
//! They are never written again. `BACKUP_GOLDEN=write` writes those that do not exist: once, when a format is new.

use crate::support::{Dice, manifest, origin, passphrase, pinned, private, records, signer, to};
use backup::{Manifest, PrivateKey, Protection, Record, Trust, Unlock, Verified, Writer};
use std::fs;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;
use types::Secret;

const PASSPHRASE: &str = "correct horse battery staple";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Chunks that compress and chunks that do not, and a section of a later release.
fn contents() -> Vec<Record> {
    let mut all = records(3, 120);
    all.push(Record { key: b"doc/user/alice".to_vec(), value: b"{\"kind\":\"user\"}".repeat(40) });
    all.push(Record { key: b"zz\xff\x00\"/odd/key".to_vec(), value: Vec::new() });
    all
}

fn write(protection: &Protection, manifest: &Manifest, contents: &[Record]) -> Vec<u8> {
    let mut dice = Dice(2026);
    let mut writer = Writer::create(Vec::new(), &origin(), manifest, protection, signer(1), &mut |bytes| dice.fill(bytes)).unwrap();
    for record in contents {
        writer.record(&record.key, &record.value).unwrap();
        if record.key.starts_with(b"doc/user") {
            writer.section(0x80, b"an optional section").unwrap();
        }
    }
    writer.finish().unwrap().1
}

/// Few enough bytes that nothing is compressed: for readers without Zstandard.
fn stored() -> (Manifest, Vec<Record>) {
    let mut dice = Dice(5);
    let mut noise = |key: &str, size| {
        let mut value = vec![0; size];
        dice.fill(&mut value);
        Record { key: key.into(), value }
    };
    let manifest =
        Manifest { revision: 7, epoch: 2, cluster_version: None, driver: "etcd".into(), audit: None, extra: types::Extra::new() };
    (manifest, vec![noise("control", 60), noise("doc/user/x", 700), noise("doc/user/y", 900), noise("p/z", 0)])
}

fn missing() -> Vec<(&'static str, Vec<u8>)> {
    let (small, few) = stored();
    let key = || private(1).to_text().expose().as_bytes().to_vec();
    let files: [(&str, &dyn Fn() -> Vec<u8>); 5] = [
        ("v1.key", &key),
        ("v1.lgb", &|| write(&to(1), &manifest(), &contents())),
        ("v1-passphrase.lgb", &|| write(&passphrase(PASSPHRASE), &manifest(), &contents())),
        ("v1-unencrypted.lgb", &|| write(&Protection::Unencrypted, &manifest(), &contents())),
        ("v1-stored.lgb", &|| write(&to(1), &small, &few)),
    ];
    files.into_iter().filter(|(name, _)| !golden(name).exists()).map(|(name, make)| (name, make())).collect()
}

fn key() -> Unlock {
    let text = Secret::new(fs::read_to_string(golden("v1.key")).unwrap());
    Unlock::Keys(PrivateKey::read_all(&text).unwrap())
}

fn verified(name: &str, unlock: &Unlock) -> Verified<Cursor<Vec<u8>>> {
    backup::verify(Cursor::new(fs::read(golden(name)).unwrap()), unlock, &pinned()).unwrap()
}

#[test]
fn files_of_format_1_stay_readable() {
    if std::env::var("BACKUP_GOLDEN").is_ok_and(|value| value == "write") {
        missing().into_iter().for_each(|(name, bytes)| fs::write(golden(name), bytes).unwrap());
    }
    let phrase = Unlock::Passphrase(Secret::new(PASSPHRASE));
    for (name, unlock) in [("v1.lgb", key()), ("v1-passphrase.lgb", phrase), ("v1-unencrypted.lgb", Unlock::Unencrypted)] {
        let verified = verified(name, &unlock);
        assert_eq!(verified.head().format, 1);
        assert_eq!(verified.head().product, origin().product);
        assert_eq!(verified.head().created, origin().created);
        assert_eq!(verified.manifest(), &manifest());
        assert_eq!(verified.skipped().get(&0x80), Some(&1));
        assert_eq!(verified.records().unwrap().collect::<Result<Vec<_>, _>>().unwrap(), contents(), "{name}");
        assert!(backup::check(fs::read(golden(name)).unwrap().as_slice(), &Trust::Any).is_ok());
    }
}

/// A second reader, written from `docs/backup-format.md` alone, in plain Python: cryptography included.
#[test]
fn a_reader_written_from_the_document_alone_reads_the_same() {
    let verified = verified("v1-stored.lgb", &key());
    let wanted = serde_json::json!({
        "cluster": verified.head().cluster, "file": verified.head().id, "signer": verified.head().signer.fingerprint().to_string(),
        "manifest": verified.manifest(), "summary": verified.summary(),
    });
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/reader.py");
    let output = Command::new("python3").arg("-I").arg(script).arg(golden("v1-stored.lgb")).arg(golden("v1.key")).output();
    let output = output.expect("python3 is one of the tools that the tests need (`make test-deps`)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mut read: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let records = read.as_object_mut().unwrap().remove("records").unwrap();
    assert_eq!(read, wanted);
    let all: Vec<Record> = verified.records().unwrap().collect::<Result<_, _>>().unwrap();
    let shown = |record: &Record| [&record.key, &record.value].map(|bytes| data_encoding::HEXLOWER.encode(bytes));
    assert_eq!(records, serde_json::json!(all.iter().map(shown).collect::<Vec<_>>()));
    assert_eq!(all, stored().1);
}
