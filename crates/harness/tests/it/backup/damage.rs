//! What `tctl backup restore` refuses, each by its code, before anything is written; and the line that shows progress.

use super::{Kept, backed_up, offline};
use harness::{Cluster, Run};
use sha2::{Digest as _, Sha256};
use std::{fs, path::Path};

/// Where a file's chunks begin, and its end: as docs/backup-format.md has it.
fn chunks(file: &[u8]) -> Vec<usize> {
    let length = |at: usize| u32::from_be_bytes(file[at..at + 4].try_into().unwrap()) as usize;
    let mut starts = vec![14 + length(10) + 32];
    while *starts.last().unwrap() < file.len() {
        let at = *starts.last().unwrap();
        starts.push(at + 22 + length(at + 18) + 32);
    }
    starts
}

/// The same file as a later format would begin.
fn of_format_2(file: &[u8]) -> Vec<u8> {
    let front = chunks(file)[0] - 32;
    let mut newer = file.to_vec();
    newer[9] = 2;
    let digest = Sha256::digest(&newer[..front]);
    newer[front..front + 32].copy_from_slice(&digest);
    newer
}

#[test]
fn every_damaged_foreign_and_newer_file_is_refused_before_anything_is_written() {
    let (cluster, stranger) = (Cluster::start(), Cluster::start());
    let Kept { file, key, signer } = &backed_up(&cluster);
    let foreign = backed_up(&stranger);
    let good = fs::read(file).unwrap();
    let starts = chunks(&good);
    assert!(starts.len() >= 5, "manifest, records, summary, seal");
    let (first, second) = (&good[starts[0]..starts[1]], &good[starts[1]..starts[2]]);
    let reordered = [&good[..starts[0]], second, first, &good[starts[2]..]].concat();
    let other = fs::read(&foreign.file).unwrap();
    let of_other = chunks(&other);
    let spliced = [&good[..starts[1]], &other[of_other[1]..of_other[2]], &good[starts[2]..]].concat();
    let mut flipped = good.clone();
    flipped[starts[1] + 30] ^= 1;
    let cut_at_a_chunk = &good[..starts[2]];
    let cases: [(&str, &[u8], &str); 9] = [
        ("cut in a chunk", &good[..starts[2] - 5], "LG-BACKUP-003"),
        ("cut between two chunks", cut_at_a_chunk, "LG-BACKUP-003"),
        ("without its seal", &good[..*starts.iter().rev().nth(1).unwrap()], "LG-BACKUP-003"),
        ("flipped", &flipped, "LG-BACKUP-004"),
        ("reordered", &reordered, "LG-BACKUP-004"),
        ("with a chunk of another", &spliced, "LG-BACKUP-004"),
        ("going on after its end", &[good.as_slice(), b"\n"].concat(), "LG-BACKUP-004"),
        ("of another program", b"SQLite format 3\0 and so on", "LG-BACKUP-001"),
        ("newer", &of_format_2(&good), "LG-BACKUP-002"),
    ];
    let bad = cluster.home.join("bad.lgbackup").display().to_string();
    let target = cluster.home.join("target");
    let place = target.display().to_string();
    let restore = |file: &str, key: &str, signer: &str| {
        offline(&cluster, &["restore", file, "--identity-file", key, "--signer", signer, "--data-dir", &place]).go()
    };
    for (what, bytes, code) in cases {
        fs::write(&bad, bytes).unwrap();
        let run = restore(&bad, key, signer);
        assert_eq!(run.status, 1, "{what}: {}", run.err);
        assert!(run.err.contains(code) && run.err.lines().count() <= 3, "{what}: {}", run.err);
        assert!(holds_nothing(&target), "{what}");
    }
    restore(&foreign.file, &foreign.key, signer).fails(1, "LG-BACKUP-005");
    restore(file, &foreign.key, signer).fails(1, "LG-BACKUP-006");
    assert!(holds_nothing(&target));
    restore(file, key, signer).ok();
    assert!(!holds_nothing(&target));
}

/// Whether there is no store, or one without a single item.
fn holds_nothing(data_dir: &Path) -> bool {
    let path = data_dir.join("auth").join("state.db");
    !path.exists() || store::sqlite::peek(&path).unwrap().is_none()
}

#[test]
fn progress_is_a_line_on_a_terminal_and_nothing_elsewhere() {
    let cluster = Cluster::start();
    let Kept { file, key, signer } = &backed_up(&cluster);
    let place = |name: &str| cluster.home.join(name).display().to_string();
    let open = format!("--identity-file={key} --signer={signer}");
    let recipient = fs::read_to_string(key).unwrap().split_whitespace().find(|word| word.starts_with("age1")).unwrap().to_owned();
    let cases = [
        (
            "Writing ",
            format!("create --out={} --recipient={recipient} --data-dir={}", place("x.lgbackup"), cluster.auth().data_dir.display()),
        ),
        ("Reading [", format!("verify {file} {open}")),
        ("Proving", format!("drill {file} {open}")),
        ("Proving", format!("restore {file} {open} --data-dir={}", place("on-a-terminal"))),
    ];
    for (shown, words) in cases {
        let command = format!("{} tctl backup {words}", cluster.program().display());
        // Without colours of its own: what is looked for is the line that is written over.
        let seen = Run::new("script").args(["-qec", &command, "/dev/null"]).env("LOCKGATE_HOME", place("nobody")).go().ok();
        assert!(seen.contains(&format!("\r\u{1b}[K{shown}")), "{command}: {seen:?}");
        let last = seen.rfind("\r\u{1b}[K").unwrap();
        assert!(!seen[last..].contains(shown), "the line is wiped when it has ended: {seen:?}");
        let quiet = words.replace("x.lgbackup", "y.lgbackup").replace("on-a-terminal", "without-one");
        let run = offline(&cluster, &quiet.split(' ').collect::<Vec<_>>()).go();
        assert_eq!((run.status, run.err.as_str()), (0, ""), "{quiet}");
    }
}
