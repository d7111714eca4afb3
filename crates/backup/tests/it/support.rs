//! Small backups, made from a number instead of chance.

use backup::{
    AuditPosition, Cost, Manifest, Origin, PrivateKey, Protection, ReadError, Record, SeedSigner, Signer, Summary, Trust, Unlock, Writer,
    Written,
};
use std::io::Cursor;
use types::{ClusterName, Secret, Time, Version, control::ClusterVersion, name::ClusterId};

/// SplitMix64: the same bytes for the same number, for ever.
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
    pub(crate) fn fill(&mut self, to: &mut [u8]) {
        for piece in to.chunks_mut(8) {
            let bytes = self.roll().to_le_bytes();
            piece.copy_from_slice(&bytes[..piece.len()]);
        }
    }
}

pub(crate) fn origin() -> Origin {
    Origin {
        cluster: ClusterName::new("example").unwrap(),
        cluster_id: ClusterId::from_uuid(uuid::Uuid::from_u128(0x5d5b_7c0e_0000_4000_8000_0000_0000_0001)),
        product: Version::new(0, 9, 0),
        created: Time::from_unix(1_795_370_400),
    }
}

pub(crate) fn manifest() -> Manifest {
    Manifest {
        revision: 4711,
        epoch: 3,
        cluster_version: Some(ClusterVersion { major: 1, step: 0 }),
        driver: "sqlite".into(),
        audit: Some(AuditPosition { index: 1234, hash: "00".repeat(32) }),
        extra: types::Extra::new(),
    }
}

pub(crate) fn signer(seed: u8) -> Box<dyn Signer> {
    Box::new(SeedSigner::new(&[seed; 32]).unwrap())
}

pub(crate) fn pinned() -> Trust {
    Trust::Pinned(vec![signer(1).public_key().fingerprint()])
}

pub(crate) fn private(seed: u64) -> PrivateKey {
    let mut dice = Dice(seed);
    PrivateKey::generate(&mut |bytes| dice.fill(bytes))
}

pub(crate) fn to(seed: u64) -> Protection {
    Protection::Recipients(vec![private(seed).recipient().unwrap()])
}

pub(crate) fn with(seed: u64) -> Unlock {
    Unlock::Keys(vec![private(seed)])
}

/// A passphrase whose guess costs next to nothing.
pub(crate) fn passphrase(text: &str) -> Protection {
    Protection::Passphrase { passphrase: Secret::new(text), cost: Cost { memory_kib: 8, passes: 1, lanes: 1 } }
}

pub(crate) fn records(count: u64, size: usize) -> Vec<Record> {
    let mut dice = Dice(count);
    let mut value = vec![0; size];
    let mut one = |index| {
        dice.fill(&mut value);
        Record { key: format!("doc/node/n{index:08}").into_bytes(), value: value.clone() }
    };
    let mut all = vec![Record { key: b"control".to_vec(), value: vec![b'c'; size] }];
    all.extend((0..count).map(&mut one));
    all
}

pub(crate) fn open(protection: &Protection, seed: u64) -> Writer<Vec<u8>> {
    let mut dice = Dice(seed);
    Writer::create(Vec::new(), &origin(), &manifest(), protection, signer(1), &mut |bytes| dice.fill(bytes)).unwrap()
}

pub(crate) fn write(records: &[Record], protection: &Protection, seed: u64) -> (Vec<u8>, Written) {
    let mut writer = open(protection, seed);
    for record in records {
        writer.record(&record.key, &record.value).unwrap();
    }
    let (written, bytes) = writer.finish().unwrap();
    assert_eq!(written.bytes, bytes.len() as u64);
    (bytes, written)
}

/// Both passes, as a restore does them.
pub(crate) fn read(bytes: &[u8], unlock: &Unlock, trust: &Trust) -> Result<(Summary, Vec<Record>), ReadError> {
    let verified = backup::verify(Cursor::new(bytes), unlock, trust)?;
    let summary = verified.summary().clone();
    let records = verified.records()?.collect::<Result<_, _>>()?;
    Ok((summary, records))
}

pub(crate) fn refused(bytes: &[u8], unlock: &Unlock) -> ReadError {
    read(bytes, unlock, &pinned()).expect_err("the file is not to be accepted")
}
