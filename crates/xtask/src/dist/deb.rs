//! The Debian package, written here: an `ar` archive of two tar archives (deb(5)), so that it is the same on every machine.
//!
//! Its scripts and words are those of packaging/debian. What it promises: nothing is started or enabled by installing; nothing
//! running is cut by an upgrade; a jump over a major is refused before a file is changed; the cluster's state is never removed.

use super::gzip::gzip;
use super::tree::{Node, Tree};
use anyhow::{Context, Result};
use std::fs;
use std::path::Path;

/// Scripts that dpkg runs; all of them are packaging/debian/NAME.
const SCRIPTS: &[&str] = &["preinst", "postinst", "prerm", "postrm"];

/// What the package says of itself.
pub(crate) struct About<'a> {
    pub version: &'a str,
    pub arch: &'a str,
    /// The oldest glibc whose functions the program uses.
    pub glibc: &'a str,
    /// Seconds since 1970, for everything in it.
    pub time: u64,
}

/// The package's bytes; `packaging` is the folder packaging/debian.
pub(crate) fn deb(about: &About<'_>, data: &Tree, packaging: &Path) -> Result<Vec<u8>> {
    let read = |name: &str| fs::read_to_string(packaging.join(name)).with_context(|| format!("packaging/debian/{name}"));
    let mut control = Tree::default();
    let words = [
        ("@VERSION@", debian_version(about.version)),
        ("@ARCH@", about.arch.to_owned()),
        ("@GLIBC@", about.glibc.to_owned()),
        ("@INSTALLED_SIZE@", data.kib().to_string()),
    ];
    control.file("control", fill(&read("control")?, &words));
    let conffiles = data.iter().filter(|(path, node)| path.starts_with("etc/") && matches!(node, Node::File { .. }));
    control.file("conffiles", conffiles.map(|(path, _)| format!("/{path}\n")).collect::<String>());
    for script in SCRIPTS {
        control.program(*script, fill(&read(script)?, &words));
    }
    let mut out = b"!<arch>\n".to_vec();
    member(&mut out, "debian-binary", b"2.0\n", about.time);
    member(&mut out, "control.tar.gz", &gzip(&control.tar("./", about.time)?), about.time);
    member(&mut out, "data.tar.gz", &gzip(&data.tar("./", about.time)?), about.time);
    Ok(out)
}

/// A pre-release sorts before its release: `1.0.0~rc.1`.
pub(crate) fn debian_version(version: &str) -> String {
    version.replacen('-', "~", 1)
}

/// Puts words in the places marked for them.
pub(crate) fn fill(text: &str, words: &[(&str, String)]) -> String {
    words.iter().fold(text.to_owned(), |text, (mark, word)| text.replace(mark, word))
}

fn member(out: &mut Vec<u8>, name: &str, bytes: &[u8], time: u64) {
    out.extend(format!("{name:<16}{time:<12}{:<6}{:<6}{:<8}{:<10}`\n", 0, 0, 100_644, bytes.len()).bytes());
    out.extend_from_slice(bytes);
    if bytes.len() % 2 == 1 {
        out.push(b'\n');
    }
}

/// The newest version of glibc that a program names: `2.34`, read from its table of needed versions.
pub(crate) fn glibc(program: &[u8]) -> Option<String> {
    const MARK: &[u8] = b"\0GLIBC_2.";
    let minors = program.windows(MARK.len()).enumerate().filter(|(_, window)| *window == MARK).filter_map(|(at, _)| {
        let rest = program.get(at + MARK.len()..)?;
        let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        // `2.2.5` counts as 2.2.
        matches!(rest.get(digits), Some(0 | b'.')).then(|| std::str::from_utf8(rest.get(..digits)?).ok()?.parse::<u32>().ok()).flatten()
    });
    minors.max().map(|minor| format!("2.{minor}"))
}

#[cfg(test)]
#[path = "deb/tests.rs"]
mod tests;
