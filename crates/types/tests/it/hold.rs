//! Golden files: what a release wrote, in `tests/golden/<version>/`, held against what is written now.
//!
//! `cargo xtask freeze` writes what is new, into the folder of the sources' version; once that version is released its digests stand in
//! `frozen/<version>/files.txt` and no file of it changes again. Crates `wire`, `store` and `auth` use this file too.

use std::{env, fs, path::PathBuf};

fn folder() -> PathBuf {
    PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo runs tests")).join("tests/golden")
}

/// Text that stays letter for letter; how it is laid out in the sources does not matter.
#[allow(dead_code, reason = "not every crate has such a text")]
pub(crate) fn text(name: &str, made: &str) {
    let made: String = made.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| format!("{line}\n")).collect();
    hold(name, made.as_bytes(), |golden, made| {
        assert_eq!(String::from_utf8_lossy(made), String::from_utf8_lossy(golden), "{name}");
    });
}

/// `keeps(golden, made)` says by panicking whether what is made now keeps what a release wrote.
pub(crate) fn hold(name: &str, made: &[u8], keeps: impl Fn(&[u8], &[u8])) {
    let (writes, own) = (env::var_os("LOCKGATE_FREEZE").is_some(), env!("CARGO_PKG_VERSION"));
    let mut versions: Vec<PathBuf> = fs::read_dir(folder()).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    versions.sort();
    let mut last = None;
    for path in versions.iter().map(|version| version.join(name)).filter(|path| path.exists()) {
        let golden = fs::read(&path).unwrap();
        // What is not released yet may be written anew.
        if !(writes && path.starts_with(folder().join(own))) {
            keeps(&golden, made);
        }
        last = Some(golden);
    }
    if writes && last.as_deref() != Some(made) {
        fs::create_dir_all(folder().join(own)).unwrap();
        fs::write(folder().join(own).join(name), made).unwrap();
        last = Some(made.to_vec());
    }
    assert!(last.is_some(), "there is no golden file {name}; a new format gets one by `cargo xtask freeze`");
}
