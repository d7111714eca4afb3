//! Making a signed repository of a folder of releases, and signing it anew: for whoever publishes.
//!
//! The folder is a mirror as Proxies have it: `<version>/` as `cargo xtask dist` writes it, and `metadata/`, which this module writes.
//! What lacks signatures lies in `staging/` until it has enough: signers may work on different machines, one after another, with the
//! folder carried between them. Root and targets are signed by the signers, up to a threshold; snapshot and timestamp, which say
//! how fresh all of it is, by a key that may be on a machine. Files appear in the order in which clients believe them, each by a
//! rename, so that a mirror can be copied at any moment.

use crate::{
    keys::{Signer, Verifier, short},
    offer::Manifest,
    source::Folder,
    versions::replace,
};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    collections::HashMap,
    fs, io,
    num::NonZeroU64,
    path::{Path, PathBuf},
    time::Duration,
};
use tough::{
    TargetName,
    schema::{
        Hashes, Metafile, Role, RoleKeys, RoleType, Root, Signed, Snapshot, Target, Targets, Timestamp,
        decoded::{Decoded, Hex},
    },
};
use types::{Code, Public, Sha256, Time, Version};

const SPEC: &str = "1.0.0";
const STAGED_ROOT: &str = "root.json";
const STAGED_TARGETS: &str = "targets.json";

/// Why the repository could not be made or signed.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error("{path} cannot be read: {why}")]
    Malformed { path: PathBuf, why: String },
    #[error("{path} is not what its manifest.json says")]
    Damaged { path: PathBuf },
    #[error("a threshold of {threshold} needs at least as many signers, and no more than there are: {signers} were named")]
    Threshold { threshold: u64, signers: usize },
    #[error("the repository has no root yet that enough signers signed")]
    NoRoot,
    #[error("none of these keys may sign anything here")]
    Stranger,
    #[error("the metadata could not be written: {0}")]
    Encode(String),
}

impl PublishError {
    pub fn public(&self) -> Public {
        let public = Public::new(Code::Usage, self.to_string());
        match self {
            Self::NoRoot => public.hint("lockgate release init makes one, lockgate release sign adds signatures"),
            Self::Damaged { .. } => Public::new(Code::UpdateBroken, self.to_string()).hint("copy the release into the folder again"),
            Self::Stranger => public.hint("lockgate release show lists the keys"),
            Self::File { .. } | Self::Malformed { .. } | Self::Threshold { .. } | Self::Encode(_) => public,
        }
    }
}

/// Who vouches: the signers and how many of them it takes, and the key that says how fresh it is.
#[derive(Clone, Debug)]
pub struct Vouchers {
    pub signers: Vec<Verifier>,
    pub threshold: u64,
    pub online: Vec<Verifier>,
}

/// How long what is signed now is believed.
#[derive(Clone, Copy, Debug)]
pub struct Lives {
    pub root: Duration,
    pub targets: Duration,
    pub fresh: Duration,
}

impl Default for Lives {
    fn default() -> Self {
        let days = |days: u64| Duration::from_secs(days * 86_400);
        Self { root: days(365), targets: days(90), fresh: days(7) }
    }
}

/// What a call to [`sign`] did, and what is missing.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Done {
    /// Files that are in force now.
    pub published: Vec<String>,
    /// What waits for more signatures: file, how many it has, how many it needs.
    pub waits: Vec<(String, u64, u64)>,
    pub releases: Vec<Version>,
}

/// Begins a repository, or the next root of one: staged until enough signers, of the root before too, have signed it.
pub fn init(folder: &Folder, vouchers: &Vouchers, lives: &Lives, now: Time) -> Result<u64, PublishError> {
    let signers = vouchers.signers.len();
    let threshold = NonZeroU64::new(vouchers.threshold)
        .filter(|threshold| u64::try_from(signers).is_ok_and(|signers| threshold.get() <= signers))
        .ok_or(PublishError::Threshold { threshold: vouchers.threshold, signers })?;
    let one = NonZeroU64::MIN;
    let last: Option<Signed<Root>> = newest(folder, "root.json")?;
    let version = last.map_or(one, |last| last.signed.version.saturating_add(1));
    let mut keys = HashMap::new();
    let mut role = |of: &[Verifier], threshold: NonZeroU64| {
        let ids: Vec<Decoded<Hex>> = of.iter().filter_map(|verifier| verifier.id()).collect();
        keys.extend(ids.iter().cloned().zip(of.iter().map(|verifier| verifier.0.clone())));
        RoleKeys { keyids: ids, threshold, _extra: HashMap::new() }
    };
    let offline = role(&vouchers.signers, threshold);
    let online = role(&vouchers.online, one);
    let roles = [
        (RoleType::Root, offline.clone()),
        (RoleType::Targets, offline),
        (RoleType::Snapshot, online.clone()),
        (RoleType::Timestamp, online),
    ];
    let root = Root {
        spec_version: SPEC.into(),
        consistent_snapshot: true,
        version,
        expires: end(now, lives.root),
        keys,
        roles: roles.into(),
        _extra: HashMap::new(),
    };
    stage(folder, STAGED_ROOT, &Signed { signed: root, signatures: Vec::new() })?;
    Ok(version.get())
}

/// Signs whatever these keys may sign: a staged root, the releases that lie in the folder, how fresh it is.
pub async fn sign(folder: &Folder, keys: &[&Signer], lives: &Lives, now: Time) -> Result<Done, PublishError> {
    let mut done = Done::default();
    let mut used = sign_root(folder, keys, &mut done).await?;
    let Some(root) = newest::<Root>(folder, "root.json")? else {
        return if done.waits.is_empty() { Err(PublishError::NoRoot) } else { Ok(done) };
    };
    let root = root.signed;
    let (targets, releases) = releases(folder)?;
    done.releases = releases;
    used |= sign_targets(folder, keys, &root, targets, lives, now, &mut done).await?;
    used |= refresh(folder, keys, &root, lives, now, &mut done).await?;
    if used { Ok(done) } else { Err(PublishError::Stranger) }
}

async fn sign_root(folder: &Folder, keys: &[&Signer], done: &mut Done) -> Result<bool, PublishError> {
    let Some(mut staged) = staged::<Root>(folder, STAGED_ROOT)? else { return Ok(false) };
    let before: Option<Signed<Root>> = newest(folder, "root.json")?;
    let may = |root: &Root, signer: &Signer| holds(root, RoleType::Root, signer);
    let mut used = false;
    for signer in keys.iter().copied() {
        if may(&staged.signed, signer) || before.as_ref().is_some_and(|before| may(&before.signed, signer)) {
            used |= add(&mut staged, signer).await?;
        }
    }
    let itself = staged.signed.clone();
    let trusted = before.as_ref().is_none_or(|before| before.signed.verify_role(&staged).is_ok());
    if itself.verify_role(&staged).is_ok() && trusted {
        publish(folder, &staged, STAGED_ROOT, done)?;
    } else {
        // A root that takes over is signed by enough of both.
        let judges = [Some(&itself), before.as_ref().map(|before| &before.signed)];
        let lacks = judges.into_iter().flatten().map(|judge| count(judge, RoleType::Root, &staged));
        let (has, needs) = lacks.max_by_key(|(has, needs)| needs.saturating_sub(*has)).unwrap_or((0, 1));
        stage(folder, STAGED_ROOT, &staged)?;
        done.waits.push((itself.filename(true), has, needs));
    }
    Ok(used)
}

async fn sign_targets(
    folder: &Folder,
    keys: &[&Signer],
    root: &Root,
    wanted: HashMap<TargetName, Target>,
    lives: &Lives,
    now: Time,
    done: &mut Done,
) -> Result<bool, PublishError> {
    let current: Option<Signed<Targets>> = newest(folder, "targets.json")?;
    // Renewed in the last third of its life, or by keys that a new root trusts.
    let soon = end(now, lives.targets / 3);
    let good =
        |current: &Signed<Targets>| current.signed.targets == wanted && current.signed.expires > soon && root.verify_role(current).is_ok();
    if current.as_ref().is_some_and(good) {
        return Ok(false);
    }
    let version = current.map_or(NonZeroU64::MIN, |current| current.signed.version.saturating_add(1));
    let begun = staged::<Targets>(folder, STAGED_TARGETS)?;
    let fits = |staged: &Signed<Targets>| staged.signed.targets == wanted && staged.signed.version == version;
    let mut staged = match begun.filter(fits) {
        Some(staged) => staged,
        None => {
            let mut targets = Targets::new(SPEC.into(), version, end(now, lives.targets));
            (targets.targets, targets.delegations) = (wanted, None);
            Signed { signed: targets, signatures: Vec::new() }
        }
    };
    let mut used = false;
    for signer in keys.iter().copied().filter(|signer| holds(root, RoleType::Targets, signer)) {
        used |= add(&mut staged, signer).await?;
    }
    if root.verify_role(&staged).is_ok() {
        publish(folder, &staged, STAGED_TARGETS, done)?;
    } else {
        stage(folder, STAGED_TARGETS, &staged)?;
        let (has, needs) = count(root, RoleType::Targets, &staged);
        done.waits.push((staged.signed.filename(true), has, needs));
    }
    Ok(used)
}

/// Snapshot and timestamp anew, if the key for them is here and there is something to say.
async fn refresh(folder: &Folder, keys: &[&Signer], root: &Root, lives: &Lives, now: Time, done: &mut Done) -> Result<bool, PublishError> {
    let Some(signer) = keys.iter().copied().find(|signer| holds(root, RoleType::Timestamp, signer)) else { return Ok(false) };
    let Some(targets) = newest::<Targets>(folder, "targets.json")? else { return Ok(true) };
    let expires = end(now, lives.fresh);
    let next = |version: Option<NonZeroU64>| version.map_or(NonZeroU64::MIN, |version| version.saturating_add(1));
    let last: Option<Signed<Snapshot>> = newest(folder, "snapshot.json")?;
    let mut snapshot = Snapshot::new(SPEC.into(), next(last.map(|last| last.signed.version)), expires);
    snapshot.meta = [("targets.json".to_owned(), metafile(folder, &targets.signed)?)].into();
    let snapshot = made(snapshot, signer).await?;
    publish(folder, &snapshot, "", done)?;
    let path = folder.metadata_dir().join("timestamp.json");
    let last: Option<Signed<Timestamp>> = read(&path)?;
    let mut timestamp = Timestamp::new(SPEC.into(), next(last.map(|last| last.signed.version)), expires);
    timestamp.meta = [("snapshot.json".to_owned(), metafile(folder, &snapshot.signed)?)].into();
    publish(folder, &made(timestamp, signer).await?, "", done)?;
    Ok(true)
}

async fn made<R: Role>(role: R, signer: &Signer) -> Result<Signed<R>, PublishError> {
    let mut signed = Signed { signed: role, signatures: Vec::new() };
    add(&mut signed, signer).await?;
    Ok(signed)
}

/// Adds a signature, unless the signer's is there.
async fn add<R: Role>(signed: &mut Signed<R>, signer: &Signer) -> Result<bool, PublishError> {
    let id = signer.verifier().id();
    if !signed.signatures.iter().any(|made| Some(&made.keyid) == id.as_ref()) {
        let message = signed.signed.canonical_form().map_err(|error| PublishError::Encode(error.to_string()))?;
        let made = signer.sign(&message).await.ok_or_else(|| PublishError::Encode("the key does not sign".into()))?;
        signed.signatures.push(made);
    }
    Ok(true)
}

fn holds(root: &Root, role: RoleType, signer: &Signer) -> bool {
    let id = signer.verifier().id();
    root.roles.get(&role).is_some_and(|keys| keys.keyids.iter().any(|known| Some(known) == id.as_ref()))
}

/// How many of a role's keys signed, and how many it takes.
fn count<R>(root: &Root, role: RoleType, signed: &Signed<R>) -> (u64, u64) {
    let Some(keys) = root.roles.get(&role) else { return (0, 1) };
    let has = signed.signatures.iter().filter(|made| keys.keyids.contains(&made.keyid)).count();
    (u64::try_from(has).unwrap_or(u64::MAX), keys.threshold.get())
}

/// Every release of the folder whose archives are what its manifest says.
fn releases(folder: &Folder) -> Result<(HashMap<TargetName, Target>, Vec<Version>), PublishError> {
    let (mut targets, mut versions) = (HashMap::new(), Vec::new());
    let failed = |source| PublishError::File { path: folder.0.clone(), source };
    for entry in fs::read_dir(&folder.0).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let named = path.file_name().and_then(|name| name.to_str()).and_then(|name| name.parse::<Version>().ok());
        let (Some(version), manifest) = (named, path.join("manifest.json")) else { continue };
        let text = match fs::read(&manifest) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(source) => return Err(PublishError::File { path: manifest, source }),
        };
        let malformed = |why: String| PublishError::Malformed { path: manifest.clone(), why };
        let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| malformed(error.to_string()))?;
        if manifest.version != version {
            return Err(malformed(format!("it is of {}", manifest.version)));
        }
        for (artifact, custom) in manifest.archives() {
            let file = path.join(&artifact.file);
            let digest = crate::digest_of(&file).map_err(|source| PublishError::File { path: file.clone(), source })?;
            if digest != artifact.sha256 || fs::metadata(&file).is_ok_and(|found| found.len() != artifact.size) {
                return Err(PublishError::Damaged { path: file });
            }
            let name = TargetName::new(&artifact.file).map_err(|error| malformed(error.to_string()))?;
            targets.insert(name, target(digest, artifact.size, custom.to_map()));
        }
        versions.push(version);
    }
    versions.sort_by(Version::release_order);
    Ok((targets, versions))
}

fn target(digest: Sha256, length: u64, custom: HashMap<String, serde_json::Value>) -> Target {
    Target { length, hashes: hashes(digest), custom, _extra: HashMap::new() }
}

fn hashes(digest: Sha256) -> Hashes {
    Hashes { sha256: digest.bytes().to_vec().into(), _extra: HashMap::new() }
}

/// A metadata file in force, as another names it.
fn metafile<R: Role>(folder: &Folder, role: &R) -> Result<Metafile, PublishError> {
    let path = folder.metadata_dir().join(role.filename(true));
    let failed = |source| PublishError::File { path: path.clone(), source };
    let (digest, length) = (crate::digest_of(&path).map_err(failed)?, fs::metadata(&path).map_err(failed)?.len());
    Ok(Metafile { length: Some(length), hashes: Some(hashes(digest)), version: role.version(), _extra: HashMap::new() })
}

fn end(now: Time, life: Duration) -> jiff::Timestamp {
    jiff::Timestamp::from_second(now.plus(life).unix()).unwrap_or(jiff::Timestamp::MAX)
}

fn publish<R: Role>(folder: &Folder, signed: &Signed<R>, staged: &str, done: &mut Done) -> Result<(), PublishError> {
    let name = signed.signed.filename(true);
    write(&folder.metadata_dir().join(&name), signed)?;
    if !staged.is_empty() {
        // It may never have been staged: all signers were here at once.
        let _ = fs::remove_file(staging(folder).join(staged));
    }
    done.published.push(name);
    Ok(())
}

fn staging(folder: &Folder) -> PathBuf {
    folder.0.join("staging")
}

fn stage<R: Serialize>(folder: &Folder, name: &str, signed: &Signed<R>) -> Result<(), PublishError> {
    write(&staging(folder).join(name), signed)
}

fn staged<R: DeserializeOwned>(folder: &Folder, name: &str) -> Result<Option<Signed<R>>, PublishError> {
    read(&staging(folder).join(name))
}

fn write<R: Serialize>(path: &Path, signed: &Signed<R>) -> Result<(), PublishError> {
    let mut text = serde_json::to_vec_pretty(signed).map_err(|error| PublishError::Encode(error.to_string()))?;
    text.push(b'\n');
    let made = path.parent().map_or(Ok(()), fs::create_dir_all).and_then(|()| replace(path, &text));
    made.map_err(|source| PublishError::File { path: path.to_owned(), source })
}

fn read<R: DeserializeOwned>(path: &Path) -> Result<Option<Signed<R>>, PublishError> {
    match fs::read(path) {
        Ok(text) => {
            let read = serde_json::from_slice(&text).map(Some);
            read.map_err(|error| PublishError::Malformed { path: path.to_owned(), why: error.to_string() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PublishError::File { path: path.to_owned(), source }),
    }
}

/// The file `<version>.<name>` with the highest version.
fn newest<R: DeserializeOwned>(folder: &Folder, name: &str) -> Result<Option<Signed<R>>, PublishError> {
    let dir = folder.metadata_dir();
    let number = |entry: io::Result<fs::DirEntry>| -> Option<u64> {
        entry.ok()?.file_name().to_str()?.strip_suffix(name)?.strip_suffix('.')?.parse().ok()
    };
    let last = fs::read_dir(&dir).into_iter().flatten().filter_map(number).max();
    last.map_or(Ok(None), |last| read(&dir.join(format!("{last}.{name}"))))
}

/// For people: the root in force.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Shown {
    pub root_version: u64,
    pub threshold: u64,
    pub signers: Vec<String>,
    pub online: Vec<String>,
    pub root_expires: Time,
}

/// The root in force, if there is one.
pub fn show(folder: &Folder) -> Result<Option<Shown>, PublishError> {
    let Some(root) = newest::<Root>(folder, "root.json")? else { return Ok(None) };
    let root = root.signed;
    let names = |role| root.roles.get(&role).map_or(Vec::new(), |keys| keys.keyids.iter().map(short).collect());
    Ok(Some(Shown {
        root_version: root.version.get(),
        threshold: root.roles.get(&RoleType::Targets).map_or(0, |keys| keys.threshold.get()),
        signers: names(RoleType::Targets),
        online: names(RoleType::Timestamp),
        root_expires: Time::from_unix(root.expires.as_second()),
    }))
}
