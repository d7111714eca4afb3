//! Who may open a file, and whose file is believed.

use crate::forge::apart;
use crate::support::{Dice, manifest, origin, passphrase, pinned, private, read, records, refused, signer, to, with, write};
use backup::{Cost, Fingerprint, Lock, MAX_RECIPIENTS, Protection, ReadError, Trust, Unlock, WriteError, Writer};
use types::{Code, Secret};

fn phrase(text: &str) -> Unlock {
    Unlock::Passphrase(Secret::new(text))
}

#[test]
fn a_wrong_key_is_told_which_one_is_wanted() {
    let (file, _) = write(&records(1, 10), &to(1), 1);
    let wanted = private(1).recipient().unwrap().short_id();
    let error = refused(&file, &with(2));
    assert_eq!(error.to_string(), format!("no key given opens the backup; it is encrypted to {wanted}"));
    assert_eq!(error.code(), Code::BackupKey);
    for unlock in [phrase("a long passphrase"), Unlock::Unencrypted, Unlock::Keys(Vec::new())] {
        assert!(matches!(refused(&file, &unlock), ReadError::WrongKey { .. }));
    }
}

#[test]
fn a_wrong_passphrase_is_refused_and_none_is_asked_for() {
    let (file, written) = write(&records(1, 10), &passphrase("a long passphrase"), 1);
    assert_eq!(written.head.lock, Lock::Passphrase);
    assert!(read(&file, &phrase("a long passphrase"), &pinned()).is_ok());
    for wrong in ["a long passphrasf", "A long passphrase", "a long passphrase ", ""] {
        assert!(matches!(refused(&file, &phrase(wrong)), ReadError::WrongPassphrase), "{wrong}");
    }
    for unlock in [with(1), Unlock::Unencrypted] {
        assert!(matches!(refused(&file, &unlock), ReadError::NeedsPassphrase));
    }
}

#[test]
fn a_file_in_the_clear_is_opened_only_by_who_expects_one() {
    let (file, _) = write(&records(1, 10), &Protection::Unencrypted, 1);
    assert!(read(&file, &Unlock::Unencrypted, &pinned()).is_ok());
    for unlock in [with(1), phrase("a long passphrase")] {
        assert!(matches!(refused(&file, &unlock), ReadError::NotEncrypted));
    }
}

#[test]
fn nothing_of_the_contents_stands_in_an_encrypted_file() {
    let mut all = records(1, 64);
    all[0].value = b"-----BEGIN PRIVATE KEY-----".to_vec();
    let holds = |file: &[u8], what: &[u8]| file.windows(what.len()).any(|window| window == what);
    let (clear, _) = write(&all, &Protection::Unencrypted, 1);
    let (file, _) = write(&all, &to(1), 1);
    for what in [all[0].value.as_slice(), b"doc/node", b"revision", b"sqlite", b"kinds"] {
        assert!(holds(&clear, what) && !holds(&file, what), "{}", what.escape_ascii());
    }
}

#[test]
fn a_file_of_another_cluster_is_refused_before_it_is_read_to_its_end() {
    let (file, written) = write(&records(1, 10), &to(1), 1);
    let other = Trust::Pinned(vec![signer(2).public_key().fingerprint()]);
    let error = read(&file[..file.len() - 40], &with(1), &other).unwrap_err();
    assert!(matches!(error, ReadError::ForeignSigner { .. }), "{error}");
    let (found, pinned_to) = (written.head.signer.fingerprint(), signer(2).public_key().fingerprint());
    assert_eq!(
        error.to_string(),
        format!("the backup says that it is of cluster \"example\", and is signed by {found}, not by {pinned_to}")
    );
    assert_eq!(error.code(), Code::BackupSigner);
    assert!(read(&file, &with(1), &Trust::Pinned(vec![pinned_to, found])).is_ok(), "one of several pins");
    assert!(read(&file, &with(1), &Trust::Pinned(Vec::<Fingerprint>::new())).is_err(), "no pin is not every pin");
}

#[test]
fn a_stranger_who_signs_our_file_is_a_stranger_and_who_keeps_our_name_does_not_sign_it() {
    let (file, _) = write(&records(1, 10), &Protection::Unencrypted, 1);
    assert!(matches!(refused(&apart(&file).sealed(2), &Unlock::Unencrypted), ReadError::BadSignature));
    let (ours, theirs) = (signer(1).public_key(), signer(2).public_key());
    let hex = |key: backup::SignerKey| data_encoding::HEXLOWER.encode(key.bytes());
    let renamed = apart(&file).header(&hex(ours), &hex(theirs)).sealed(2);
    assert!(matches!(refused(&renamed, &Unlock::Unencrypted), ReadError::ForeignSigner { .. }));
    assert!(read(&renamed, &Unlock::Unencrypted, &Trust::Any).is_ok(), "whole, and theirs");
}

#[test]
fn a_cost_that_would_take_the_machine_is_refused_unpaid() {
    let (file, _) = write(&records(1, 10), &passphrase("a long passphrase"), 1);
    for (from, to) in
        [("\"memory_kib\":8", "\"memory_kib\":4000000"), ("\"passes\":1", "\"passes\":4000000"), ("\"lanes\":1", "\"lanes\":9")]
    {
        let dear = apart(&file).header(from, to).sealed(1);
        assert!(matches!(refused(&dear, &phrase("a long passphrase")), ReadError::TooLarge { .. }), "{to}");
    }
}

#[test]
fn what_would_not_protect_is_not_written() {
    let create = |protection: &Protection| {
        let mut dice = Dice(1);
        Writer::create(Vec::new(), &origin(), &manifest(), protection, signer(1), &mut |bytes| dice.fill(bytes)).err().unwrap()
    };
    assert!(matches!(create(&Protection::Recipients(Vec::new())), WriteError::Recipients(0)));
    let many = vec![private(1).recipient().unwrap(); MAX_RECIPIENTS + 1];
    assert!(matches!(create(&Protection::Recipients(many)), WriteError::Recipients(65)));
    assert!(matches!(create(&passphrase("too short")), WriteError::WeakPassphrase));
    let dear = Cost { memory_kib: u32::MAX, ..Cost::default() };
    assert!(matches!(create(&Protection::Passphrase { passphrase: Secret::new("a long passphrase"), cost: dear }), WriteError::Cost));
    assert_eq!(create(&passphrase("too short")).public().code, "LG-USAGE-001");
}

#[test]
fn the_most_recipients_fit_into_the_header() {
    let all: Vec<_> = (0..MAX_RECIPIENTS as u64).map(|seed| private(seed).recipient().unwrap()).collect();
    let (file, _) = write(&records(1, 10), &Protection::Recipients(all), 1);
    assert!(read(&file, &with(63), &pinned()).is_ok());
}

#[test]
fn a_writer_can_move_to_another_thread() {
    fn is_send<T: Send>(_: &T) {}
    is_send(&crate::support::open(&to(1), 1));
}
