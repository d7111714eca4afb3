//! Recordings that lie with another Auth Service, when each keeps a directory of its own.
//!
//! Every Auth Service leaves a note in the store, `internal/recordings/<host id>`: where it is reached, which directory its
//! recordings lie in (by a random name kept in the directory, so that those who share one are known), and how many they are. The notes
//! say who must be asked, and what is missing while somebody is away; a note lapses after [`FORGOTTEN`] without its writer. A holder is asked by
//! mutual TLS, under the name of the host that its note names, and serves what it has itself: it asks nobody else, and nobody but an Auth
//! Service may ask it so. Who may see what is decided where the user asked, on what came back. Callers: `api::recordings`, `build`.

use super::{RecordingError, blocking};
use crate::{
    core::{Core, Fault},
    serve,
    vault::{self, VaultError},
    world::AuthError,
};
use futures::{StreamExt as _, stream::FuturesUnordered};
use net::{
    IoStream,
    dial::DialError,
    hello::HelloPolicy,
    swap::Swap,
    tls::{self, Trust},
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};
use store::Key;
use tonic::{Streaming, transport::Channel};
use types::{Code, Extra, HostId, Identity, Public, SessionId, SystemRole, Time, kind::Recording, version::Direction};
use uuid::Uuid;
use wire::{
    alpn,
    api::{self as pb, auth_client::AuthClient},
    hello::Hello,
    sni,
};

/// How long one that is silent is remembered, and named in lists as missing.
const FORGOTTEN: Duration = Duration::from_secs(30 * 24 * 3600);
/// Between two notes of the same.
const AGAIN: Duration = Duration::from_secs(24 * 3600);
/// Between two notes, however many recordings come.
const SETTLE: Duration = Duration::from_secs(2);
/// After a note that could not be written.
const RETRY: Duration = Duration::from_secs(30);
/// For the list of another, connecting included.
const LIST_DEADLINE: Duration = Duration::from_secs(5);
/// For the first piece of a recording.
const READ_DEADLINE: Duration = Duration::from_secs(10);
/// More Auth Services than a cluster has.
const MOST: usize = 64;

/// What an Auth Service says of its recordings.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Note {
    name: String,
    address: String,
    /// Of the directory, not of the process.
    directory: Uuid,
    recordings: u64,
    #[serde(flatten)]
    extra: Extra,
}

/// Another Auth Service, with recordings in another directory.
#[derive(Clone, Debug)]
struct Holder {
    id: HostId,
    note: Note,
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.note.name, self.note.address)
    }
}

fn key(host: HostId) -> Result<Key, store::BadKey> {
    Key::new(["internal", "recordings", &host.to_string()])
}

/// Keeps this Auth Service's note true until it stops. One that leaves with nothing takes its note along.
pub(crate) async fn keep(core: Arc<Core>, address: String) {
    let sink = core.recordings.clone();
    let directory = match blocking(move || sink.directory()).await {
        Ok(directory) => directory,
        Err(error) => {
            tracing::error!(%error, "other Auth Services cannot be told of the recordings here");
            return;
        }
    };
    let mut held = core.recordings.held();
    loop {
        let recordings = *held.borrow_and_update();
        let note = Note { name: core.node_name.to_string(), address: address.clone(), directory, recordings, extra: Extra::new() };
        let wait = match write(&core, &note).await {
            Ok(()) => SETTLE,
            Err(error) => {
                tracing::info!(%error, "it could not be noted how many recordings are here");
                RETRY
            }
        };
        let news = async {
            tokio::time::sleep(wait).await;
            if wait == SETTLE {
                // The sender lives in the sink: only time ends this otherwise.
                let _changed = tokio::time::timeout(AGAIN, held.changed()).await;
            }
        };
        tokio::select! {
            biased;
            () = core.shutdown.stopping() => break,
            () = news => {}
        }
    }
    let recordings = *held.borrow();
    let note = Note { name: core.node_name.to_string(), address, directory, recordings, extra: Extra::new() };
    let left = if recordings == 0 { remove(&core).await } else { write(&core, &note).await };
    if let Err(error) = left {
        tracing::info!(%error, "it could not be noted how many recordings stay here");
    }
}

async fn write(core: &Core, note: &Note) -> Result<(), VaultError> {
    let batch = core.vault.batch().put(key(core.host_id)?, vault::json(note), Some(core.now().plus(FORGOTTEN)));
    core.vault.commit(batch).await.map(|_| ())
}

async fn remove(core: &Core) -> Result<(), VaultError> {
    core.vault.commit(core.vault.batch().delete(key(core.host_id)?)).await.map(|_| ())
}

/// Everybody whose recordings do not lie in this one's directory.
async fn holders(core: &Core) -> Result<Vec<Holder>, Fault> {
    let sink = core.recordings.clone();
    let own = blocking(move || sink.directory()).await?;
    let dir = Key::dir(["internal", "recordings"]).map_err(VaultError::from)?;
    let items = store::scan(core.documents.store().as_ref(), &dir, &dir.prefix_end()).await.map_err(VaultError::from)?;
    let mut all = Vec::new();
    for item in items.into_iter().take(MOST) {
        let id = item.key.to_string().rsplit('/').next().and_then(|id| id.parse::<HostId>().ok());
        match (id, serde_json::from_slice::<Note>(&item.value)) {
            (Some(id), Ok(note)) if id != core.host_id && note.directory != own => all.push(Holder { id, note }),
            (Some(_), Ok(_)) => {}
            (None, _) | (_, Err(_)) => tracing::warn!(key = %item.key, "a note about recordings cannot be read"),
        }
    }
    Ok(all)
}

/// Connections to other Auth Services, made at first need.
#[derive(Default)]
pub(crate) struct Lines(Mutex<BTreeMap<HostId, Line>>);

struct Line {
    address: String,
    made: Time,
    channel: Channel,
}

impl Lines {
    fn to(&self, core: &Core, holder: &Holder) -> Result<AuthClient<Channel>, AuthError> {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let good = |line: &Line| line.address == holder.note.address && core.now().since(line.made) < serve::RENEW_AFTER;
        let channel = match lines.get(&holder.id).filter(|line| good(line)) {
            Some(line) => line.channel.clone(),
            None => {
                let channel = open(core, holder)?;
                lines.insert(holder.id, Line { address: holder.note.address.clone(), made: core.now(), channel: channel.clone() });
                while lines.len() > MOST {
                    lines.pop_first();
                }
                channel
            }
        };
        Ok(AuthClient::new(channel).max_decoding_message_size(pb::MAX_MESSAGE).max_encoding_message_size(pb::MAX_MESSAGE))
    }
}

fn open(core: &Core, holder: &Holder) -> Result<Channel, AuthError> {
    let identity = serve::calling(core)?;
    let trust = Trust::Cluster(Swap::new(serve::trusted(core)?));
    let config = tls::client_config(Some(&identity), trust, &[alpn::AUTH], &core.clock)?;
    let (id, addr, hello) = (holder.id, holder.note.address.clone(), Arc::new(Hello::ours(&core.version, SystemRole::Auth.as_str())));
    Ok(net::grpc::channel(move || {
        let (config, addr, hello) = (config.clone(), addr.clone(), hello.clone());
        Box::pin(async move {
            let (direction, policy) = (Direction::CallerSpeaksOlder, HelloPolicy::default());
            let connected = net::dial::dial(&addr, config, &sni::host_name(&id), &hello, direction, policy).await?;
            // The other services of that process have the same host id.
            match connected.server_identity() {
                Some(Identity::Host(host)) if host.id == id && host.roles.contains(&SystemRole::Auth) => {
                    Ok(Box::new(connected.stream) as IoStream)
                }
                Some(_) | None => Err(DialError::Tls { addr, source: io::Error::other("what answers there is no Auth Service") }),
            }
        })
    }))
}

/// What others have, and what of it is missing.
pub(crate) struct Found {
    pub(crate) recordings: Vec<Recording>,
    /// One line for each directory that nobody spoke for.
    pub(crate) notes: Vec<String>,
}

/// Asks everybody at once.
pub(crate) async fn list(core: &Core, ask: &pb::ListOwnRecordingsRequest) -> Result<Found, Fault> {
    let holders = holders(core).await?;
    let asked = holders.iter().map(|holder| async move { (holder, list_of(core, holder, ask).await) });
    let (mut recordings, mut spoken, mut silent) = (Vec::new(), Vec::new(), Vec::new());
    for (holder, answer) in futures::future::join_all(asked).await {
        match answer {
            Ok(found) => {
                spoken.push(holder.note.directory);
                recordings.extend(found);
            }
            Err(error) => {
                tracing::warn!(holder = %holder, %error, "the recordings of another Auth Service cannot be listed");
                silent.push(holder);
            }
        }
    }
    silent.retain(|holder| !spoken.contains(&holder.note.directory));
    Ok(Found { recordings, notes: missing(&silent) })
}

async fn list_of(core: &Core, holder: &Holder, ask: &pb::ListOwnRecordingsRequest) -> Result<Vec<Recording>, Public> {
    let mut client = core.peers.to(core, holder).map_err(|error| error.public())?;
    let reply = match tokio::time::timeout(LIST_DEADLINE, client.list_own_recordings(ask.clone())).await {
        Ok(Ok(reply)) => reply.into_inner(),
        Ok(Err(status)) => return Err(public(&status)),
        Err(_) => return Err(late()),
    };
    Ok(reply.recordings.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok()).collect())
}

/// One line for each directory: who is silent about it, and how much lies there.
fn missing(silent: &[&Holder]) -> Vec<String> {
    let mut directories: BTreeMap<Uuid, (Vec<String>, u64)> = BTreeMap::new();
    for holder in silent {
        let (names, count) = directories.entry(holder.note.directory).or_default();
        names.push(holder.to_string());
        *count = holder.note.recordings.max(*count);
    }
    let line = |(names, count): (Vec<String>, u64)| {
        let verb = if names.len() == 1 { "does" } else { "do" };
        format!("{} {verb} not answer: recordings that lie only there ({count} when last heard of) are missing here", names.join(" and "))
    };
    directories.into_values().map(line).collect()
}

/// A recording on its way from another Auth Service.
pub(crate) struct Fetched {
    pub(crate) recording: Recording,
    pub(crate) first: pb::RecordingChunk,
    pub(crate) rest: Streaming<pb::RecordingChunk>,
}

/// Asks everybody for a recording, from that byte on; the first who has one that `shows` gives it. Nothing of another is told.
pub(crate) async fn fetch(core: &Core, session: SessionId, offset: u64, shows: impl Fn(&Recording) -> bool) -> Result<Fetched, Fault> {
    let holders = holders(core).await?;
    let asked = holders.iter().map(|holder| async move { (holder, begin(core, holder, session, offset).await) });
    let mut answers: FuturesUnordered<_> = asked.collect();
    let (mut spoken, mut silent) = (Vec::new(), Vec::new());
    while let Some((holder, answer)) = answers.next().await {
        match answer {
            Ok(fetched) if fetched.recording.session == session && shows(&fetched.recording) => return Ok(fetched),
            Ok(_) => spoken.push(holder.note.directory),
            Err(error) if error.is(Code::NotFound) => spoken.push(holder.note.directory),
            Err(error) => {
                tracing::warn!(holder = %holder, %session, %error, "another Auth Service cannot be asked for a recording");
                silent.push(holder);
            }
        }
    }
    silent.retain(|holder| !spoken.contains(&holder.note.directory));
    if silent.is_empty() {
        return Err(RecordingError::NotFound.into());
    }
    let who = silent.iter().map(ToString::to_string).collect::<Vec<_>>().join(" and ");
    Err(Public::new(Code::Unavailable, format!("no recording of that session is at hand, and {who} cannot be asked for it"))
        .hint("try again when that Auth Service runs; it keeps recordings in a directory of its own")
        .into())
}

async fn begin(core: &Core, holder: &Holder, session: SessionId, offset: u64) -> Result<Fetched, Public> {
    let mut client = core.peers.to(core, holder).map_err(|error| error.public())?;
    let ask = pb::ReadRecordingRequest { session: session.to_string(), offset };
    let talk = async {
        let mut rest = client.read_own_recording(ask).await.map_err(|status| public(&status))?.into_inner();
        let first = rest.message().await.map_err(|status| public(&status))?.unwrap_or_default();
        let recording = serde_json::from_slice(&first.description)
            .map_err(|_| Public::new(Code::RecordingBroken, "the recording came without its description"))?;
        Ok(Fetched { recording, first, rest })
    };
    tokio::time::timeout(READ_DEADLINE, talk).await.unwrap_or_else(|_| Err(late()))
}

fn public(status: &tonic::Status) -> Public {
    net::grpc::connect_error(status).unwrap_or_else(|| pb::from_status(status))
}

fn late() -> Public {
    Public::new(Code::Timeout, "the Auth Service did not answer in time")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(number: u128, directory: u128, recordings: u64) -> Holder {
        let (name, address) = (format!("auth{number}"), format!("10.0.0.{number}:3025"));
        let note = Note { name, address, directory: Uuid::from_u128(directory), recordings, extra: Extra::new() };
        Holder { id: HostId::from_uuid(Uuid::from_u128(number)), note }
    }

    #[test]
    fn what_is_missing_is_one_line_for_each_directory() {
        let check = |silent: &[Holder], want: &[&str]| assert_eq!(missing(&silent.iter().collect::<Vec<_>>()), want);
        check(&[], &[]);
        let two = "auth2 (10.0.0.2:3025) does not answer: recordings that lie only there (7 when last heard of) are missing here";
        let both = "auth3 (10.0.0.3:3025) and auth4 (10.0.0.4:3025) do not answer: recordings that lie only there (5 when last heard of) are missing here";
        check(&[holder(2, 1, 7)], &[two]);
        check(&[holder(2, 1, 7), holder(3, 2, 4), holder(4, 2, 5)], &[two, both]);
    }
}
