//! What the built program says of itself: version, formats and APIs, man pages, completions, the unit, an example of a file.
//!
//! It is asked, not read from the sources: what ships with a program is what that program says. It runs with an empty
//! environment, so that nothing of the machine gets into a page.

use crate::run::capture;
use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Names that the program answers to.
pub(crate) const NAMES: [&str; 3] = ["lockgate", "tsh", "tctl"];

/// The built program.
pub(crate) struct Program {
    path: PathBuf,
    pub bytes: Vec<u8>,
    pub facts: Facts,
}

/// What is told of it in the manifest.
pub(crate) struct Facts {
    pub version: String,
    /// The beginning of the commit's name.
    pub gitref: String,
    /// Of the formats and APIs that the build knows.
    pub content: Value,
    pub apis: Value,
    pub cluster_version: Value,
    /// As Debian calls it.
    pub arch: &'static str,
    pub digest: String,
    pub size: usize,
}

#[derive(Deserialize)]
struct Said {
    version: String,
    gitref: String,
    content: Value,
    apis: Value,
    cluster_version: Value,
}

impl Program {
    pub(crate) fn load(path: &Path) -> Result<Program> {
        let bytes = fs::read(path).with_context(|| format!("could not read {}", path.display()))?;
        let said = run(path, &["version", "--format=json"])?;
        let said: Said = serde_json::from_str(&said).with_context(|| format!("what {} says of itself: {said}", path.display()))?;
        let facts = Facts {
            version: said.version,
            gitref: said.gitref,
            content: said.content,
            apis: said.apis,
            cluster_version: said.cluster_version,
            arch: arch()?,
            digest: super::manifest::sha256(&bytes),
            size: bytes.len(),
        };
        Ok(Program { path: path.to_owned(), bytes, facts })
    }

    /// Name to text, `lockgate-start.1`.
    pub(crate) fn man(&self) -> Result<BTreeMap<String, Vec<u8>>> {
        let scratch = tempfile::tempdir()?;
        let dir = scratch.path().to_str().context("a scratch folder with an odd name")?;
        run(&self.path, &["man", dir])?;
        let mut pages = BTreeMap::new();
        for entry in fs::read_dir(scratch.path())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            pages.insert(name, fs::read(&path)?);
        }
        Ok(pages)
    }

    pub(crate) fn completion(&self, shell: &str, name: &str) -> Result<String> {
        run(&self.path, &["completion", shell, name])
    }

    /// The unit for a program at that path.
    pub(crate) fn unit(&self, at: &str) -> Result<String> {
        run(&self.path, &["install", "systemd", &format!("--lockgate-path={at}")])
    }

    /// A configuration file to begin with.
    pub(crate) fn example(&self) -> Result<String> {
        run(&self.path, &["configure"])
    }
}

/// Runs the program without anything of this machine's environment.
fn run(path: &Path, words: &[&str]) -> Result<String> {
    let mut command = Command::new(path);
    command.args(words).env_clear().env("HOME", "/nonexistent").env("COLUMNS", "100");
    capture(&mut command).with_context(|| format!("{} {}", path.display(), words.join(" ")))
}

/// Debian's name of the architecture that we run on, which is the one we build for.
fn arch() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("releases are made on x86_64 and aarch64, not on {other}"),
    }
}
