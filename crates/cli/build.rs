//! Bakes in what the program says of itself: its version and the commit it is made of.
//!
//! `LOCKGATE_TEST_VERSION` makes a binary claim another number, for the version matrix only: an optimised (release) build
//! refuses it, so that no shipped program can lie about what it is. The commit is `LOCKGATE_COMMIT` where the sources come from an
//! archive (`cargo xtask dist`), else the checkout's `HEAD`; it is asked again when `HEAD` has moved, and only then.
#![allow(clippy::panic, clippy::print_stdout, reason = "a build script speaks to cargo on standard output and stops a build by panicking")]

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

/// How much of a commit's name is shown.
const SHOWN: usize = 12;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=LOCKGATE_TEST_VERSION");
    println!("cargo::rerun-if-env-changed=LOCKGATE_COMMIT");
    println!("cargo::rustc-env=LOCKGATE_VERSION={}", version());
    let commit = commit().map_or_else(|| "unknown".to_owned(), |full| full.chars().take(SHOWN).collect());
    println!("cargo::rustc-env=LOCKGATE_GITREF={commit}");
}

fn version() -> String {
    match env::var("LOCKGATE_TEST_VERSION") {
        Ok(test) if env::var("PROFILE").as_deref() == Ok("release") => {
            panic!("LOCKGATE_TEST_VERSION={test} is refused in release builds")
        }
        Ok(test) => test,
        Err(_) => env::var("CARGO_PKG_VERSION").unwrap_or_default(),
    }
}

/// The commit's full name, as far as anybody knows it.
fn commit() -> Option<String> {
    if let Ok(told) = env::var("LOCKGATE_COMMIT") {
        assert!(
            told.len() == 40 && told.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "LOCKGATE_COMMIT={told} is not a commit's full name"
        );
        return Some(told);
    }
    // An unpacked archive may lie inside some other checkout: only one that keeps this very file counts.
    git(&["ls-files", "--error-unmatch", "build.rs"])?;
    let own = PathBuf::from(git(&["rev-parse", "--absolute-git-dir"])?);
    watch_head(&own);
    git(&["rev-parse", "HEAD"])
}

/// `HEAD` changes with a checkout, its log with every commit too: those of this work tree, not of its neighbours. Where no log is
/// kept, the branch's own file tells, or the packed ones. A file that is not there may not be named: cargo would run this each time.
fn watch_head(own: &Path) {
    let mut watched = vec![own.join("HEAD"), own.join("logs/HEAD")];
    if !own.join("logs/HEAD").exists() {
        let shared = git(&["rev-parse", "--path-format=absolute", "--git-common-dir"]).map_or_else(|| own.to_owned(), PathBuf::from);
        watched.extend(git(&["symbolic-ref", "--quiet", "HEAD"]).map(|branch| shared.join(branch)));
        watched.push(shared.join("packed-refs"));
    }
    for path in watched.iter().filter(|path| path.exists()) {
        println!("cargo::rerun-if-changed={}", path.display());
    }
}

/// What git prints, if there is a git and it knows.
fn git(words: &[&str]) -> Option<String> {
    let told = Command::new("git").args(words).output().ok().filter(|told| told.status.success())?;
    Some(String::from_utf8(told.stdout).ok()?.trim().to_owned()).filter(|text| !text.is_empty())
}
