//! Releases side by side: `versions/<version>/` each, and `current`, the link that names the one to run.
//!
//! A release comes into its place by a rename, after its program was found to be what the vendor signed; the link moves by a rename
//! too, so that it always names a whole release. What runs and what ran before stay, older ones go. One updater works here at a
//! time, by a lock that its process holds.

use crate::unpack::{BadArchive, unpack};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};
use types::{Code, Public, Sha256, Version};
use upgrade::updater::{Installed, Job};

/// The program within a release.
pub const PROGRAM: &str = "bin/lockgate";
/// Its other names.
const NAMES: [&str; 2] = ["tsh", "tctl"];
const CURRENT: &str = "current";
const FACTS: &str = ".release.json";

/// Why a release did not come into its place.
#[derive(Debug, thiserror::Error)]
pub enum VersionError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{file}: {source}")]
    Archive { file: String, source: BadArchive },
    #[error("the program in {file} is not the one that the vendor signed")]
    Program { file: String },
    #[error("another updater works in {0}")]
    Locked(PathBuf),
}

impl VersionError {
    pub fn public(&self) -> Public {
        match self {
            Self::File { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
                Public::new(Code::UpdateBroken, self.to_string()).hint("free some space: a release needs about 300 MB")
            }
            Self::File { .. } => Public::new(Code::UpdateBroken, self.to_string()),
            Self::Archive { .. } | Self::Program { .. } => {
                Public::new(Code::UpdateBroken, self.to_string()).hint("the vendor's release itself is broken: tell whoever publishes it")
            }
            Self::Locked(_) => Public::new(Code::Conflict, self.to_string()).hint("wait until it has finished"),
        }
    }
}

/// What stands beside a release.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
struct Facts {
    version: Version,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    archive: Option<Sha256>,
    program: Sha256,
}

/// The directory.
#[derive(Clone, Debug)]
pub struct Versions {
    dir: PathBuf,
}

/// Held while an updater works; the system lets go of it whatever becomes of the process.
#[derive(Debug)]
pub struct Held(#[allow(dead_code, reason = "the lock is the open file")] File);

impl Versions {
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    fn failed(&self, path: &Path) -> impl FnOnce(io::Error) -> VersionError + use<> {
        let path = path.to_owned();
        move |source| VersionError::File { path, source }
    }

    pub fn lock(&self) -> Result<Held, VersionError> {
        fs::create_dir_all(self.all()).map_err(self.failed(&self.dir))?;
        let path = self.dir.join(".lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path).map_err(self.failed(&path))?;
        rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive)
            .map_err(|_| VersionError::Locked(self.dir.clone()))?;
        Ok(Held(file))
    }

    fn all(&self) -> PathBuf {
        self.dir.join("versions")
    }

    /// The link.
    pub fn current(&self) -> PathBuf {
        self.dir.join(CURRENT)
    }

    /// The program that the link names.
    pub fn program(&self) -> PathBuf {
        self.current().join(PROGRAM)
    }

    /// What the link names; none when there is no link, or nothing whole behind it.
    pub fn installed(&self) -> Option<Installed> {
        let facts = facts(&self.current())?;
        Some(Installed { version: facts.version, archive: facts.archive })
    }

    /// The place of a release: its version, and its digest too where another build has the name.
    fn place(&self, version: &Version, archive: Option<&Sha256>) -> PathBuf {
        let plain = self.all().join(version.to_string());
        match (facts(&plain), archive) {
            (Some(found), Some(archive)) if found.archive.as_ref() != Some(archive) => {
                let digest = archive.to_string();
                self.all().join(format!("{version}-{}", digest.get(..8).unwrap_or_default()))
            }
            _ => plain,
        }
    }

    /// The release's own program, once it is staged.
    pub fn staged(&self, job: &Job) -> PathBuf {
        self.place(&job.version, Some(&job.archive)).join(PROGRAM)
    }

    /// Whether it is in its place, whole.
    pub fn has(&self, job: &Job) -> bool {
        let place = self.place(&job.version, Some(&job.archive));
        facts(&place).is_some_and(|facts| facts.archive == Some(job.archive))
            && crate::digest_of(&place.join(PROGRAM)).is_ok_and(|digest| digest == job.program)
    }

    /// Unpacks a release that was fetched. Nothing is in its place before all of it was checked.
    pub fn stage(&self, job: &Job, archive: &Path) -> Result<(), VersionError> {
        if self.has(job) {
            return Ok(());
        }
        let part = self.all().join(format!(".{}.part", job.version));
        clear(&part).map_err(self.failed(&part))?;
        let made = self.unpacked(job, archive, &part);
        if made.is_err() {
            let _ = clear(&part);
        }
        made
    }

    fn unpacked(&self, job: &Job, archive: &Path, part: &Path) -> Result<(), VersionError> {
        unpack(archive, &job.archive, part).map_err(|source| VersionError::Archive { file: job.file.clone(), source })?;
        let program = part.join(PROGRAM);
        if !crate::digest_of(&program).is_ok_and(|digest| digest == job.program) {
            return Err(VersionError::Program { file: job.file.clone() });
        }
        let facts = Facts { version: job.version.clone(), archive: Some(job.archive), program: job.program };
        self.put(part, &facts, &self.place(&job.version, Some(&job.archive)))
    }

    /// Takes a program that is there already among the releases, so that there is something to go back to.
    pub fn adopt(&self, version: &Version, program: &Path) -> Result<Installed, VersionError> {
        let part = self.all().join(format!(".{version}.part"));
        clear(&part).map_err(self.failed(&part))?;
        let own = part.join(PROGRAM);
        let copied = fs::create_dir_all(part.join("bin")).and_then(|()| fs::copy(program, &own)).and_then(|_| {
            fs::set_permissions(&own, fs::Permissions::from_mode(0o755))?;
            NAMES.iter().try_for_each(|name| symlink("lockgate", part.join("bin").join(name)))?;
            crate::digest_of(&own)
        });
        let digest = copied.map_err(self.failed(&own))?;
        let facts = Facts { version: version.clone(), archive: None, program: digest };
        let place = self.place(version, None);
        self.put(&part, &facts, &place)?;
        self.name(&place)?;
        Ok(Installed { version: version.clone(), archive: None })
    }

    fn put(&self, part: &Path, facts: &Facts, place: &Path) -> Result<(), VersionError> {
        let text = serde_json::to_vec(facts).unwrap_or_default();
        let done = replace(&part.join(FACTS), &text)
            .and_then(|()| sync_tree(part))
            .and_then(|()| clear(place))
            .and_then(|()| fs::rename(part, place))
            .and_then(|()| File::open(self.all())?.sync_all());
        done.map_err(self.failed(place))
    }

    /// Makes the link name a release that is in its place.
    pub fn switch(&self, to: &Installed) -> Result<(), VersionError> {
        self.name(&self.place(&to.version, to.archive.as_ref()))
    }

    fn name(&self, place: &Path) -> Result<(), VersionError> {
        if facts(place).is_none() {
            return Err(VersionError::File { path: place.to_owned(), source: io::ErrorKind::NotFound.into() });
        }
        let (link, fresh) = (self.current(), self.dir.join(".current.part"));
        let target = Path::new("versions").join(place.file_name().unwrap_or_default());
        let moved = clear(&fresh)
            .and_then(|()| symlink(target, &fresh))
            .and_then(|()| fs::rename(&fresh, &link))
            .and_then(|()| File::open(&self.dir)?.sync_all());
        moved.map_err(self.failed(&link))
    }

    /// Removes what is neither current nor to be kept.
    pub fn prune(&self, keep: &[Installed]) {
        let current = fs::read_link(self.current()).ok().and_then(|link| link.file_name().map(ToOwned::to_owned));
        let kept: Vec<PathBuf> = keep.iter().map(|keep| self.place(&keep.version, keep.archive.as_ref())).collect();
        for entry in fs::read_dir(self.all()).into_iter().flatten().flatten() {
            if Some(entry.file_name()) != current && !kept.contains(&entry.path()) {
                let _ = clear(&entry.path());
            }
        }
    }
}

/// A release that is whole has its facts, written last.
fn facts(place: &Path) -> Option<Facts> {
    serde_json::from_slice(&fs::read(place.join(FACTS)).ok()?).ok()
}

/// Removes a file, a link, or a folder with what is in it.
fn clear(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Writes a file beside its name and renames it there.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = path.with_file_name(format!(".{name}.part"));
    let mut file = OpenOptions::new().create(true).truncate(true).write(true).mode(0o644).open(&part)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&part, path)
}

/// A rename that outlives a power cut must not name files that do not.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        if kind.is_dir() {
            sync_tree(&entry.path())?;
        } else if kind.is_file() {
            File::open(entry.path())?.sync_all()?;
        }
    }
    File::open(dir)?.sync_all()
}
