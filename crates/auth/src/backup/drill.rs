//! A drill: proves that a backup brings the cluster back, by bringing it back, where it disturbs nobody.
//!
//! The backup is restored into a scratch directory that only its owner may enter; an Auth Service starts on it, on a free port of
//! loopback; an administrator connects, reads, issues a certificate that lives a minute, and its holder is let in. Then everything
//! is removed, whatever happened. The scratch holds the authority's private keys while it lives: put it where that may be.

use super::{
    Progress, Stage,
    client::{Client, Near, failed},
    restore::{RestoreError, Restored, Terms, restore},
};
use crate::{Auth, Config, Storage, World, world::StoreClock};
use net::{
    clock::SharedClock,
    health::Board,
    shutdown::Shutdown,
    task::Group,
    tls::{KeyAlgorithm, TlsIdentity, identity::KeyPair},
};
use russh::keys::ssh_key::{Algorithm, PrivateKey};
use std::{
    fs::{self, File},
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};
use store::{Sqlite, Store};
use types::{Code, Document, HostId, NodeName, Public};
use wire::{api as pb, credentials::HostFile};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// Life of the certificate that is issued, in seconds.
const TTL: u64 = 60;
/// Users tried for it; some may be locked or without a role.
const USERS: usize = 20;
/// Documents looked at of each kind.
const LOOK: u32 = 1000;

/// What a drill showed.
#[derive(Debug)]
pub struct Drilled {
    pub restored: Restored,
    /// What the administrator saw, at most a thousand of each.
    pub users: usize,
    pub roles: usize,
    /// For whom a certificate was issued and accepted; `None` when no user could have one.
    pub certificate: Option<String>,
    /// How `tctl audit verify` would judge the log there.
    pub audit: String,
}

/// A directory that goes when it is dropped.
pub(crate) struct Scratch(pub(crate) PathBuf);

/// What the names of scratch directories begin with.
const PREFIX: &str = "lockgate-drill-";

impl Scratch {
    pub(crate) fn is_one(name: &std::ffi::OsStr) -> bool {
        name.to_string_lossy().starts_with(PREFIX)
    }

    pub(crate) fn new(base: &Path) -> Result<Self, Public> {
        let path = base.join(format!("{PREFIX}{}", uuid::Uuid::new_v4().simple()));
        let unusable = |error: std::io::Error| Public::new(Code::BackupIo, format!("{}: {error}", path.display()));
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(unusable)?;
        Ok(Self(path))
    }
}
impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.0) {
            tracing::error!(path = %self.0.display(), %error, "the scratch directory of the drill could not be removed; it holds keys");
        }
    }
}

/// Restores the file below `base` and uses what comes out.
pub async fn drill(base: &Path, file: File, terms: Terms, clock: SharedClock, progress: Arc<Progress>) -> Result<Drilled, RestoreError> {
    let scratch = Scratch::new(base)?;
    let home = scratch.0.join("auth");
    fs::DirBuilder::new().mode(0o700).create(&home).map_err(|error| failed("making a directory", error))?;
    let path = home.join("state.db");
    let (at, time): (_, Arc<dyn store::Clock>) = (path.clone(), Arc::new(StoreClock(clock.clone())));
    let opened = tokio::task::spawn_blocking(move || Sqlite::open(&at, time)).await.map_err(|_| RestoreError::Broke)?;
    let store: Arc<dyn Store> = Arc::new(opened.map_err(|error| failed("opening a store", error))?);
    let restored = restore(store.clone(), file, terms.clone(), progress.clone()).await;
    store.close().await;
    let restored = restored?;
    if let Some(first) = &restored.first {
        // The backup is good as far as this release can tell; using it is another one's to try.
        return Err(first.clone().into());
    }

    progress.begin(Stage::Using, 0);
    let name = NodeName::new("drill").map_err(|error| failed("a name", error))?;
    let mut config = Config::new(scratch.0.clone(), HostId::from_uuid(uuid::Uuid::new_v4()), name);
    config.storage = Storage::Sqlite { path };
    config.listen_addr = ([127, 0, 0, 1], 0).into();
    config.production = false;
    config.carries_upgrades = false;
    let world = World {
        clock: clock.clone(),
        version: terms.version.clone(),
        health: Board::default(),
        listener: None,
        releases: None,
        updater: None,
        walker: None,
    };
    // Boxed: what it holds is large, and this future is held by others.
    let auth = Arc::new(Box::pin(crate::build(config, world)).await.map_err(|error| error.public())?);
    let (tasks, shutdown) = (Group::new("drill"), Shutdown::new());
    let (running, stop) = (auth.clone(), shutdown.clone());
    tasks.spawn("auth", async move { running.run(stop).await });
    let used = use_it(&auth, &scratch.0, clock, &terms, &restored).await;
    shutdown.stop();
    tasks.join(PATIENCE).await;
    drop(auth);
    let (users, roles, certificate, audit) = used?;
    Ok(Drilled { restored, users, roles, certificate, audit })
}

type Used = (usize, usize, Option<String>, String);

async fn use_it(auth: &Auth, dir: &Path, clock: SharedClock, terms: &Terms, restored: &Restored) -> Result<Used, Public> {
    let json = fs::read(dir.join("admin").join("identity.json")).map_err(|error| failed("the administrator", error))?;
    let file = HostFile::from_json(&json).map_err(|error| failed("the administrator", error))?;
    let near = Near::new(&file, auth.local_addr().to_string(), clock, terms.version.clone())?;
    let identity = TlsIdentity::from_pem(file.tls_certificate.as_bytes(), file.private_key.expose().as_bytes());
    let mut admin = near.client(&identity.map_err(|error| failed("the administrator", error))?, "tctl")?;

    let ping = within("a first question", admin.ping(pb::PingRequest {})).await?;
    if ping.cluster_id != restored.head.cluster_id.to_string() || ping.ca_pins != restored.pins {
        return Err(failed("the cluster that came back", "its id or pins are not those of the backup"));
    }
    let users = list(&mut admin, "user").await?;
    let roles = list(&mut admin, "role").await?.len();
    let certificate = certificate(&mut admin, &near, &users).await?;
    let verdict = within("the audit log", admin.verify_audit(pb::Empty {})).await?;
    if !verdict.intact {
        return Err(failed("the audit log", verdict.fault));
    }
    Ok((users.len(), roles, certificate, verdict.note))
}

async fn within<T>(what: &str, call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>) -> Result<T, Public> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(Ok(reply)) => Ok(reply.into_inner()),
        Ok(Err(status)) => Err(failed(what, pb::from_status(&status))),
        Err(_) => Err(failed(what, "no answer in time")),
    }
}

async fn list(admin: &mut Client, kind: &str) -> Result<Vec<Document>, Public> {
    let ask = pb::ListRequest { kind: kind.into(), limit: LOOK, ..Default::default() };
    let reply = within(&format!("listing {kind} documents"), admin.list(ask)).await?;
    reply.documents.iter().map(|json| Document::from_json(json).map_err(|error| failed(&format!("a {kind} document"), error))).collect()
}

/// Issues a certificate for the first user who may have one, and lets its holder ask something.
async fn certificate(admin: &mut Client, near: &Near, users: &[Document]) -> Result<Option<String>, Public> {
    let broken = |error: &dyn std::fmt::Display| failed("a key", error);
    let tls = KeyPair::generate(KeyAlgorithm::Ed25519).map_err(|error| broken(&error))?;
    let ssh = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).map_err(|error| broken(&error))?;
    let line = ssh.public_key().to_openssh().map_err(|error| broken(&error))?;
    for user in users.iter().take(USERS) {
        let name = user.metadata.name.to_string();
        let ask = pb::SignRequest {
            user: name.clone(),
            ssh_public_key: line.clone(),
            tls_public_key: tls.public_der().into(),
            ttl: TTL,
            host_names: Vec::new(),
        };
        let reply = match tokio::time::timeout(PATIENCE, admin.sign(ask)).await {
            Ok(Ok(reply)) => reply.into_inner(),
            // Locked, or without a role: not the backup's fault.
            Ok(Err(status)) => {
                tracing::info!(user = name, error = %pb::from_status(&status), "the drill could issue no certificate for this user");
                continue;
            }
            Err(_) => return Err(failed("issuing a certificate", "no answer in time")),
        };
        let chain = net::tls::identity::certificates_from_pem(reply.tls_certificate.as_bytes()).map_err(|error| broken(&error))?;
        let identity = tls.with_chain(chain).map_err(|error| broken(&error))?;
        let mut holder = near.client(&identity, "tsh")?;
        let ask = pb::GetRequest { kind: "user".into(), name: name.clone() };
        within("asking with the new certificate", holder.get(ask)).await?;
        return Ok(Some(name));
    }
    Ok(None)
}
