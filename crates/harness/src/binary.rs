//! The program under test: `target/<profile>/lockgate` beside the running test, copied so that a later build does not swap it
//! in the middle; and the same program built to claim another version, for the version matrix.
//!
//! Builds run behind a lock file, since test binaries run side by side. Everything is in `target/versions/<version>/lockgate`, and
//! is made again when it is older than the sources. `LOCKGATE_BIN` names another program to test.

use crate::run::Run;
use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, SystemTime},
};

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("crates/harness").to_owned()
}

/// `target/<profile>`: where the running test was built to.
fn profile_dir() -> PathBuf {
    let here = std::env::current_exe().expect("a path");
    here.ancestors().find(|path| path.join("deps").is_dir()).expect("target/<profile>").to_owned()
}

/// The program as it is in this checkout.
pub fn current() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| match std::env::var_os("LOCKGATE_BIN") {
        Some(named) => PathBuf::from(named),
        None => built(None),
    })
}

/// The program claiming this version. Built at most once per change of the sources.
pub fn claiming(version: &str) -> PathBuf {
    built(Some(version))
}

fn built(version: Option<&str>) -> PathBuf {
    let profile = profile_dir();
    let name = profile.file_name().and_then(|name| name.to_str()).expect("a profile").to_owned();
    let home = profile.parent().expect("target").join("versions");
    fs::create_dir_all(&home).expect("target/versions");
    let lock = File::create(home.join("lock")).expect("the lock file");
    lock.lock().expect("the lock");
    let product = profile.join("lockgate");
    let kept = home.join(format!("{}-{name}", version.unwrap_or("current"))).join("lockgate");
    let sources = newest_source();
    let is_fresh = |path: &Path| modified(path).is_some_and(|at| at >= sources);
    if is_fresh(&kept) && (version.is_some() || modified(&kept) >= modified(&product)) {
        return kept;
    }
    match version {
        None if is_fresh(&product) => {}
        None => build(&name, None),
        Some(version) => build(&name, Some(version)),
    }
    fs::create_dir_all(kept.parent().expect("a folder")).expect("target/versions");
    // A running copy is not written to, but replaced.
    let fresh = kept.with_extension("new");
    fs::copy(&product, &fresh).expect("copy the program");
    fs::rename(&fresh, &kept).expect("rename the program");
    if version.is_some() {
        // Whoever runs target/<profile>/lockgate next gets the real one.
        build(&name, None);
    }
    kept
}

fn modified(path: &Path) -> Option<SystemTime> {
    fs::metadata(path).ok()?.modified().ok()
}

/// When the sources were last changed: those of the crates that the program is made of.
fn newest_source() -> SystemTime {
    fn visit(path: &Path, newest: &mut SystemTime) {
        for entry in fs::read_dir(path).into_iter().flatten().flatten() {
            let (path, name) = (entry.path(), entry.file_name());
            if path.is_dir() && name != "tests" && name != "harness" && name != "xtask" && name != "benches" {
                visit(&path, newest);
            } else if path.extension().is_some_and(|ending| ending == "rs" || ending == "toml" || ending == "proto") {
                *newest = modified(&path).map_or(*newest, |at| at.max(*newest));
            }
        }
    }
    let mut newest = SystemTime::UNIX_EPOCH;
    visit(&root().join("crates"), &mut newest);
    newest
}

/// The command of `make test`, so that the same features are chosen and only the last crate is compiled anew.
fn build(profile: &str, version: Option<&str>) {
    let profile = if profile == "debug" { "dev" } else { profile };
    let mut run = Run::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for name in ["CARGO_HOME", "RUSTUP_HOME", "RUSTUP_TOOLCHAIN", "RUSTFLAGS", "CARGO_TARGET_DIR"] {
        if let Some(value) = std::env::var_os(name) {
            run = run.env(name, value);
        }
    }
    if let Some(version) = version {
        run = run.env("LOCKGATE_TEST_VERSION", version);
    }
    let words = ["build", "--quiet", "--locked", "--workspace", "--bin", "lockgate", "--profile", profile];
    run.args(words).dir(&root()).deadline(Duration::from_secs(1500)).go().ok();
}
