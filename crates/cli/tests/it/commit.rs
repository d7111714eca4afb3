//! What the build script says of the commit: compiled alone (it needs only the standard library) and run in checkouts of its own.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

struct Script(tempfile::TempDir);

impl Script {
    fn new() -> Script {
        let home = tempfile::tempdir().unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("build.rs");
        let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
        let done = rustc.arg("--edition=2024").arg(source).arg("-o").arg(home.path().join("script")).status().unwrap();
        assert!(done.success());
        Script(home)
    }

    /// The commit that it bakes in, and what it has watched, when run in that folder.
    fn says(&self, dir: &Path, told: Option<&str>) -> (String, Vec<PathBuf>) {
        let mut script = Command::new(self.0.path().join("script"));
        script.current_dir(dir).env("CARGO_PKG_VERSION", "1.2.3").env_remove("LOCKGATE_COMMIT").env_remove("LOCKGATE_TEST_VERSION");
        script.envs(told.map(|commit| ("LOCKGATE_COMMIT", commit)));
        let output = String::from_utf8(script.output().unwrap().stdout).unwrap();
        let value = |line: &str, key: &str| line.strip_prefix(key).map(str::to_owned);
        let commit = output.lines().find_map(|line| value(line, "cargo::rustc-env=LOCKGATE_GITREF=")).unwrap_or_default();
        let watched = output.lines().filter_map(|line| value(line, "cargo::rerun-if-changed=")).map(|path| dir.join(path)).collect();
        (commit, watched)
    }
}

fn git(dir: &Path, words: &[&str]) -> String {
    let mut git = Command::new("git");
    git.current_dir(dir).args(["-c", "user.name=x", "-c", "user.email=x@example.com", "-c", "commit.gpgsign=false"]).args(words);
    let told = git.output().unwrap();
    assert!(told.status.success(), "git {words:?}: {}", String::from_utf8_lossy(&told.stderr));
    String::from_utf8(told.stdout).unwrap().trim().to_owned()
}

/// A checkout with one commit.
fn checkout(dir: &Path) {
    fs::create_dir_all(dir).unwrap();
    git(dir, &["init", "--quiet", "--initial-branch=main"]);
    fs::write(dir.join("build.rs"), "").unwrap();
    git(dir, &["add", "build.rs"]);
    git(dir, &["commit", "--quiet", "-m", "one"]);
}

fn head(dir: &Path) -> String {
    git(dir, &["rev-parse", "HEAD"])[..12].to_owned()
}

/// What cargo compares: it runs the script again when one of these is newer or of another content.
fn state(watched: &[PathBuf]) -> Vec<Vec<u8>> {
    watched
        .iter()
        .map(|path| fs::read(path).unwrap_or_else(|_| panic!("{} is not there: cargo would never rest", path.display())))
        .collect()
}

#[test]
fn the_commit_is_asked_again_when_the_head_has_moved_and_only_then() {
    let (script, home) = (Script::new(), tempfile::tempdir().unwrap());
    let main = home.path().join("main");
    checkout(&main);
    let tree = home.path().join("tree");
    git(&main, &["worktree", "add", "--quiet", "-b", "other", tree.to_str().unwrap()]);
    for dir in [&main, &tree] {
        for logs in ["true", "false"] {
            git(dir, &["config", "core.logAllRefUpdates", logs]);
            let own = PathBuf::from(git(dir, &["rev-parse", "--absolute-git-dir"]));
            if logs == "false" {
                fs::remove_file(own.join("logs/HEAD")).unwrap();
            }
            let (commit, watched) = script.says(dir, None);
            assert_eq!(commit, head(dir));
            let before = state(&watched);
            // Another work tree moves, a file is changed: nothing to do with us.
            let elsewhere = if dir == &main { &tree } else { &main };
            git(elsewhere, &["commit", "--quiet", "--allow-empty", "-m", "elsewhere"]);
            fs::write(dir.join("note"), "x").unwrap();
            assert_eq!(state(&watched), before);
            git(dir, &["commit", "--quiet", "--allow-empty", "-m", "two"]);
            assert_ne!(state(&watched), before, "a commit is seen, with logs {logs}");
            assert_eq!(script.says(dir, None).0, head(dir));
        }
    }
}

#[test]
fn an_archive_is_told_its_commit_and_never_takes_that_of_a_checkout_around_it() {
    let (script, home) = (Script::new(), tempfile::tempdir().unwrap());
    let around = home.path().join("around");
    checkout(&around);
    let unpacked = around.join("unpacked");
    fs::create_dir_all(&unpacked).unwrap();
    fs::write(unpacked.join("build.rs"), "").unwrap();
    assert_eq!(script.says(&unpacked, None).0, "unknown");
    let told = "0123456789abcdef0123456789abcdef01234567";
    assert_eq!(script.says(&unpacked, Some(told)).0, told[..12]);
    assert_eq!(script.says(&around, Some(told)).0, told[..12]);
    assert_eq!(script.says(&unpacked, Some("HEAD")).0, "", "only a full name is one");
}
