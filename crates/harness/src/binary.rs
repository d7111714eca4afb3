//! The program under test: `target/<profile>/lockgate` beside the running test, copied so that a later build does not swap it
//! in the middle; and the same program built to claim another version, for the version matrix.
//!
//! Builds run behind a lock file, since test binaries run side by side. Everything is in `target/versions/<version>/lockgate`, and
//! is made again when it is older than the sources. `LOCKGATE_BIN` names another program to test, `LOCKGATE_VERSIONS` a folder with those
//! that claim other versions, each in a folder of its own.

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
        None => real(),
    })
}

/// The major of this checkout.
pub const MAJOR: usize = {
    let digits = env!("CARGO_PKG_VERSION_MAJOR").as_bytes();
    assert!(digits.len() == 1, "the tables of versions below end at 9");
    (digits[0] - b'0') as usize
};

/// One major ahead of this checkout.
pub const ONE_AHEAD: &str = ["1.4.0", "2.4.0", "3.4.0", "4.4.0", "5.4.0", "6.4.0", "7.4.0", "8.4.0", "9.4.0"][MAJOR];
/// Two majors ahead.
pub const TWO_AHEAD: &str = ["2.1.0", "3.1.0", "4.1.0", "5.1.0", "6.1.0", "7.1.0", "8.1.0", "9.1.0"][MAJOR];
/// A pre-release, three majors ahead.
pub const THREE_AHEAD: &str = ["3.0.0-rc.1", "4.0.0-rc.1", "5.0.0-rc.1", "6.0.0-rc.1", "7.0.0-rc.1", "8.0.0-rc.1", "9.0.0-rc.1"][MAJOR];

/// A minor of this checkout's major that is ahead of it: what a host is upgraded to without a step of majors.
pub const MINOR_AHEAD: &str = ["0.99.0", "1.99.0", "2.99.0", "3.99.0", "4.99.0", "5.99.0", "6.99.0", "7.99.0", "8.99.0", "9.99.0"][MAJOR];

/// The versions that programs are built to claim, besides the real one and [`MINOR_AHEAD`].
pub const CLAIMED: [&str; 3] = [ONE_AHEAD, TWO_AHEAD, THREE_AHEAD];

/// The program claiming one of [`CLAIMED`], all of which are built when one is needed, or [`MINOR_AHEAD`]; at most once per change of
/// the sources.
pub fn claiming(version: &str) -> PathBuf {
    if let Some(made) = std::env::var_os("LOCKGATE_VERSIONS") {
        return Path::new(&made).join(version).join("lockgate");
    }
    static MAJORS: OnceLock<()> = OnceLock::new();
    static MINOR: OnceLock<()> = OnceLock::new();
    if version == MINOR_AHEAD {
        MINOR.get_or_init(|| make(&[MINOR_AHEAD]));
    } else {
        assert!(CLAIMED.contains(&version), "{version} is none of {CLAIMED:?}");
        MAJORS.get_or_init(|| make(&CLAIMED));
    }
    kept(Some(version))
}

fn make(versions: &[&str]) {
    let _lock = lock();
    let sources = newest_source();
    let stale: Vec<&&str> = versions.iter().filter(|version| !is_fresh(&kept(Some(version)), sources)).collect();
    for version in &stale {
        build(Some(version));
        keep(Some(version));
    }
    if !stale.is_empty() {
        // Whoever runs target/<profile>/lockgate next gets the real one.
        build(None);
    }
}

fn real() -> PathBuf {
    let _lock = lock();
    let (product, kept, sources) = (profile_dir().join("lockgate"), kept(None), newest_source());
    if !is_fresh(&kept, sources) || modified(&kept) < modified(&product) {
        if !is_fresh(&product, sources) {
            build(None);
        }
        keep(None);
    }
    kept
}

/// One test program at a time builds; the others find what it made.
fn lock() -> File {
    let home = versions();
    fs::create_dir_all(&home).expect("target/versions");
    let file = File::create(home.join("lock")).expect("the lock file");
    file.lock().expect("the lock");
    file
}

fn versions() -> PathBuf {
    profile_dir().parent().expect("target").join("versions")
}

fn profile() -> String {
    profile_dir().file_name().and_then(|name| name.to_str()).expect("a profile").to_owned()
}

/// Where the program is kept that claims this version.
fn kept(version: Option<&str>) -> PathBuf {
    versions().join(format!("{}-{}", version.unwrap_or("current"), profile())).join("lockgate")
}

fn is_fresh(path: &Path, sources: SystemTime) -> bool {
    modified(path).is_some_and(|at| at >= sources)
}

/// Keeps what was just built. A running copy is not written to, but replaced.
fn keep(version: Option<&str>) {
    let kept = kept(version);
    fs::create_dir_all(kept.parent().expect("a folder")).expect("target/versions");
    let fresh = kept.with_extension("new");
    fs::copy(profile_dir().join("lockgate"), &fresh).expect("copy the program");
    fs::rename(&fresh, &kept).expect("rename the program");
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
fn build(version: Option<&str>) {
    let profile = profile();
    let profile = if profile == "debug" { "dev" } else { &profile };
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
