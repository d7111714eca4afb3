//! The way to a host, whoever asks: one decision and one act behind both doors, [`gateway`] (TLS, `tsh`) and [`jump`] (SSH,
//! plain OpenSSH).
//!
//! The decision is `rules`': which hosts the user may see, and which of them he means. The Proxy does not choose the login:
//! that is decided by the host, which sees the user's certificate inside SSH. An unknown host and a forbidden one look the same.
//! A session that runs is watched ([`stay`]): what ends a permit ends its way.

pub(crate) mod direct;
pub(crate) mod gateway;
pub(crate) mod jump;
mod stay;

use crate::{Shared, metrics::Open};
use net::{
    IoStream,
    copy::{self, splice},
    shutdown::Shutdown,
};
use rules::{CurrentUser, Denied, Permit, RoleSet, access, lock, permit::Dial};
use stay::Stay;
use std::{net::SocketAddr, time::Duration};
use types::{Code, HostId, NodeName, Public, Resource, ResourceName, UserIdentity, kind::Node};

/// How long one side of a session may stay silent once the other has ended.
const HALF_CLOSED: Duration = Duration::from_secs(60);

/// Who asks, from where.
#[derive(Clone, Debug)]
pub(crate) struct Visitor {
    pub(crate) user: UserIdentity,
    pub(crate) peer: SocketAddr,
}

/// Why there is no way.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoWay {
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error("{0}")]
    Public(Public),
}

impl NoWay {
    fn public(&self) -> Public {
        match self {
            Self::Denied(denied) => denied.public(),
            Self::Public(public) => public.clone(),
        }
    }
}

/// A connection to a host, and on what conditions.
pub(crate) struct Way {
    pub(crate) hostname: NodeName,
    stream: IoStream,
    stay: Stay,
}

impl Way {
    pub(crate) fn host(&self) -> HostId {
        self.stay.host
    }
}

/// Decides and acts: the way to the host that the visitor means, or why there is none.
pub(crate) async fn connect(shared: &Shared, visitor: &Visitor, asked: &str) -> Result<Way, Public> {
    let permit = decide(shared, visitor, asked).map_err(|no| no.public())?;
    let (host, hostname) = (permit.host, permit.hostname.clone());
    let labels = shared.cache.node(&host).map(|node| node.metadata.labels.clone()).unwrap_or_default();
    let stream = act(shared, permit, visitor).await?;
    Ok(Way { hostname, stream, stay: Stay { visitor: visitor.clone(), host, labels } })
}

/// Which registered host the visitor means, if he may see it. `asked` is an id, a name or `name.cluster`.
fn decide(shared: &Shared, visitor: &Visitor, asked: &str) -> Result<Permit<Dial>, NoWay> {
    let (cache, now, user) = (&shared.cache, shared.clock.now(), &visitor.user);
    if !cache.feeding().borrow().synced {
        let starting = Public::new(Code::Unavailable, "this Proxy is starting and has not heard from the Auth Service yet");
        return Err(NoWay::Public(starting.hint("try again in a moment")));
    }
    access::in_force(cache.cluster(), user, Some(visitor.peer.ip()), now)?;
    let document = cache.user(&ResourceName::from(&user.user));
    let roles = RoleSet::resolve(user, cache.roles(), CurrentUser::from(document.as_deref()));
    let locks = cache.locks();
    lock::check(&locks, &lock::Subject { identity: user, login: None, host: None }, now)?;
    let nodes = cache.nodes();
    // The cheap test first: of ten thousand hosts, one has the name.
    let visible = nodes.values().map(AsRef::as_ref).filter(|node| may_be(node, asked) && roles.can_see_node(&node.metadata.labels));
    let permit = rules::route::resolve(asked, cache.cluster(), visible)?;
    if user.restrictions.host.is_some_and(|only| only != permit.host) {
        return Err(Denied::Restricted("it is for another host".into()).into());
    }
    lock::check(&locks, &lock::Subject { identity: user, login: None, host: Some(permit.host) }, now)?;
    Ok(permit)
}

/// Whether `rules::route` could find this host under that text; never false for one that it would find.
fn may_be(node: &Resource<Node>, asked: &str) -> bool {
    let name = node.spec.hostname.as_str();
    let by_name = asked.get(..name.len()).is_some_and(|head| head.eq_ignore_ascii_case(name));
    by_name || node.name().as_str().eq_ignore_ascii_case(asked)
}

/// A connection to the host's SSH Service.
async fn act(shared: &Shared, permit: Permit<Dial>, visitor: &Visitor) -> Result<IoStream, Public> {
    let dial = permit.into_facts();
    if dial.use_tunnel || dial.addr.is_empty() {
        shared.tunnels.open(dial.host, &visitor.peer.to_string()).await
    } else {
        shared.direct.open(&shared.hello, &dial, visitor).await
    }
}

/// Carries a session to its end, or until it may no longer go on.
pub(crate) async fn carry(shared: &Shared, client: IoStream, way: Way) {
    let _open = Open::new(&shared.metrics);
    let cut = Shutdown::new();
    let options = copy::Options { idle: None, half_close_grace: Some(HALF_CLOSED), shutdown: Some(cut.clone()) };
    let stats = tokio::select! {
        stats = splice(client, way.stream, options) => stats,
        never = way.stay.watch(shared, &cut) => match never {},
    };
    shared.metrics.bytes_up.add(stats.up);
    shared.metrics.bytes_down.add(stats.down);
    tracing::debug!(up = stats.up, down = stats.down, end = ?stats.end, "session ended");
}
