//! A host whose service, network and clock are variables.

use release::{
    Folder, Source, SourceError, Versions,
    round::{Outcome, Place, Seen, World, round},
    testing::{Vendor, system},
};
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, SystemTime},
};
use types::{
    ClusterName, Code, Extra, HostId, Public, SystemRole, Time, Version,
    name::ClusterId,
    update::{Directive, Target},
};
use upgrade::updater::{Book, Host as Name, Job, Patience, Verdict};

/// What a host's world does.
#[derive(Clone)]
pub(crate) struct Does {
    pub(crate) directive: Result<Option<Directive>, Public>,
    pub(crate) network: bool,
    pub(crate) verdict: Verdict,
    /// Releases whose service does not come up, by what the restart says of it; empty: it says nothing.
    pub(crate) broken: BTreeMap<String, String>,
    /// Steps of the clock after which the network is there.
    pub(crate) network_after: Option<Time>,
    pub(crate) now: Time,
    pub(crate) running: Option<Seen>,
    boots: u32,
}

pub(crate) struct Host {
    _dir: tempfile::TempDir,
    pub(crate) vendor: Vendor,
    state: PathBuf,
    pub(crate) versions: Versions,
    pub(crate) does: Mutex<Does>,
    cluster: ClusterName,
    roles: BTreeSet<SystemRole>,
    own: (Version, PathBuf),
}

/// Whatever the folder holds, or nothing without a network.
#[derive(Debug)]
struct Wire(Folder, bool);

#[tough::async_trait]
impl Source for Wire {
    async fn metadata(&self, name: &str) -> Result<Vec<u8>, SourceError> {
        if self.1 { self.0.metadata(name).await } else { Err(SourceError::Unreachable("no route to the Proxy".into())) }
    }
}

pub(crate) fn today() -> Time {
    SystemTime::now().into()
}

impl Host {
    /// Runs 1.0.0; the vendor has signed 1.0.0 and 1.1.0; nothing is directed.
    pub(crate) async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let vendor = Vendor::new(at("mirror"), &at("keys"), today()).await;
        vendor.release("1.0.0", b"program 1.0.0");
        vendor.release("1.1.0", b"program 1.1.0");
        vendor.sign(today()).await;
        let own = at("usr").join("lockgate");
        fs::write(&own, b"program 1.0.0").unwrap();
        let version: Version = "1.0.0".parse().unwrap();
        let does = Does {
            directive: Ok(None),
            network: true,
            verdict: Verdict::Passed,
            broken: BTreeMap::new(),
            network_after: None,
            now: today(),
            running: Some(Seen { version: version.clone(), boot_id: "boot-0".into() }),
            boots: 0,
        };
        Self {
            state: at("state"),
            versions: Versions::new(at("opt")),
            vendor,
            does: Mutex::new(does),
            cluster: ClusterName::new("acme").unwrap(),
            roles: [SystemRole::Node].into(),
            own: (version, own),
            _dir: dir,
        }
    }

    pub(crate) fn does<T>(&self, change: impl FnOnce(&mut Does) -> T) -> T {
        change(&mut self.does.lock().unwrap())
    }

    pub(crate) async fn try_round(&self) -> Result<Outcome, Public> {
        let (os, arch) = system();
        let host = Name { id: id(), cluster: &self.cluster, roles: &self.roles, edition: release::EDITION, os, arch };
        let root = self.vendor.root();
        let place = Place {
            host,
            versions: &self.versions,
            state: &self.state,
            root: &root,
            own: (&self.own.0, &self.own.1),
            patience: Patience::default(),
        };
        round(self, &place).await
    }

    pub(crate) async fn round(&self) -> Outcome {
        self.try_round().await.unwrap()
    }

    pub(crate) fn directs(&self, generation: u64, version: &str) {
        let directive = directive(generation, version, &[(system_name(), self.vendor.digest(version))]);
        self.does(|does| does.directive = Ok(Some(directive)));
    }

    pub(crate) fn book(&self) -> Book {
        release::round::book(&self.state).unwrap()
    }

    pub(crate) fn report(&self) -> types::update::UpdateReport {
        serde_json::from_slice(&fs::read(self.state.join("report.json")).unwrap()).unwrap()
    }

    pub(crate) fn runs(&self) -> String {
        self.does(|does| does.running.as_ref().map_or("nothing".into(), |seen| seen.version.to_string()))
    }

    /// What stands on the disk of releases: every file with its bytes, and what the link names.
    pub(crate) fn disk(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        fn walk(at: &Path, into: &mut BTreeMap<PathBuf, Vec<u8>>) {
            for entry in fs::read_dir(at).into_iter().flatten().flatten() {
                let (path, kind) = (entry.path(), entry.file_type().unwrap());
                if kind.is_symlink() {
                    into.insert(path.clone(), fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes());
                } else if kind.is_dir() {
                    walk(&path, into);
                } else if entry.file_name() != ".lock" {
                    into.insert(path.clone(), fs::read(&path).unwrap());
                }
            }
        }
        let mut all = BTreeMap::new();
        walk(self.versions.current().parent().unwrap(), &mut all);
        all
    }

    /// A file of the mirror.
    pub(crate) fn mirror(&self, name: &str) -> PathBuf {
        self.vendor.folder.0.join(name)
    }
}

pub(crate) fn id() -> HostId {
    HostId::from_uuid(uuid::Uuid::from_u128(7))
}

pub(crate) fn system_name() -> String {
    let (os, arch) = system();
    format!("{os}/{arch}")
}

pub(crate) fn directive(generation: u64, version: &str, artifacts: &[(String, types::Sha256)]) -> Directive {
    let target = Target {
        hosts: BTreeSet::new(),
        roles: BTreeSet::new(),
        wave: None,
        version: version.parse().unwrap(),
        artifacts: artifacts.iter().cloned().collect(),
        retry: false,
        extra: Extra::new(),
    };
    Directive {
        format: 1,
        cluster: ClusterName::new("acme").unwrap(),
        cluster_id: ClusterId::from_uuid(uuid::Uuid::nil()),
        generation,
        issued: today(),
        expires: today().plus(Duration::from_secs(86_400)),
        targets: vec![target],
        extra: Extra::new(),
    }
}

fn away() -> Public {
    Public::new(Code::Unreachable, "no route to the Proxy")
}

#[tough::async_trait]
impl World for Host {
    fn now(&self) -> Time {
        self.does(|does| does.now)
    }
    async fn pause(&self, length: Duration) {
        self.does(|does| {
            does.now = does.now.plus(length);
            if does.network_after.is_some_and(|then| does.now >= then) {
                does.network = true;
            }
        });
    }
    async fn directive(&self) -> Result<Option<Directive>, Public> {
        self.does(|does| if does.network { does.directive.clone() } else { Err(away()) })
    }
    fn source(&self) -> Arc<dyn Source> {
        Arc::new(Wire(self.vendor.folder.clone(), self.does(|does| does.network)))
    }
    async fn fetch(&self, job: &Job, into: &Path) -> Result<PathBuf, Public> {
        if !self.does(|does| does.network) {
            return Err(away());
        }
        // A mirror that lies: it hands out whatever has the name.
        let to = into.join(&job.file);
        fs::copy(self.mirror(&job.version.to_string()).join(&job.file), &to)
            .map_err(|error| Public::new(Code::NotFound, error.to_string()))?;
        Ok(to)
    }
    async fn test(&self, program: &Path, version: &Version) -> Verdict {
        assert_eq!(fs::read_to_string(program).unwrap(), format!("program {version}"));
        self.does(|does| does.verdict.clone())
    }
    async fn restart(&self) -> Result<(), Public> {
        let version = self.versions.installed().unwrap().version;
        self.does(|does| {
            let broken = does.broken.get(&version.to_string()).cloned();
            does.boots += 1;
            does.running = broken.is_none().then(|| Seen { version, boot_id: format!("boot-{}", does.boots) });
            match broken {
                Some(why) if !why.is_empty() => Err(Public::new(Code::Unavailable, why)),
                Some(_) | None => Ok(()),
            }
        })
    }
    async fn seen(&self) -> Result<Option<Seen>, Public> {
        self.does(|does| if does.network { Ok(does.running.clone()) } else { Err(away()) })
    }
}
