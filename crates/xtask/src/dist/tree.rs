//! Files to ship, in memory, and a tar archive of them that is the same on every machine.
//!
//! The archive knows no owner but root, no time but the one given, and no mode but 0755, 0644 and 0777 (links); entries stand in
//! the order of their paths. Written here, and not by a crate: what must be the same in ten years should not depend on the defaults of
//! others (ustar, POSIX.1-1988; names up to 100 bytes behind a prefix of up to 155).

use anyhow::{Context, Result, bail};
use std::collections::BTreeMap;

/// One thing in an archive.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Node {
    Dir,
    File { bytes: Vec<u8>, executable: bool },
    Link(String),
}

/// Paths without a leading `/`, and what is there. Folders come by themselves.
#[derive(Clone, Default, Debug)]
pub(crate) struct Tree(BTreeMap<String, Node>);

impl Tree {
    pub(crate) fn file(&mut self, path: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.put(path.into(), Node::File { bytes: bytes.into(), executable: false });
    }

    pub(crate) fn program(&mut self, path: impl Into<String>, bytes: impl Into<Vec<u8>>) {
        self.put(path.into(), Node::File { bytes: bytes.into(), executable: true });
    }

    pub(crate) fn link(&mut self, path: impl Into<String>, target: &str) {
        self.put(path.into(), Node::Link(target.to_owned()));
    }

    fn put(&mut self, path: String, node: Node) {
        let mut parent = path.as_str();
        while let Some((above, _)) = parent.rsplit_once('/') {
            self.0.entry(above.to_owned()).or_insert(Node::Dir);
            parent = above;
        }
        self.0.insert(path, node);
    }

    /// Everything of `other`, below `prefix`.
    pub(crate) fn graft(&mut self, prefix: &str, other: Tree) {
        for (path, node) in other.0 {
            self.put(format!("{prefix}/{path}"), node);
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Node)> {
        self.0.iter().map(|(path, node)| (path.as_str(), node))
    }

    /// What it takes on a disk, in KiB, each file rounded up.
    pub(crate) fn kib(&self) -> usize {
        let size = |node: &Node| match node {
            Node::File { bytes, .. } => bytes.len().div_ceil(1024),
            Node::Dir | Node::Link(_) => 1,
        };
        self.0.values().map(size).sum()
    }

    /// The archive. `root` stands before every path: nothing, or `./` as Debian has it, with an entry of its own.
    pub(crate) fn tar(&self, root: &str, mtime: u64) -> Result<Vec<u8>> {
        let mut out = Vec::new();
        if !root.is_empty() {
            entry(&mut out, root, &Node::Dir, mtime)?;
        }
        for (path, node) in &self.0 {
            let slash = if *node == Node::Dir { "/" } else { "" };
            entry(&mut out, &format!("{root}{path}{slash}"), node, mtime).with_context(|| path.clone())?;
        }
        out.resize(out.len().next_multiple_of(BLOCK) + 2 * BLOCK, 0);
        Ok(out)
    }
}

const BLOCK: usize = 512;

fn entry(out: &mut Vec<u8>, path: &str, node: &Node, mtime: u64) -> Result<()> {
    let (kind, mode, bytes, target) = match node {
        Node::Dir => (b'5', 0o755, &[][..], ""),
        Node::File { bytes, executable: true } => (b'0', 0o755, bytes.as_slice(), ""),
        Node::File { bytes, executable: false } => (b'0', 0o644, bytes.as_slice(), ""),
        Node::Link(target) => (b'2', 0o777, &[][..], target.as_str()),
    };
    let (prefix, name) = split(path)?;
    let mut header = Vec::with_capacity(BLOCK);
    let mut text = |width: usize, value: &str| -> Result<()> {
        if value.len() > width {
            bail!("\"{value}\" does not fit in {width} bytes");
        }
        header.extend_from_slice(value.as_bytes());
        header.resize(header.len() + width - value.len(), 0);
        Ok(())
    };
    text(100, name)?;
    text(8, &format!("{mode:07o}"))?;
    text(8, "0000000")?;
    text(8, "0000000")?;
    text(12, &format!("{:011o}", bytes.len()))?;
    text(12, &format!("{mtime:011o}"))?;
    text(8, "        ")?;
    text(1, char::from(kind).encode_utf8(&mut [0; 4]))?;
    text(100, target)?;
    text(8, "ustar\x0000")?;
    text(32, "root")?;
    text(32, "root")?;
    text(8, "0000000")?;
    text(8, "0000000")?;
    text(155, prefix)?;
    text(12, "")?;
    // The sum is taken with blanks in its own place.
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    out.extend(header.iter().take(148).copied().chain(sum.bytes()).chain(header.iter().skip(156).copied()));
    out.extend_from_slice(bytes);
    out.resize(out.len().next_multiple_of(BLOCK), 0);
    Ok(())
}

/// Prefix and name, cut at a `/`.
fn split(path: &str) -> Result<(&str, &str)> {
    if path.len() <= 100 {
        return Ok(("", path));
    }
    let cuts = path.match_indices('/').map(|(at, _)| at).filter(|at| *at <= 155);
    let fits = |at: &usize| path.len() - at - 1 <= 100 && path.len() - at > 1;
    let at = cuts.into_iter().find(fits).with_context(|| format!("{path} is too long for a tar archive"))?;
    Ok((path.get(..at).unwrap_or_default(), path.get(at + 1..).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::process::Command;

    fn sample() -> Tree {
        let mut tree = Tree::default();
        tree.program("bin/lockgate", "#!/bin/sh\n");
        tree.link("bin/tsh", "lockgate");
        tree.file(format!("share/{}/{}.1", "d".repeat(60), "n".repeat(80)), vec![7; 700]);
        tree
    }

    #[test]
    fn the_order_in_which_files_were_added_does_not_matter() {
        let mut other = Tree::default();
        let turned: Vec<_> = sample().0.into_iter().rev().collect();
        turned.into_iter().for_each(|(path, node)| other.put(path, node));
        assert_eq!(other.tar("./", 7).unwrap(), sample().tar("./", 7).unwrap());
        assert_ne!(other.tar("./", 7).unwrap(), sample().tar("./", 8).unwrap(), "the time is in it");
    }

    #[test]
    fn the_ordinary_tar_reads_it_back() {
        let scratch = tempfile::tempdir().unwrap();
        let archive = scratch.path().join("a.tar");
        fs::write(&archive, sample().tar("", 1_700_000_000).unwrap()).unwrap();
        let run = |words: &[&str]| {
            let told = Command::new("tar").args(words).arg(&archive).current_dir(scratch.path()).env("TZ", "UTC").output().unwrap();
            assert!(told.status.success() && told.stderr.is_empty(), "{}", String::from_utf8_lossy(&told.stderr));
            String::from_utf8(told.stdout).unwrap()
        };
        let listed = run(&["--full-time", "-tvf"]);
        assert!(listed.lines().all(|line| line.contains("root/root") && line.contains("2023-11-14 22:13:20")), "{listed}");
        assert!(listed.contains("-rwxr-xr-x") && listed.contains("bin/tsh -> lockgate") && listed.contains("drwxr-xr-x"), "{listed}");
        run(&["-xf"]);
        for (path, node) in sample().iter() {
            if let Node::File { bytes, .. } = node {
                assert_eq!(&fs::read(scratch.path().join(path)).unwrap(), bytes, "{path}");
            }
        }
    }

    #[test]
    fn a_path_that_fits_nowhere_is_refused_by_name() {
        let mut tree = Tree::default();
        tree.file("x".repeat(101), "");
        assert!(format!("{:#}", tree.tar("", 0).unwrap_err()).contains("too long"));
    }
}
