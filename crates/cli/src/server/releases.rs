//! The releases that a cluster may move to, for its Auth Service: what the vendor vouches for in a mirror on this disk.
//!
//! Nothing is believed that the vendor's keys have not signed; the files are judged by their digests, each once as long as it does not
//! change. A release is tried by running its own program from a directory that goes afterwards.

use crate::config;
use auth::{Known, Rehearsed, Releases};
use release::{EDITION, Folder, Trust, verify};
use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use tokio::{process::Command, time::Instant};
use types::{Sha256, Version};
use upgrade::{plan::Release, updater::Offer};
use wire::rescue::system;

/// How old what is known of the mirror may be.
const FRESH: Duration = Duration::from_secs(30);
/// For the migrations of a large cluster, there and back.
const REHEARSAL: Duration = Duration::from_secs(4 * 3600);

/// A mirror, and whose word counts about it.
pub(super) struct Mirror {
    folder: Folder,
    root_file: PathBuf,
    /// What of the vendor's metadata was believed last.
    state: PathBuf,
    judged: Mutex<BTreeMap<PathBuf, Judged>>,
    /// What was seen last, and when.
    seen: tokio::sync::Mutex<Option<(Instant, Vec<Offer>)>>,
}

/// A file as it was when its digest was taken.
#[derive(Clone, PartialEq, Eq)]
struct Judged {
    length: u64,
    changed: Option<SystemTime>,
    digest: Sha256,
}

impl Mirror {
    pub(super) fn shared(known: &config::Releases, data_dir: &Path) -> Arc<dyn Releases> {
        Arc::new(Self {
            folder: Folder(known.mirror_dir.clone()),
            root_file: known.root_file.clone(),
            state: data_dir.join("auth").join("releases"),
            judged: Mutex::default(),
            seen: tokio::sync::Mutex::default(),
        })
    }

    /// What the vendor vouches for, of our edition.
    async fn offers(&self) -> Result<Vec<Offer>, String> {
        let mut seen = self.seen.lock().await;
        if let Some((_, offers)) = seen.as_ref().filter(|(at, _)| at.elapsed() < FRESH) {
            return Ok(offers.clone());
        }
        let trust = Trust::open(&self.root_file, &self.state).map_err(|error| error.to_string())?;
        let vouched = verify(&trust, Arc::new(self.folder.clone())).await.map_err(|error| error.to_string())?;
        let offers: Vec<Offer> = vouched.offers.into_iter().filter(|offer| offer.edition == EDITION).collect();
        *seen = Some((Instant::now(), offers.clone()));
        Ok(offers)
    }

    /// Whether the archive lies in the mirror as it was signed.
    fn has(&self, offer: &Offer) -> bool {
        let path = self.folder.0.join(offer.version.to_string()).join(&offer.file);
        let Ok(facts) = path.metadata() else { return false };
        let (length, changed) = (facts.len(), facts.modified().ok());
        let known = self.judged.lock().unwrap_or_else(PoisonError::into_inner).get(&path).cloned();
        if let Some(known) = known.filter(|known| (known.length, known.changed) == (length, changed)) {
            return known.digest == offer.archive;
        }
        let Ok(digest) = release::digest_of(&path) else { return false };
        self.judged.lock().unwrap_or_else(PoisonError::into_inner).insert(path, Judged { length, changed, digest });
        digest == offer.archive
    }
}

/// The releases of these offers, with the archive of each system.
fn known(offers: &[Offer], has: impl Fn(&Offer) -> bool) -> Vec<Known> {
    let mut all = Vec::<Known>::new();
    for offer in offers {
        let there = has(offer);
        match all.iter_mut().find(|known| known.release.version == offer.version) {
            Some(known) => {
                known.release.mirrored &= there;
                known.artifacts.insert(format!("{}/{}", offer.os, offer.arch), offer.archive);
            }
            None => all.push(Known {
                release: Release {
                    version: offer.version.clone(),
                    digest: String::new(),
                    verified: true,
                    mirrored: there,
                    min_source: Some(offer.minimum_source.clone()),
                    denied_sources: offer.denied_sources.keys().filter_map(|version| version.parse().ok()).collect(),
                    visit: false,
                    withdrawn: None,
                },
                artifacts: BTreeMap::from([(format!("{}/{}", offer.os, offer.arch), offer.archive)]),
            }),
        }
    }
    for known in &mut all {
        known.release.digest = known.artifacts.iter().map(|(system, digest)| format!("{system}={digest}")).collect::<Vec<_>>().join(" ");
    }
    all
}

#[release::async_trait]
impl Releases for Mirror {
    async fn known(&self) -> Result<Vec<Known>, String> {
        let offers = self.offers().await?;
        // Digests of new files take a moment.
        Ok(tokio::task::block_in_place(|| known(&offers, |offer| self.has(offer))))
    }

    async fn rehearse(&self, version: &Version, store: &Path) -> Result<Rehearsed, String> {
        let (os, arch) = system();
        let offers = self.offers().await?;
        let offer = offers.iter().find(|offer| offer.version == *version && offer.os == os && offer.arch == arch);
        let offer = offer.ok_or_else(|| format!("the mirror has no {version} for {os}/{arch}, which this Auth Service runs on"))?;
        let archive = self.folder.archive(version, &offer.file, &offer.archive).map_err(|error| error.to_string())?;
        // Beside the copy, and gone with it.
        let (into, wanted) = (store.with_file_name("release"), offer.archive);
        let unpacked = into.clone();
        let done = tokio::task::spawn_blocking(move || release::unpack(&archive, &wanted, &unpacked)).await;
        done.map_err(|error| error.to_string())?.map_err(|error| format!("{}: {error}", offer.file))?;
        let mut command = Command::new(into.join(release::PROGRAM));
        command.arg("rehearse").arg("--store").arg(store).stdin(Stdio::null()).kill_on_drop(true);
        let output = match tokio::time::timeout(REHEARSAL, command.output()).await {
            Ok(output) => output.map_err(|error| format!("{version} does not start here: {error}"))?,
            Err(_) => return Err(format!("{version} did not end its rehearsal within {}", types::Ttl(REHEARSAL))),
        };
        serde_json::from_slice(&output.stdout).map_err(|_| {
            let text = String::from_utf8_lossy(&output.stderr);
            let line: String =
                text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it says nothing").chars().take(200).collect();
            format!("{version} did not rehearse: {line}")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(version: &str, arch: &str) -> Offer {
        Offer {
            version: version.parse().unwrap(),
            edition: EDITION.into(),
            os: "linux".into(),
            arch: arch.into(),
            file: format!("lockgate-{version}-linux-{arch}.tar.gz"),
            archive: Sha256::new([7; 32]),
            size: 1,
            program: Sha256::new([8; 32]),
            minimum_source: "1.0.0".parse().unwrap(),
            denied_sources: BTreeMap::from([("1.0.1".into(), "it loses data".into())]),
        }
    }

    #[test]
    fn a_release_is_in_the_mirror_only_when_the_archives_of_all_its_systems_are() {
        let offers = [offer("2.0.0", "amd64"), offer("2.0.0", "arm64"), offer("1.1.0", "amd64")];
        let all = known(&offers, |offer| offer.arch == "amd64");
        assert_eq!(
            all.iter().map(|known| (known.release.version.to_string(), known.release.mirrored)).collect::<Vec<_>>(),
            [("2.0.0".to_owned(), false), ("1.1.0".to_owned(), true)]
        );
        assert_eq!(all[0].artifacts.len(), 2);
        assert_eq!(all[0].release.denied_sources, ["1.0.1".parse().unwrap()]);
    }
}
