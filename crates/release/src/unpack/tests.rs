//! Archives as releases are packed, and those that nobody packs.

use super::*;
use crate::testing::{archive, entry, gzip, sha256};

fn attempt(bytes: &[u8]) -> (tempfile::TempDir, Result<(), BadArchive>) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.tar.gz");
    fs::write(&file, bytes).unwrap();
    let done = unpack(&file, &sha256(bytes), &dir.path().join("into"));
    (dir, done)
}

fn tar(entries: &[(&str, u8, &str)]) -> Vec<u8> {
    let mut out = Vec::new();
    entries.iter().for_each(|(path, kind, target)| entry(&mut out, path, *kind, target, b"", 0o644));
    out.resize(out.len() + 1024, 0);
    gzip(&out)
}

#[test]
fn an_archive_becomes_a_folder_without_its_own_top_folder() {
    let (dir, done) = attempt(&archive("top", &[("bin/lockgate", b"program"), ("bin/tsh", b"->lockgate"), ("docs/a.md", b"text")]));
    done.unwrap();
    let into = dir.path().join("into");
    assert_eq!(fs::read(into.join("bin/tsh")).unwrap(), b"program");
    assert_eq!(fs::read(into.join("docs/a.md")).unwrap(), b"text");
    let mode = |name: &str| std::os::unix::fs::MetadataExt::mode(&fs::metadata(into.join(name)).unwrap()) & 0o777;
    assert_eq!((mode("bin/lockgate") & 0o100, mode("docs/a.md") & 0o111), (0o100, 0));
}

#[test]
fn attack_row_15_nothing_is_written_outside_of_the_folder_and_nothing_but_files_folders_and_neighbours() {
    let check = |entries: &[(&str, u8, &str)]| {
        let (dir, done) = attempt(&tar(entries));
        assert!(matches!(done, Err(BadArchive::Entry(_) | BadArchive::Io(_))), "{entries:?}: {done:?}");
        let others: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(others.len() <= 2 && !dir.path().join("evil").exists(), "{others:?}");
    };
    check(&[("top/../../evil", b'0', "")]);
    check(&[("/etc/evil", b'0', "")]);
    check(&[("../evil", b'0', "")]);
    check(&[("top/link", b'2', "../../evil")]);
    check(&[("top/link", b'2', "/etc/passwd")]);
    check(&[("top/dir", b'2', "."), ("top/dir/evil", b'0', "")]);
    check(&[("top/hard", b'1', "bin/lockgate")]);
    check(&[("top/device", b'3', "")]);
    check(&[("top/pipe", b'6', "")]);
    check(&[("top/long", b'x', "")]);
    check(&[("top/a", b'0', ""), ("top/a", b'0', "")]);
    // A link that stands for a folder of the archive: what is behind it stays inside.
    check(&[("top/a", b'2', "a"), ("top/a/evil", b'0', "")]);
}

#[test]
fn bytes_that_are_no_archive_are_told_and_not_believed() {
    let good = archive("top", &[("bin/lockgate", b"program")]);
    for cut in [0, 5, 20, good.len() / 2] {
        assert!(attempt(&good[..cut]).1.is_err(), "{cut}");
    }
    let (dir, _) = attempt(&good);
    let other = unpack(&dir.path().join("a.tar.gz"), &sha256(b"other"), &dir.path().join("again"));
    assert!(matches!(other, Err(BadArchive::Digest)) && !dir.path().join("again").exists());
    assert!(matches!(attempt(&gzip(&[0; 1024])).1, Err(BadArchive::Format("it is empty"))));
    let mut header = Vec::new();
    entry(&mut header, "top/a", b'0', "", b"", 0o644);
    header[0] ^= 1;
    header.resize(2048, 0);
    assert!(matches!(attempt(&gzip(&header)).1, Err(BadArchive::Format(_))));
}
