//! Compiling a commit so that everybody gets the same bytes.
//!
//! The sources are those of the commit, by `git archive`, in a folder of their own, so that nothing uncommitted gets in. No path of the
//! machine ends in the program: rustc and the C compilers are told other names for the three places that they see. The
//! environment is emptied but for what finds the tools and the registry; flags of the person who builds do not count. What is left
//! is the tools' own versions, which `tools` writes down: with the same rustc and C compiler the bytes are the same.

use super::Origin;
use crate::run::{Root, capture};
use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What finds the tools and the registry.
const KEPT: &[&str] = &[
    "PATH",
    "HOME",
    "CARGO_HOME",
    "RUSTUP_HOME",
    "RUSTUP_TOOLCHAIN",
    "CARGO_REGISTRIES_CRATES_IO_PROTOCOL",
    "CARGO_HTTP_CAINFO",
    "SSL_CERT_FILE",
    "http_proxy",
    "https_proxy",
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "no_proxy",
    "NO_PROXY",
];

/// The sources of a commit, unpacked into `dir`, which is emptied before.
pub(crate) fn unpack(root: &Root, commit: &str, dir: &Path) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("could not empty {}", dir.display()))?;
    }
    fs::create_dir_all(dir)?;
    let mut archive = Command::new("git")
        .current_dir(root.dir())
        .args(["archive", "--format=tar", commit])
        .stdout(Stdio::piped())
        .spawn()
        .context("could not start git")?;
    let bytes = archive.stdout.take().context("git has no output")?;
    let unpacked = Command::new("tar").arg("-x").arg("-C").arg(dir).stdin(bytes).status().context("could not start tar")?;
    if !archive.wait()?.success() || !unpacked.success() {
        bail!("could not unpack commit {commit}");
    }
    Ok(())
}

/// Compiles the sources in `source` with everything that is made on the way in `target`, and tells where the program is.
pub(crate) fn compile(source: &Path, target: &Path, origin: &Origin) -> Result<PathBuf> {
    let names = renamed(source, target)?;
    let mut command = cargo(source);
    command
        .args(["build", "--locked", "--release", "--package", "cli", "--bin", "lockgate", "--target-dir"])
        .arg(target)
        .env("LOCKGATE_COMMIT", &origin.commit)
        .env("SOURCE_DATE_EPOCH", origin.time.to_string())
        .env("CARGO_ENCODED_RUSTFLAGS", flags(&names, "--remap-path-prefix=").join("\u{1f}"));
    let c_flags = flags(&names, "-ffile-prefix-map=").join(" ");
    command.env("CFLAGS", &c_flags).env("CXXFLAGS", &c_flags);
    let done = command.stdin(Stdio::null()).status().context("could not start cargo")?;
    if !done.success() {
        bail!("the release build failed: {done}");
    }
    Ok(target.join("release/lockgate"))
}

/// Cargo among the sources, with an environment that has only what finds the tools.
fn cargo(source: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(source).env_clear().env("LC_ALL", "C").env("TZ", "UTC");
    let kept = KEPT.iter().filter_map(|name| std::env::var_os(name).map(|value| (name, value)));
    command.envs(kept);
    command
}

/// Places on this machine, and what they are called in the program.
fn renamed(source: &Path, target: &Path) -> Result<Vec<(PathBuf, &'static str)>> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    let home = home
        .or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))
        .context("neither CARGO_HOME nor HOME is set")?;
    let all = vec![(home, "/cargo"), (source.to_owned(), "/lockgate"), (target.to_owned(), "/target")];
    for (path, _) in &all {
        // The C compilers' flags are words between blanks, and `=` ends the first half of each.
        let text: OsString = path.as_os_str().to_owned();
        if text.to_string_lossy().contains([' ', '=', '\u{1f}']) {
            bail!("a release cannot be built in {}: the path has a blank or a `=` in it", path.display());
        }
    }
    Ok(all)
}

fn flags(names: &[(PathBuf, &str)], flag: &str) -> Vec<String> {
    names.iter().map(|(path, name)| format!("{flag}{}={name}", path.display())).collect()
}

/// What the bytes depend on besides the sources: the tools' names and versions.
pub(crate) fn tools(source: &Path) -> Result<BTreeMap<&'static str, String>> {
    let first = |program: &str, words: &[&str]| {
        let mut command = Command::new(program);
        command.args(words).current_dir(source).env("LC_ALL", "C");
        capture(&mut command).map(|text| text.lines().next().unwrap_or_default().trim().to_owned())
    };
    Ok(BTreeMap::from([
        ("rustc", first("rustc", &["--version"])?),
        ("cargo", first("cargo", &["--version"])?),
        ("cc", first("cc", &["--version"])?),
        ("c++", first("c++", &["--version"])?),
        ("ld", first("ld", &["--version"])?),
        ("libc", first("ldd", &["--version"])?),
    ]))
}

#[cfg(test)]
#[path = "compile/tests.rs"]
mod tests;
