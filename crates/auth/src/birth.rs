//! How an Auth Service comes to its cluster: the control record is read and judged before anything is written (rules G2
//! and G5), then a new cluster is born or the existing one is taken over.
//!
//! Birth is one conditional batch (control record, cluster name, authorities, built-in roles, preferences): of two Auth
//! Services that start at once on an empty store, one gives birth and the other joins it. A cluster's name never changes.
//! Preferences have an origin, as the field knows it: a value in the configuration file overwrites one set at run time,
//! with a warning; a default overwrites nothing.

use crate::{
    ca::{self, Authorities, CaKind},
    migrations::through,
    vault, windows,
    world::{AuthError, Config},
};
use std::sync::Arc;
use store::{Batch, CommitError, Condition, Documents, Key, Store, WriterEpoch, control};
use types::{
    ClusterName, Code, Document, Extra, Metadata, Public, Resource, ResourceName, Time, Version,
    document::Spec,
    kind::{AuthPreference, CertAuthority, ClusterInfo, singleton},
    name::ClusterId,
};
use upgrade::{
    control::{Start, adopt, may_start},
    migrate::Registry,
};

/// The label that says where a preference comes from.
pub(crate) const ORIGIN: &str = "lockgate/origin";
pub(crate) const DYNAMIC: &str = "dynamic";
const DEFAULTS: &str = "defaults";
const CONFIG_FILE: &str = "config-file";

/// A cluster that may be served.
pub(crate) struct Cluster {
    pub(crate) documents: Documents,
    pub(crate) info: ClusterInfo,
    pub(crate) authorities: Authorities,
    /// Of the windows by which this Auth Service may start.
    pub(crate) window_gen: u64,
}

/// Opens the cluster in this store, or makes it.
pub(crate) async fn open(
    store: &Arc<dyn Store>,
    registry: &Registry,
    config: &Config,
    version: &Version,
    now: Time,
) -> Result<Cluster, AuthError> {
    let mut tries = 0;
    let stored = loop {
        let stored = control::read(store.as_ref()).await.map_err(|error| AuthError::Store(error.to_string()))?;
        tries += 1;
        match (may_start(stored.as_ref().map(|stored| &stored.record), version)?, stored) {
            (Start::Current | Start::Emulate, Some(stored)) => break stored,
            (Start::Adopt, Some(was)) => match take_over(store, registry, &was, version, now).await? {
                Some(stored) => break stored,
                // Another Auth Service of our major was quicker.
                None if tries < 8 => {}
                None => return Err(AuthError::Store("the control record keeps changing".into())),
            },
            (Start::Birth, _) | (_, None) if tries < 8 => give_birth(store, registry, config, version, now).await?,
            (Start::Birth, _) | (_, None) => return Err(AuthError::Store("the new control record cannot be read back".into())),
        }
    };
    let documents = Documents::new(through(store, registry), WriterEpoch(stored.record.epoch));
    let info = single::<ClusterInfo>(&documents, singleton::CLUSTER_NAME).await?.spec;
    if let Some(asked) = config.cluster_name.as_ref().filter(|asked| **asked != info.cluster_name) {
        let message = format!("this cluster is called \"{}\"; its name cannot be changed to \"{asked}\"", info.cluster_name);
        let hint = format!("set auth_service.cluster_name to \"{}\", or start with another data directory", info.cluster_name);
        return Err(Public::new(Code::Config, message).hint(hint).into());
    }
    let authorities = load_authorities(&documents).await?;
    prefer(&documents, config.auth_preference.as_ref()).await?;
    if stored.record.production != config.production {
        tracing::warn!(
            production = stored.record.production,
            "whether pre-releases are admitted was decided at the cluster's birth and stays so"
        );
    }
    Ok(Cluster { documents, info, authorities, window_gen: stored.record.window_gen })
}

/// The first Auth of the next major fences the ones before.
async fn take_over(
    store: &Arc<dyn Store>,
    registry: &Registry,
    was: &control::Stored,
    version: &Version,
    now: Time,
) -> Result<Option<control::Stored>, AuthError> {
    let documents = Documents::new(through(store, registry), WriterEpoch(was.record.epoch));
    let members = windows::members(&documents).await.map_err(|error| AuthError::Store(error.to_string()))?;
    let mut next = adopt(&was.record, version, &members)?;
    next.written_at = Some(now);
    match control::update(store.as_ref(), was, &next, WriterEpoch(was.record.epoch)).await {
        Ok(stored) => {
            tracing::info!(%version, epoch = stored.record.epoch, "took over the cluster; older Auth Services may no longer write");
            Ok(Some(stored))
        }
        Err(control::WriteControlError::Conflict | control::WriteControlError::Commit(CommitError::Fenced { .. })) => Ok(None),
        Err(error) => Err(AuthError::Store(error.to_string())),
    }
}

/// Writes a new cluster, unless another is there when it comes to that.
async fn give_birth(store: &Arc<dyn Store>, registry: &Registry, config: &Config, version: &Version, now: Time) -> Result<(), AuthError> {
    let foreign = store.range(&Key::first(), &Key::last(), 1).await.map_err(|error| AuthError::Store(error.to_string()))?;
    if let Some(item) = foreign.items.first().filter(|item| item.key != Key::control()) {
        let message = format!("the store holds \"{}\" but no control record: it is not a cluster of Lockgate", item.key);
        return Err(Public::new(Code::StoreForeign, message).hint("start with an empty data directory, or restore a backup").into());
    }
    let name = match &config.cluster_name {
        Some(name) => name.clone(),
        None => ClusterName::new(&config.node_name)
            .map_err(|error| Public::new(Code::Config, error.to_string()).hint("set auth_service.cluster_name"))?,
    };
    let cluster_id = ClusterId::from_uuid(uuid::Uuid::new_v4());
    let mut record = upgrade::control::birth(cluster_id, version, config.production)?;
    record.written_at = Some(now);
    let mut batch = Batch::new(None).require(Condition::Absent(Key::control()));
    batch = batch.put(Key::control(), vault::json(&record), None);
    let broken = |error: &dyn std::fmt::Display| AuthError::Store(error.to_string());
    let mut documents = vec![
        Resource::new(named(singleton::CLUSTER_NAME)?, ClusterInfo { cluster_name: name.clone(), cluster_id, extra: Extra::new() })
            .to_document(),
    ];
    for kind in CaKind::ALL {
        let newborn = ca::generate(kind, &name, now)?;
        documents.push(Resource::new(named(kind.as_str())?, newborn.public).to_document());
        batch = batch.put(vault::authority_key(kind).map_err(|error| broken(&error))?, newborn.private.to_vec(), None);
    }
    documents.extend(rules::presets::roles().iter().map(Resource::to_document));
    let origin = if config.auth_preference.is_some() { CONFIG_FILE } else { DEFAULTS };
    documents.push(preference(config.auth_preference.clone().unwrap_or_default(), origin)?.to_document());
    for document in &documents {
        let (_, op) = store::documents::encode(document).map_err(|error| broken(&error))?;
        batch.ops.push(op);
    }
    // A cluster is born in the newest form, with the indices that belong to it.
    match through(store, registry).commit(batch).await {
        Ok(_) => tracing::info!(cluster = %name, id = %cluster_id, %version, "a new cluster was made"),
        // The other one's birth is as good as ours; after an unclear commit, reading again tells.
        Err(CommitError::Conflict { .. } | CommitError::Ambiguous(_)) => {}
        Err(error) => return Err(broken(&error)),
    }
    Ok(())
}

fn named(name: &str) -> Result<Metadata, AuthError> {
    ResourceName::new(name).map(Metadata::named).map_err(|error| AuthError::Store(error.to_string()))
}

fn preference(spec: AuthPreference, origin: &str) -> Result<Resource<AuthPreference>, AuthError> {
    let mut metadata = named(singleton::AUTH_PREFERENCE)?;
    metadata.labels.insert(ORIGIN.into(), origin.into());
    Ok(Resource::new(metadata, spec))
}

async fn find(documents: &Documents, kind: &str, name: &str) -> Result<Option<Document>, AuthError> {
    let name = ResourceName::new(name).map_err(|error| AuthError::Store(error.to_string()))?;
    documents.get(kind, &name).await.map_err(|error| AuthError::Store(error.to_string()))
}

async fn single<S: Spec>(documents: &Documents, name: &str) -> Result<Resource<S>, AuthError> {
    let missing = || AuthError::Store(format!("{}/{name} is missing", S::KIND));
    let document = find(documents, S::KIND, name).await?.ok_or_else(missing)?;
    Resource::from_document(document).map_err(|error| AuthError::Store(error.to_string()))
}

async fn load_authorities(documents: &Documents) -> Result<Authorities, AuthError> {
    let mut halves = Vec::new();
    for kind in CaKind::ALL {
        let public = single::<CertAuthority>(documents, kind.as_str()).await?.spec;
        let key = vault::authority_key(kind).map_err(|error| AuthError::Store(error.to_string()))?;
        let item = documents.store().get(&key).await.map_err(|error| AuthError::Store(error.to_string()))?;
        let item =
            item.ok_or_else(|| AuthError::Authorities(format!("the private keys of the {} authority are missing", kind.as_str())))?;
        halves.push((public, item.value));
    }
    let [(user, user_private), (host, host_private)] = halves.as_slice() else {
        return Err(AuthError::Authorities("an authority is missing".into()));
    };
    Ok(Authorities::load((user, user_private), (host, host_private))?)
}

/// Brings the stored preference in line with the configuration file.
async fn prefer(documents: &Documents, asked: Option<&AuthPreference>) -> Result<(), AuthError> {
    let stored = find(documents, AuthPreference::KIND, singleton::AUTH_PREFERENCE).await?;
    let fail = |error: store::documents::WriteError| AuthError::Store(error.to_string());
    let Some(stored) = stored else {
        let origin = if asked.is_some() { CONFIG_FILE } else { DEFAULTS };
        let fresh = preference(asked.cloned().unwrap_or_default(), origin)?;
        return documents.create(&fresh.to_document()).await.map(|_| ()).map_err(fail);
    };
    let Some(asked) = asked else { return Ok(()) };
    let mut wanted = stored.clone();
    wanted.spec = serde_json::to_value(asked).unwrap_or_default();
    // What a newer release added stays.
    if let (Some(old), Some(new)) = (stored.spec.as_object(), wanted.spec.as_object_mut()) {
        for (key, value) in old.iter().filter(|(key, _)| !matches!(key.as_str(), "type" | "second_factor" | "default_session_ttl")) {
            new.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
    wanted.metadata.labels.insert(ORIGIN.into(), CONFIG_FILE.into());
    if wanted == stored {
        return Ok(());
    }
    if stored.metadata.labels.get(ORIGIN).is_some_and(|origin| origin == DYNAMIC) && wanted.spec != stored.spec {
        tracing::warn!("the preferences in the configuration file overwrite those set at run time");
    }
    match documents.update(&wanted).await {
        // Another Auth Service of this cluster starts beside us; its file or ours, one of them stands.
        Ok(_) | Err(store::documents::WriteError::Conflict(_)) => Ok(()),
        Err(error) => Err(fail(error)),
    }
}
