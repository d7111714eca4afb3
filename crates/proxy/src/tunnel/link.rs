//! An agent's connections, from the handshake on: the control connection while it lives, a data connection until it is
//! handed to its session.
//!
//! The peer is known by its certificate: [`Agent`] is made by the listener's `identify` step. What the agent *says* it is must
//! agree with that, and is otherwise refused.

use super::{Link, Tunnels, registry::Input};
use crate::Shared;
use net::{IoStream, frame, shutdown::Shutdown};
use std::{collections::BTreeSet, time::Duration};
use tokio::io::{AsyncWriteExt as _, WriteHalf};
use types::{Code, HostId, Identity, Public, SystemRole};
use wire::{
    capability::WARM_SPARE,
    hello::Hello,
    tunnel::{DataHello, ToAgent, ToProxy, WANTED, decode, encode},
};

/// For the first message after the handshake, and for every write.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longer than the silence that the registry allows: the registry hangs up, this is the net below it.
const SILENCE: Duration = Duration::from_secs(wire::tunnel::PING_SECONDS * 4);

/// A member that serves resources, known by its host certificate.
#[derive(Clone, Debug)]
pub(crate) struct Agent {
    pub(crate) id: HostId,
    /// It said that it can keep a spare connection.
    pub(crate) warm: bool,
}

/// A resource service of this cluster, not locked; nobody else holds a tunnel or answers for one.
pub(crate) fn identify(shared: &Shared, identity: Option<Identity>, hello: &Hello) -> Result<Agent, Public> {
    match identity {
        Some(Identity::Host(host)) if host.roles.iter().any(SystemRole::is_agent) => {
            rules::lock::check_host(&shared.cache.locks(), host.id, shared.clock.now())?;
            Ok(Agent { id: host.id, warm: hello.can(WARM_SPARE) })
        }
        Some(Identity::Host(_) | Identity::User(_)) | None => {
            Err(Public::new(Code::AccessIdentity, "only resource services have tunnels").hint("join with a token for the role node"))
        }
    }
}

/// The hosts that a lock in force names, with what they are told. Followed by the Proxy: a lock ends a tunnel that is there.
pub(crate) fn locked(shared: &Shared) -> Vec<(HostId, Public)> {
    let (locks, now) = (shared.cache.locks(), shared.clock.now());
    let named: BTreeSet<HostId> = locks.iter().filter_map(|lock| lock.spec.target.node).collect();
    named.into_iter().filter_map(|host| rules::lock::check_host(&locks, host, now).err().map(|denied| (host, denied.public()))).collect()
}

/// Registers an agent; then [`serve_control`] takes over. Nothing is left open on an error.
pub(crate) async fn register(stream: &mut IoStream, agent: &Agent, tunnels: &Tunnels) -> Result<Link, Public> {
    let refusal = match first_message(stream, agent, tunnels.proxy_id).await {
        Ok(boot) => match tunnels.register(agent.id, boot, agent.warm).await {
            Ok(link) => return Ok(link),
            Err(error) => error,
        },
        Err(error) => error,
    };
    refuse(stream, &refusal).await;
    Err(refusal)
}

/// Tells an agent why it may not hold a tunnel, and closes.
pub(crate) async fn refuse(stream: &mut IoStream, error: &Public) {
    let told = encode(&ToAgent::Refused { error: error.clone() });
    if frame::write_frame(stream, &told, DEADLINE).await.is_ok() {
        let _ = tokio::time::timeout(DEADLINE, stream.shutdown()).await;
    }
}

async fn first_message(stream: &mut IoStream, agent: &Agent, ours: HostId) -> Result<String, Public> {
    let malformed = |why: String| Public::new(Code::Malformed, format!("the agent's first message cannot be read: {why}"));
    let payload = frame::read_frame(stream, DEADLINE).await.map_err(|error| malformed(error.to_string()))?;
    match decode(&payload).map_err(|error| malformed(error.to_string()))? {
        ToProxy::Register { host_id, boot_id, extra } if host_id == agent.id && boot_id.len() <= 64 => {
            // It has a tunnel here by another address, which this one must not push out.
            let another = extra.get(WANTED).is_some_and(|wanted| wanted.as_str() != Some(ours.to_string().as_str()));
            if another {
                return Err(Public::new(Code::Conflict, format!("this is the Proxy {ours}"))
                    .hint("the address leads to several Proxies: set proxy_service.tunnel_addr"));
            }
            Ok(boot_id)
        }
        ToProxy::Register { host_id, .. } if host_id == agent.id => Err(malformed("its boot id is longer than 64 bytes".into())),
        ToProxy::Register { .. } => Err(Public::new(Code::AccessIdentity, "the host id is not the one in the certificate")),
        ToProxy::Pong { .. } | ToProxy::Failed { .. } | ToProxy::Unknown => Err(malformed("it does not register".into())),
    }
}

/// Carries messages until either side ends. One per idle tunnel: keep it small.
pub(crate) async fn serve_control(stream: IoStream, mut link: Link, tunnels: Tunnels, shutdown: Shutdown) {
    let (reading, mut writing) = tokio::io::split(stream);
    let mut reader = frame::Reader::new(reading);
    loop {
        tokio::select! {
            // What is queued is written first: an agent hears of the end before it comes.
            biased;
            order = link.orders.recv() => match order {
                Some(message) => if write(&mut writing, &message).await.is_err() { break },
                // Hung up by the registry; everything before was written.
                None => {
                    let _ = tokio::time::timeout(DEADLINE, writing.shutdown()).await;
                    break;
                }
            },
            () = shutdown.stopping() => break,
            frame = reader.next(SILENCE) => {
                let Ok(payload) = frame else { break };
                if !hear(&payload, &link, &tunnels).await { break }
            }
        }
    }
    tunnels.tell(Input::Gone { link: link.id }).await;
}

async fn write(writing: &mut WriteHalf<IoStream>, message: &ToAgent) -> Result<(), frame::FrameError> {
    frame::write_frame(writing, &encode(message), DEADLINE).await
}

/// Takes one message; false ends the link.
async fn hear(payload: &[u8], link: &Link, tunnels: &Tunnels) -> bool {
    match decode::<ToProxy>(payload) {
        Ok(ToProxy::Failed { ticket, error }) => {
            tunnels.tell(Input::Failed { link: link.id, ticket, error: in_our_words(&error) }).await;
        }
        // A second registration changes nothing; what a newer release says is a sign of life.
        Ok(ToProxy::Register { .. } | ToProxy::Pong { .. } | ToProxy::Unknown) => tunnels.tell(Input::Heard { link: link.id }).await,
        Err(error) => {
            tracing::warn!(%error, "an agent's message cannot be read; hanging up");
            return false;
        }
    }
    true
}

/// Why a host takes no session, as users hear it. Its own words stay in the log: a stolen host would put advice into them
/// ("moved, log in at …") that looks like ours (attack table, row 13).
pub(crate) fn in_our_words(said: &Public) -> Public {
    tracing::info!(code = ?said.code, message = ?said.message, "a host took no session");
    match said.known() {
        Some(Code::AccessLimit) => {
            Public::new(Code::AccessLimit, "the host has as many connections as it takes").hint("try again in a moment")
        }
        _ => Public::new(Code::NodeOffline, "the host could not take the session").hint("look at the log of its agent"),
    }
}

/// Takes a data connection's first frame and hands the connection over.
pub(crate) async fn serve_data(mut stream: IoStream, agent: &Agent, tunnels: &Tunnels) {
    let Ok(payload) = frame::read_frame(&mut stream, DEADLINE).await else { return };
    match decode::<DataHello>(&payload) {
        Ok(hello) => tunnels.data(agent.id, hello, stream).await,
        Err(error) => tracing::warn!(host = %agent.id, %error, "a dial-back says neither a ticket nor that it is a spare"),
    }
}
