//! The Proxy's mirror of releases: a directory as `make release` fills it, `<version>/` with the files and their `SHA256SUMS`, and
//! `metadata/` for what an updater signs.
//!
//! Files are asked for by digest, so no peer names a path; metadata by a name that is one part of a path. Nothing is handed out that is
//! not in a list of digests, and nothing before it was read whole and found to be what the list says: a file that was damaged
//! or exchanged is refused, and said in the log. Symbolic links are not followed out of the directory. All of this waits for
//! the disk: call it beside the runtime.

use sha2::Digest as _;
use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::{FileExt as _, MetadataExt as _},
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};
use types::{Code, Extra, Public, Version};
use wire::rescue::{Artifact, FileName, MAX_ARTIFACTS, Sha256};

/// Releases that are looked at.
const MAX_RELEASES: usize = 64;
/// Bytes and lines of one list of digests.
const MAX_LIST: u64 = 256 * 1024;
const MAX_LINES: usize = 512;
/// Bytes of a metadata file.
const MAX_METADATA: u64 = 8 << 20;
const LIST: &str = "SHA256SUMS";
const METADATA: &str = "metadata";

/// The directory, and which of its files were found genuine.
#[derive(Debug)]
pub(super) struct Mirror {
    dir: PathBuf,
    proved: Mutex<BTreeMap<PathBuf, (Stamp, Sha256)>>,
}

/// A file that did not change has the same.
type Stamp = (u64, u64, i64, i64);

/// Bytes that may be handed out.
#[derive(Debug)]
pub(super) struct Opened {
    held: Held,
    pub(super) size: u64,
}

#[derive(Debug)]
enum Held {
    File(File),
    Memory(bytes::Bytes),
}

impl From<bytes::Bytes> for Opened {
    fn from(bytes: bytes::Bytes) -> Self {
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Self { held: Held::Memory(bytes), size }
    }
}

impl Opened {
    /// The bytes from `start` to `end`.
    pub(super) fn read(&self, start: u64, end: u64) -> io::Result<Vec<u8>> {
        let length = usize::try_from(end.saturating_sub(start)).map_err(io::Error::other)?;
        match &self.held {
            Held::File(file) => {
                let mut bytes = vec![0; length];
                file.read_exact_at(&mut bytes, start)?;
                Ok(bytes)
            }
            Held::Memory(all) => {
                let from = usize::try_from(start).map_err(io::Error::other)?;
                let part = all.get(from..from.saturating_add(length)).ok_or(io::ErrorKind::UnexpectedEof)?;
                Ok(part.to_vec())
            }
        }
    }
}

impl Mirror {
    pub(super) fn new(dir: PathBuf) -> Self {
        Self { dir, proved: Mutex::new(BTreeMap::new()) }
    }

    /// The releases that have a list of digests.
    pub(super) fn versions(&self) -> Vec<Version> {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        let named = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<Version>().ok());
        named.filter(|version| is_file(&self.folder(version).join(LIST))).take(MAX_RELEASES).collect()
    }

    /// What is held of that release for a system, in the order of the list.
    pub(super) fn artifacts(&self, version: &Version, os: &str, arch: &str) -> Vec<Artifact> {
        let fits = |wanted: &str, has: &str| has.is_empty() || wanted == has;
        let all = self.list(version).into_iter().filter_map(|(name, sha256)| {
            let size = fs::symlink_metadata(self.folder(version).join(name.as_str())).ok().filter(fs::Metadata::is_file)?.len();
            let (os, arch) = system(&name, version);
            Some(Artifact { name, os, arch, sha256, size, extra: Extra::new() })
        });
        all.filter(|artifact| fits(os, &artifact.os) && fits(arch, &artifact.arch)).take(MAX_ARTIFACTS).collect()
    }

    /// The file with that digest, proved to have it.
    pub(super) fn artifact(&self, wanted: &Sha256) -> Result<Opened, Public> {
        for version in self.versions() {
            let Some((name, sha256)) = self.list(&version).into_iter().find(|(_, sha256)| sha256 == wanted) else { continue };
            let path = self.folder(&version).join(name.as_str());
            let (file, size) = open(&path, u64::MAX).map_err(|_| missing())?;
            if self.prove(&path, &file)? != sha256 {
                tracing::error!(file = %path.display(), "a file of the mirror is not what {LIST} says; it is not handed out");
                let text = format!("{name} in the Proxy's mirror is damaged: it is not what {LIST} says");
                return Err(Public::new(Code::MirrorBroken, text).hint("copy the release into the mirror again"));
            }
            return Ok(Opened { held: Held::File(file), size });
        }
        Err(missing())
    }

    /// A metadata file. It is signed, and judged by whoever fetched it.
    pub(super) fn metadata(&self, name: &FileName) -> Result<Opened, Public> {
        let (file, size) = open(&self.dir.join(METADATA).join(name.as_str()), MAX_METADATA).map_err(|_| missing())?;
        Ok(Opened { held: Held::File(file), size })
    }

    fn folder(&self, version: &Version) -> PathBuf {
        self.dir.join(version.to_string())
    }

    fn list(&self, version: &Version) -> Vec<(FileName, Sha256)> {
        let read = || -> io::Result<String> {
            let (file, _) = open(&self.folder(version).join(LIST), MAX_LIST)?;
            let mut text = String::new();
            file.take(MAX_LIST).read_to_string(&mut text)?;
            Ok(text)
        };
        let text = read().unwrap_or_default();
        text.lines().take(MAX_LINES).filter_map(line).collect()
    }

    /// The digest of the file's bytes; read again only when it changed.
    fn prove(&self, path: &Path, file: &File) -> Result<Sha256, Public> {
        let unreadable = |_: io::Error| Public::new(Code::Unavailable, "the mirror cannot be read").hint("try again");
        let before = stamp(file).map_err(unreadable)?;
        if let Some((then, sha256)) = self.proved.lock().unwrap_or_else(PoisonError::into_inner).get(path)
            && *then == before
        {
            return Ok(*sha256);
        }
        let mut hash = sha2::Sha256::new();
        let mut block = vec![0; 256 * 1024];
        let mut at = 0u64;
        loop {
            let read = file.read_at(&mut block, at).map_err(unreadable)?;
            if read == 0 {
                break;
            }
            hash.update(block.get(..read).unwrap_or_default());
            at = at.saturating_add(u64::try_from(read).unwrap_or(u64::MAX));
        }
        let sha256 = Sha256::new(hash.finalize().into());
        // Not remembered when it changed while it was read.
        if stamp(file).map_err(unreadable)? == before {
            let mut proved = self.proved.lock().unwrap_or_else(PoisonError::into_inner);
            proved.retain(|path, _| is_file(path));
            proved.insert(path.to_owned(), (before, sha256));
        }
        Ok(sha256)
    }
}

fn missing() -> Public {
    Public::new(Code::NotFound, "the Proxy's mirror has no such file").hint("ask for advice again: it lists what there is")
}

fn stamp(file: &File) -> io::Result<Stamp> {
    let meta = file.metadata()?;
    Ok((meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
}

fn is_file(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file())
}

/// Opens a plain file of at most so many bytes, in a plain directory.
fn open(path: &Path, most: u64) -> io::Result<(File, u64)> {
    let plain = path.parent().is_some_and(|dir| fs::symlink_metadata(dir).is_ok_and(|meta| meta.is_dir())) && is_file(path);
    if !plain {
        return Err(io::ErrorKind::NotFound.into());
    }
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    if size > most { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok((file, size)) }
}

/// `<digest>  <name>`, as sha256sum writes it; a `*` before the name says that it was read as bytes.
fn line(text: &str) -> Option<(FileName, Sha256)> {
    let (digest, name) = text.split_once(' ')?;
    let name = name.trim_start().strip_prefix('*').unwrap_or(name.trim_start());
    Some((name.trim_end().parse().ok()?, digest.parse().ok()?))
}

/// The system that a file is for, by its name; empty for every system.
fn system(name: &FileName, version: &Version) -> (String, String) {
    let archive = name
        .as_str()
        .strip_prefix(&format!("lockgate-{version}-"))
        .and_then(|rest| rest.split('.').next())
        .and_then(|rest| rest.split_once('-'));
    let package = name.as_str().strip_suffix(".deb").and_then(|rest| rest.rsplit_once('_')).map(|(_, arch)| ("linux", arch));
    archive.or(package).map_or_else(Default::default, |(os, arch)| (os.to_owned(), arch.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        sha2::Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A mirror with one release of two files.
    fn filled() -> (tempfile::TempDir, Mirror) {
        let dir = tempfile::tempdir().unwrap();
        let release = dir.path().join("1.2.0");
        fs::create_dir_all(&release).unwrap();
        fs::create_dir_all(dir.path().join(METADATA)).unwrap();
        fs::write(release.join("lockgate-1.2.0-linux-amd64.tar.gz"), b"archive").unwrap();
        fs::write(release.join("lockgate-1.2.0-linux-arm64.tar.gz"), b"other").unwrap();
        fs::write(release.join("lockgate_1.2.0_amd64.deb"), b"package").unwrap();
        fs::write(release.join("manifest.json"), b"{}").unwrap();
        fs::write(dir.path().join(METADATA).join("root.json"), b"signed").unwrap();
        let lines = format!(
            "{}  lockgate-1.2.0-linux-amd64.tar.gz\n{} *lockgate-1.2.0-linux-arm64.tar.gz\n{}  lockgate_1.2.0_amd64.deb\n{}  manifest.json\n{}  ../../secret\nnonsense\n",
            hex(b"archive"),
            hex(b"other"),
            hex(b"package"),
            hex(b"{}"),
            hex(b"secret"),
        );
        fs::write(release.join(LIST), lines).unwrap();
        fs::write(dir.path().join("secret"), b"secret").unwrap();
        let mirror = Mirror::new(dir.path().to_owned());
        (dir, mirror)
    }

    fn version() -> Version {
        Version::new(1, 2, 0)
    }

    #[test]
    fn a_release_is_listed_for_the_system_that_asks() {
        let (dir, mirror) = filled();
        fs::create_dir_all(dir.path().join("not-a-version")).unwrap();
        fs::create_dir_all(dir.path().join("9.9.9")).unwrap();
        assert_eq!(mirror.versions(), [version()]);
        let names = |os: &str, arch: &str| {
            mirror.artifacts(&version(), os, arch).iter().map(|artifact| artifact.name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names("linux", "amd64"), ["lockgate-1.2.0-linux-amd64.tar.gz", "lockgate_1.2.0_amd64.deb", "manifest.json"]);
        assert_eq!(names("linux", "arm64"), ["lockgate-1.2.0-linux-arm64.tar.gz", "manifest.json"]);
        assert_eq!(names("plan9", "amd64"), ["manifest.json"]);
    }

    #[test]
    fn a_file_is_handed_out_by_its_digest_and_only_while_it_has_it() {
        let (dir, mirror) = filled();
        let wanted: Sha256 = hex(b"archive").parse().unwrap();
        let opened = mirror.artifact(&wanted).unwrap();
        assert_eq!((opened.size, opened.read(2, 5).unwrap()), (7, b"chi".to_vec()));
        assert!(mirror.artifact(&Sha256::new([1; 32])).unwrap_err().is(Code::NotFound));
        // Damaged after it was proved: same length, and looked at again.
        let path = dir.path().join("1.2.0/lockgate-1.2.0-linux-amd64.tar.gz");
        fs::write(&path, b"Archive").unwrap();
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(2);
        File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert!(mirror.artifact(&wanted).unwrap_err().is(Code::MirrorBroken));
        fs::remove_file(&path).unwrap();
        assert!(mirror.artifact(&wanted).unwrap_err().is(Code::NotFound));
    }

    #[test]
    fn attack_row_21_nothing_outside_of_the_mirror_is_handed_out() {
        let (dir, mirror) = filled();
        let release = dir.path().join("1.2.0");
        assert!(mirror.artifact(&hex(b"secret").parse().unwrap()).unwrap_err().is(Code::NotFound));
        // By a link in the mirror.
        fs::remove_file(release.join("manifest.json")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("secret"), release.join("manifest.json")).unwrap();
        assert!(mirror.artifact(&hex(b"{}").parse().unwrap()).unwrap_err().is(Code::NotFound));
        std::os::unix::fs::symlink(dir.path(), dir.path().join("3.0.0")).unwrap();
        assert_eq!(mirror.versions(), [version()]);
        assert_eq!(mirror.metadata(&"root.json".parse().unwrap()).unwrap().size, 6);
        assert!(mirror.metadata(&"timestamp.json".parse().unwrap()).unwrap_err().is(Code::NotFound));
        // A mirror that is not there is empty.
        let none = Mirror::new(dir.path().join("nowhere"));
        assert!(none.versions().is_empty() && none.artifact(&Sha256::new([0; 32])).unwrap_err().is(Code::NotFound));
    }
}
