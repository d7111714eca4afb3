//! `cargo xtask dist`: a release from a commit, into `dist/<version>/`. `make release` is this.
//!
//! Archive, Debian package, container file, bill of materials, manifest and checksums. Promises: the same commit gives the same
//! bytes on every machine with the same compilers (`compile`), and everything around the program is the same with any; `--verify`
//! makes all of it a second time in another folder and compares. A commit that releases.toml lists is compared with its row too:
//! so a stranger reproduces a release. `--program FILE` packs a program that is there already, to try the packaging; what it
//! writes is not a release and is not called one. How a release is cut: docs/releases.md.

mod compile;
mod deb;
mod gzip;
mod licences;
pub(crate) mod manifest;
mod packages;
mod program;
mod sbom;
mod stage;
mod tree;

use crate::releases;
use crate::run::{Root, capture};
use anyhow::{Context, Result, bail};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// File name to bytes.
pub(crate) type Artifacts = BTreeMap<String, Vec<u8>>;

/// What a release is made of.
#[derive(Clone, Debug)]
pub(crate) struct Origin {
    pub version: String,
    /// The full name of the commit.
    pub commit: String,
    /// The commit's time, in seconds since 1970: the only time in a release.
    pub time: u64,
    /// The same for people, in UTC.
    pub stamp: String,
}

#[derive(Default)]
struct Options {
    commit: Option<String>,
    program: Option<PathBuf>,
    verify: bool,
}

fn options(words: &[&str]) -> Result<Options> {
    let mut options = Options::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().copied().with_context(|| format!("{word} needs a value"));
        match *word {
            "--commit" => options.commit = Some(value()?.to_owned()),
            "--program" => options.program = Some(PathBuf::from(value()?)),
            "--verify" => options.verify = true,
            other => bail!("dist does not know `{other}`"),
        }
    }
    if options.program.is_some() && (options.verify || options.commit.is_some()) {
        bail!("--program packs what is there: neither a commit nor a second build goes with it");
    }
    Ok(options)
}

/// Makes the release and writes it.
pub(crate) fn dist(root: &Root, words: &[&str]) -> Result<()> {
    let options = options(words)?;
    let commit = options.commit.as_deref().unwrap_or("HEAD");
    let (origin, made, folder) = match &options.program {
        Some(path) => {
            let origin = origin(root, commit, root.dir())?;
            let made = pack(root.dir(), &origin, &program::Program::load(path)?)?;
            (origin.clone(), made, format!("{}-trial", origin.version))
        }
        None => {
            let (origin, made) = from_commit(root, commit, "first")?;
            (origin.clone(), made, origin.version)
        }
    };
    let dir = root.path("dist").join(folder);
    write(&dir, &made)?;
    for (name, bytes) in &made {
        println!("{}  {:>11}  {}", manifest::sha256(bytes), bytes.len(), dir.join(name).strip_prefix(root.dir())?.display());
    }
    if options.verify {
        let (_, again) = from_commit(root, &origin.commit, "second-folder-with-a-longer-name")?;
        same(&made, &again)?;
        println!("built a second time in another folder: the same, byte for byte");
    }
    if options.program.is_some() {
        println!("note: packed around a program that was there already: for trying the packaging, not a release");
        return Ok(());
    }
    if let Some(row) = releases::load(root)?.release.iter().find(|row| row.commit == origin.commit) {
        row.compare(&made)?;
        println!("reproduced: the same as in releases.toml, byte for byte");
    }
    Ok(())
}

/// Everything from a commit, in folders of that name below target/dist.
fn from_commit(root: &Root, commit: &str, name: &str) -> Result<(Origin, Artifacts)> {
    let scratch = root.path("target/dist").join(name);
    let (source, target) = (scratch.join("source"), scratch.join("target"));
    let commit = git(root, &["rev-parse", "--verify", &format!("{commit}^{{commit}}")])?;
    compile::unpack(root, &commit, &source)?;
    let origin = origin(root, &commit, &source)?;
    let left = target.exists().then(|| fs::remove_dir_all(&target)).transpose();
    left.with_context(|| format!("could not empty {}", target.display()))?;
    let program = program::Program::load(&compile::compile(&source, &target, &origin)?)?;
    if program.facts.version != origin.version || !origin.commit.starts_with(&program.facts.gitref) {
        bail!(
            "the program says {} {}, and was built from {} {}",
            program.facts.version,
            program.facts.gitref,
            origin.version,
            origin.commit
        );
    }
    let made = pack(&source, &origin, &program)?;
    // A gigabyte or two that nobody needs any more.
    fs::remove_dir_all(&scratch).with_context(|| format!("could not remove {}", scratch.display()))?;
    Ok((origin, made))
}

/// Everything around a program.
fn pack(source: &Path, origin: &Origin, program: &program::Program) -> Result<Artifacts> {
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let packages = packages::shipped(source, &triple)?;
    let mut made = stage::artifacts(source, origin, program, &licences::third_party(&packages)?, sbom::sbom(&packages, origin)?)?;
    let manifest = manifest::manifest(source, origin, &program.facts, &made, &compile::tools(source)?)?;
    made.insert("manifest.json".to_owned(), manifest.into_bytes());
    let sums = manifest::sums(&made);
    made.insert("SHA256SUMS".to_owned(), sums.into_bytes());
    Ok(made)
}

fn origin(root: &Root, commit: &str, source: &Path) -> Result<Origin> {
    let of = |format: &str| {
        let mut command = Command::new("git");
        command.current_dir(root.dir()).env("TZ", "UTC");
        command.args(["show", "--no-patch", "--date=format-local:%Y-%m-%dT%H:%M:%SZ", &format!("--format={format}"), commit]);
        Ok::<String, anyhow::Error>(capture(&mut command)?.trim().to_owned())
    };
    let version = releases::workspace_version(&source.join("Cargo.toml"))?;
    Ok(Origin { version: version.to_string(), commit: of("%H")?, time: of("%ct")?.parse()?, stamp: of("%cd")? })
}

fn git(root: &Root, words: &[&str]) -> Result<String> {
    let mut command = Command::new("git");
    command.current_dir(root.dir()).args(words);
    Ok(capture(&mut command)?.trim().to_owned())
}

/// The folder then holds these files and no others.
fn write(dir: &Path, made: &Artifacts) -> Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("could not empty {}", dir.display()))?;
    }
    fs::create_dir_all(dir)?;
    for (name, bytes) in made {
        fs::write(dir.join(name), bytes).with_context(|| format!("could not write {}", dir.join(name).display()))?;
    }
    Ok(())
}

fn same(first: &Artifacts, second: &Artifacts) -> Result<()> {
    let all: BTreeSet<&String> = first.keys().chain(second.keys()).collect();
    let other: Vec<&str> = all.into_iter().filter(|name| first.get(*name) != second.get(*name)).map(String::as_str).collect();
    if other.is_empty() {
        return Ok(());
    }
    bail!("a second build differs in {}", other.join(", "))
}

#[cfg(test)]
impl Origin {
    pub(crate) fn example() -> Origin {
        Origin {
            version: "1.2.3".into(),
            commit: "0123456789abcdef".repeat(3)[..40].into(),
            time: 1_763_856_000,
            stamp: "2025-11-23T00:00:00Z".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_difference_is_told_by_the_names_of_the_files() {
        let one = Artifacts::from([("a".to_owned(), vec![1]), ("b".to_owned(), vec![2])]);
        let other = Artifacts::from([("a".to_owned(), vec![1]), ("b".to_owned(), vec![3]), ("c".to_owned(), vec![])]);
        assert!(same(&one, &one).is_ok());
        let told = same(&one, &other).unwrap_err().to_string();
        assert_eq!(told, "a second build differs in b, c");
    }

    #[test]
    fn options_that_do_not_go_together_are_refused() {
        assert!(options(&["--program", "x", "--verify"]).is_err());
        assert!(options(&["--commit"]).is_err());
        assert!(options(&["--everything"]).is_err());
        assert!(options(&["--verify", "--commit", "abc"]).is_ok_and(|options| options.verify && options.commit.is_some()));
    }
}
