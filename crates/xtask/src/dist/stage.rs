//! Where each file lies: in the archive, which is a folder to unpack anywhere, and in the Debian package.
//!
//! Both have the same files: the program with its two other names, the unit, man pages, completions, documentation, licences.

use super::deb::{About, deb, debian_version, fill, glibc};
use super::gzip::gzip;
use super::program::{NAMES, Program};
use super::tree::Tree;
use super::{Artifacts, Origin};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// What is made of a program: name to bytes, everything but the manifest and the sums.
pub(crate) fn artifacts(source: &Path, origin: &Origin, program: &Program, third_party: &str, sbom: String) -> Result<Artifacts> {
    let (version, arch) = (&origin.version, program.facts.arch);
    let read = |name: &str| fs::read_to_string(source.join(name)).with_context(|| name.to_owned());
    let folder = format!("lockgate-{version}");
    let mut whole = Tree::default();
    whole.graft(&folder, archive(source, program, third_party)?);
    let needs = glibc(&program.bytes).context("the program names no version of glibc")?;
    let about = About { version, arch, glibc: &needs, time: origin.time };
    let package = deb(&about, &package(source, program, third_party)?, &source.join("packaging/debian"))?;
    let words = [("@VERSION@", version.clone()), ("@ARCH@", arch.to_owned()), ("@COMMIT@", origin.commit.clone())];
    Ok(Artifacts::from([
        (format!("lockgate-{version}-linux-{arch}.tar.gz"), gzip(&whole.tar("", origin.time)?)),
        (format!("lockgate_{}_{arch}.deb", debian_version(version)), package),
        ("Containerfile".to_owned(), fill(&read("packaging/Containerfile")?, &words).into_bytes()),
        ("sbom.cdx.json".to_owned(), sbom.into_bytes()),
    ]))
}

/// The archive's folder: unpacked over /usr/local it is installed, from elsewhere `install.sh` does it.
fn archive(source: &Path, program: &Program, third_party: &str) -> Result<Tree> {
    let mut tree = Tree::default();
    names(&mut tree, "bin", program);
    tree.file("lib/systemd/system/lockgate.service", program.unit("/usr/local/bin/lockgate")?);
    tree.program("install.sh", fs::read(source.join("scripts/install.sh"))?);
    for (name, page) in program.man()? {
        tree.file(format!("share/man/man1/{name}"), page);
    }
    completions(&mut tree, "share", ("zsh/site-functions", "fish/vendor_completions.d"), program)?;
    documents(&mut tree, "share/doc/lockgate", source)?;
    tree.file("share/doc/lockgate/example.yaml", program.example()?);
    tree.file("README.md", fs::read(source.join("README.md"))?);
    tree.file("CHANGELOG.md", fs::read(source.join("CHANGELOG.md"))?);
    tree.file("LICENSE", fs::read(source.join("LICENSE"))?);
    tree.file("THIRD-PARTY.txt", third_party);
    Ok(tree)
}

fn package(source: &Path, program: &Program, third_party: &str) -> Result<Tree> {
    let mut tree = Tree::default();
    let from = |name: &str| fs::read(source.join("packaging/debian").join(name)).with_context(|| format!("packaging/debian/{name}"));
    names(&mut tree, "usr/bin", program);
    tree.file("usr/lib/systemd/system/lockgate.service", program.unit("/usr/bin/lockgate")?);
    tree.file("etc/default/lockgate", from("default")?);
    tree.file("etc/lockgate/example.yaml", program.example()?);
    for (name, page) in program.man()? {
        tree.file(format!("usr/share/man/man1/{name}.gz"), gzip(&page));
    }
    completions(&mut tree, "usr/share", ("zsh/vendor-completions", "fish/vendor_completions.d"), program)?;
    documents(&mut tree, "usr/share/doc/lockgate", source)?;
    tree.file("usr/share/doc/lockgate/README.md", fs::read(source.join("README.md"))?);
    tree.file("usr/share/doc/lockgate/changelog.gz", gzip(&fs::read(source.join("CHANGELOG.md"))?));
    tree.file("usr/share/doc/lockgate/copyright", from("copyright")?);
    tree.file("usr/share/doc/lockgate/THIRD-PARTY.txt.gz", gzip(third_party.as_bytes()));
    Ok(tree)
}

fn names(tree: &mut Tree, dir: &str, program: &Program) {
    tree.program(format!("{dir}/lockgate"), program.bytes.as_slice());
    tree.link(format!("{dir}/tsh"), "lockgate");
    tree.link(format!("{dir}/tctl"), "lockgate");
}

fn completions(tree: &mut Tree, share: &str, (zsh, fish): (&str, &str), program: &Program) -> Result<()> {
    for name in NAMES {
        tree.file(format!("{share}/bash-completion/completions/{name}"), program.completion("bash", name)?);
        tree.file(format!("{share}/{zsh}/_{name}"), program.completion("zsh", name)?);
        tree.file(format!("{share}/{fish}/{name}.fish"), program.completion("fish", name)?);
    }
    Ok(())
}

/// `docs/` with its reference, as it is in the sources.
fn documents(tree: &mut Tree, dir: &str, source: &Path) -> Result<()> {
    for folder in ["docs", "docs/reference"] {
        for entry in fs::read_dir(source.join(folder)).with_context(|| folder.to_owned())? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            if path.extension().is_some_and(|end| end == "md") {
                tree.file(format!("{dir}/{folder}/{name}"), fs::read(&path)?);
            }
        }
    }
    Ok(())
}

#[cfg(test)]
#[path = "stage/tests.rs"]
mod tests;
