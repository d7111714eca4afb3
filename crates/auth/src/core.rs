//! What every request works with: the cluster's parts, who asks, and how a refusal leaves the process.
//!
//! A request is identified here ([`Core::identify`]) and decided in `rules`; a [`Fault`] becomes a `Public` at one place
//! ([`Core::fault`]), where refusals are also written to the audit log and faults of ours get a reference into the log.

use crate::{
    audit::{Audit, AuditError},
    ca::{Authorities, issue::IssueError, names::BadHostName},
    hosts::Used,
    limits::{Gate, Repeats},
    metrics::{Metrics, count},
    migrations::Migrations,
    mirror::Mirror,
    password::{HashError, Hasher},
    presence::Notices,
    recordings::{RecordingError, Recordings, peers},
    vault::{Vault, VaultError},
};
use net::{
    clock::SharedClock,
    grpc::Peer,
    health::{Board, Health},
    shutdown::Shutdown,
    task::Group,
};
use rules::{Caller, Denied, RoleSet, access::CurrentUser, admission, lock};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, PoisonError},
};
use store::{
    CommitError, Documents, Store,
    documents::{ReadError, WriteError},
};
use types::{
    ClusterName, Code, Event, EventKind, HostId, HostIdentity, Identity, NodeName, Public, Resource, Secret, SystemRole, Time,
    UserIdentity, Version, kind::AuthPreference, kind::singleton, name::ClusterId,
};

/// The parts of one Auth Service, shared by its requests.
pub(crate) struct Core {
    pub(crate) clock: SharedClock,
    pub(crate) version: Version,
    pub(crate) cluster: ClusterName,
    pub(crate) cluster_id: ClusterId,
    pub(crate) host_id: HostId,
    pub(crate) node_name: NodeName,
    /// The store as it lies: for the control record, seats, migrations and backups. Business reads and writes `documents` and `vault`,
    /// which show it in the newest form.
    pub(crate) store: Arc<dyn Store>,
    pub(crate) documents: Documents,
    pub(crate) vault: Vault,
    /// The seats of Auth Services, in the store as it lies.
    pub(crate) seats: Vault,
    pub(crate) migrations: Migrations,
    pub(crate) authorities: Authorities,
    pub(crate) mirror: Mirror,
    pub(crate) audit: Audit,
    pub(crate) recordings: Recordings,
    /// To other Auth Services, for their recordings.
    pub(crate) peers: peers::Lines,
    /// The right to make a backup for somebody: one at a time.
    pub(crate) backups: Arc<tokio::sync::Semaphore>,
    /// The right to make a plan of an upgrade for somebody: one at a time.
    pub(crate) plans: Arc<tokio::sync::Semaphore>,
    /// The last preference that could be read.
    pub(crate) preferred: Mutex<AuthPreference>,
    pub(crate) hasher: Hasher,
    pub(crate) gate: Gate,
    /// Joins: their own bounds, so that a flood of them costs no login.
    pub(crate) joins: Gate,
    pub(crate) used: Used,
    pub(crate) seat: crate::seat::Seat,
    pub(crate) repeats: Repeats,
    pub(crate) static_tokens: Vec<(BTreeSet<SystemRole>, Secret)>,
    pub(crate) notices: Notices,
    /// The releases that this cluster may move to.
    pub(crate) releases: Option<Arc<dyn crate::world::Releases>>,
    pub(crate) health: Board,
    pub(crate) walker: Option<Arc<dyn crate::walk::Walker>>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) group: Group,
    pub(crate) shutdown: Shutdown,
    /// Another process goes on in this one's place.
    pub(crate) handing_over: std::sync::atomic::AtomicBool,
}

/// Who asks, after everything that refuses him as such.
#[derive(Debug)]
pub(crate) enum Who {
    Nobody,
    User { identity: UserIdentity, roles: Box<RoleSet> },
    Host(HostIdentity),
}

/// One request.
pub(crate) struct Inner {
    pub(crate) core: Arc<Core>,
    pub(crate) who: Who,
    pub(crate) peer: Peer,
    pub(crate) now: Time,
}
pub(crate) type Call = Arc<Inner>;

/// Why a request was not served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("{0}")]
    Denied(#[from] Denied),
    #[error("{0}")]
    Public(Public),
    #[error(transparent)]
    Write(#[from] WriteError),
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Audit(#[from] AuditError),
    #[error(transparent)]
    Hash(#[from] HashError),
    #[error(transparent)]
    Issue(#[from] IssueError),
    #[error(transparent)]
    Recording(#[from] RecordingError),
    #[error("{0}")]
    Internal(String),
}

impl From<Public> for Fault {
    fn from(public: Public) -> Self {
        Self::Public(public)
    }
}
impl From<BadHostName> for Fault {
    fn from(error: BadHostName) -> Self {
        malformed(error)
    }
}
impl From<types::name::BadName> for Fault {
    fn from(error: types::name::BadName) -> Self {
        malformed(error)
    }
}
impl From<types::document::BadDocument> for Fault {
    fn from(error: types::document::BadDocument) -> Self {
        let code = if matches!(error, types::document::BadDocument::TooLarge(_)) { Code::TooLarge } else { Code::Malformed };
        Self::Public(Public::new(code, error.to_string()))
    }
}

/// A request that says something impossible.
pub(crate) fn malformed(why: impl std::fmt::Display) -> Fault {
    Fault::Public(Public::new(Code::Malformed, why.to_string()))
}

impl Inner {
    /// The caller for `rules`; nobody is nobody's caller.
    pub(crate) fn caller(&self) -> Result<Caller<'_>, Fault> {
        match &self.who {
            Who::User { identity, roles } => Ok(Caller::User { identity, roles }),
            Who::Host(host) => Ok(Caller::Host(host)),
            Who::Nobody => Err(Public::new(Code::LoginRequired, "not logged in").hint("log in: tsh login").into()),
        }
    }

    /// The caller's address, unless it is that of a Proxy in between.
    pub(crate) fn own_address(&self) -> Option<std::net::IpAddr> {
        (!self.peer.spliced).then(|| self.peer.addr.ip().to_canonical())
    }

    /// Only members with that role.
    pub(crate) fn only(&self, role: SystemRole, what: &str) -> Result<&HostIdentity, Fault> {
        match &self.who {
            Who::Host(host) if host.roles.contains(&role) => Ok(host),
            Who::Host(_) | Who::User { .. } => Err(Denied::NotAllowed { who: self.name(), what: what.to_owned() }.into()),
            Who::Nobody => self.caller().and(Err(Fault::Internal("nobody was somebody".into()))),
        }
    }

    /// For logs and audit.
    pub(crate) fn name(&self) -> String {
        match &self.who {
            Who::Nobody => "somebody without a certificate".into(),
            Who::User { identity, .. } => identity.user.to_string(),
            Who::Host(host) => format!("{} ({})", host.name, host.id),
        }
    }

    /// An event with the caller's details.
    pub(crate) fn event(&self, kind: EventKind) -> Event {
        let event = self.core.event(kind).with("addr.remote", self.peer.addr.to_string());
        match &self.who {
            Who::Nobody => event,
            Who::User { identity, .. } => by_user(event, identity),
            Who::Host(host) => by_host(event, host),
        }
    }
}

/// An event with the details of whoever showed that certificate, under the names by which logs are searched.
pub(crate) fn by(event: Event, identity: Option<&Identity>) -> Event {
    match identity {
        None => event,
        Some(Identity::User(user)) => by_user(event, user),
        Some(Identity::Host(host)) => by_host(event, host),
    }
}

fn by_user(event: Event, user: &UserIdentity) -> Event {
    event.with("user", user.user.as_str())
}

fn by_host(event: Event, host: &HostIdentity) -> Event {
    if host.roles.contains(&SystemRole::Admin) {
        return event.with("user", format!("admin@{}", host.name));
    }
    event.with("server_id", host.id.to_string()).with("server_hostname", host.name.as_str())
}

impl Core {
    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    pub(crate) fn event(&self, kind: EventKind) -> Event {
        self.audit.event(kind).with("cluster_name", self.cluster.as_str())
    }

    pub(crate) fn preference(&self) -> AuthPreference {
        let name = types::ResourceName::new(singleton::AUTH_PREFERENCE).ok();
        let stored = name.and_then(|name| self.mirror.typed::<AuthPreference>(&name)).map(|resource| resource.spec);
        // One that a newer release wrote and this one cannot read leaves the last in force, not the defaults.
        let mut last = self.preferred.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stored) = stored {
            *last = stored;
        }
        last.clone()
    }

    /// The public authorities, as documents.
    pub(crate) fn authority_documents(&self) -> Vec<bytes::Bytes> {
        let view = self.mirror.view("cert_authority", None, 100, usize::MAX, |_| true);
        view.entries.iter().map(|entry| entry.json.clone()).collect()
    }

    /// Who is it: a certificate that TLS accepted, still in force, of a user or member who is not locked out and whose
    /// version this cluster admits. Asked for each request, because connections outlive all of that.
    pub(crate) fn identify(self: &Arc<Self>, peer: Option<Peer>) -> Result<Inner, Fault> {
        let peer = peer.ok_or_else(|| Fault::Internal("a request without a peer".into()))?;
        let now = self.now();
        let who = self.who(&peer, now)?;
        Ok(Inner { core: self.clone(), who, peer, now })
    }

    fn who(&self, peer: &Peer, now: Time) -> Result<Who, Fault> {
        match peer.identity.as_deref() {
            None => Ok(Who::Nobody),
            Some(Identity::User(identity)) => {
                rules::access::in_force(&self.cluster, identity, Some(peer.addr.ip()), now)?;
                lock::check(&self.mirror.locks(), &lock::Subject { identity, login: None, host: None }, now)?;
                let user = self.mirror.user(&(&identity.user).into());
                let roles = RoleSet::resolve(identity, |name| self.mirror.role(name), CurrentUser::from(user.as_ref()));
                Ok(Who::User { identity: identity.clone(), roles: Box::new(roles) })
            }
            Some(Identity::Host(host)) => {
                if host.cluster != self.cluster {
                    return Err(Denied::Cluster { found: host.cluster.to_string(), here: self.cluster.to_string() }.into());
                }
                lock::check_host(&self.mirror.locks(), host.id, now)?;
                self.admit(&host.roles, peer, false)?;
                Ok(Who::Host(host.clone()))
            }
        }
    }

    /// Judges a member's version against the windows of the control record.
    pub(crate) fn admit(&self, roles: &BTreeSet<SystemRole>, peer: &Peer, draining: bool) -> Result<(), Public> {
        let version = peer.hello.parsed();
        let applicant =
            admission::Applicant { roles, version: version.as_ref(), skips_version_check: peer.hello.skips_version_check, draining };
        let control = self.mirror.control();
        let Some(control) = control.as_ref() else {
            return Err(Public::new(Code::Unavailable, "the Auth Service has not read its control record"));
        };
        // A skipped check is audited where connections begin.
        admission::admit(control, &applicant).map(|_| ())
    }

    /// Lets a member in, or go on being one: only as long as this Auth Service's own seat holds.
    pub(crate) fn register(&self, roles: &BTreeSet<SystemRole>, peer: &Peer, draining: bool) -> Result<(), Public> {
        self.seat.holds()?;
        self.admit(roles, peer, draining)
    }

    /// The one place where an error leaves: refusals are recorded, faults of ours are logged under a reference.
    pub(crate) async fn fault(&self, who: &str, peer: Option<&Peer>, method: &'static str, fault: Fault) -> Public {
        let mut public = self.shown(method, &fault);
        let addr = peer.map(|peer| peer.addr.to_string()).unwrap_or_default();
        if public.is(Code::StoreFenced) && crate::seat::is_wanted(self).await {
            // The windows were moved between this request's beginning and its write; the next one writes with the new epoch.
            public = Public::new(Code::Unavailable, "the cluster's windows were moved at this moment").hint("try again");
        } else if public.is(Code::StoreFenced) {
            self.health.set("auth", Health::Degraded("a newer Auth Service has taken over; stop this one".into()));
        }
        let kind = match public.known() {
            Some(Code::VersionWindow | Code::VersionPrerelease | Code::VersionUnreadable) => EventKind::VersionRefused,
            _ if matches!(fault, Fault::Denied(_)) => EventKind::AccessDenied,
            _ => return public,
        };
        if let Some(peer) = peer.filter(|_| kind == EventKind::VersionRefused) {
            crate::quarantine::refused(self, peer.identity.as_deref(), Some(&peer.hello), &public).await;
        }
        count(if kind == EventKind::AccessDenied { &self.metrics.refused } else { &self.metrics.version_refusals });
        tracing::info!(method, who, addr, refusal = %fault, "refused");
        // Logins and joins write their own events, with more in them.
        if matches!(fault, Fault::Denied(Denied::LoginFailed { .. } | Denied::LoginLocked { .. } | Denied::Token { .. })) {
            return public;
        }
        let event = by(self.event(kind), peer.and_then(|peer| peer.identity.as_deref()));
        let event = event.with("method", method).with("addr.remote", addr).with("error", fault.to_string());
        self.record_refusal(&format!("{method}\n{who}\n{fault}"), event).await;
        public
    }

    /// Records a refusal, unless it was recorded lately; then it is counted and told with the next.
    pub(crate) async fn record_refusal(&self, key: &str, event: Event) {
        let Some(suppressed) = self.repeats.admit(key, self.now()) else { return };
        let event = if suppressed > 0 { event.with("suppressed", suppressed) } else { event };
        if let Err(error) = self.audit.record(event).await {
            tracing::error!(%error, "a refusal could not be recorded");
        }
    }

    fn shown(&self, method: &'static str, fault: &Fault) -> Public {
        let reference = || {
            let reference: String = uuid::Uuid::new_v4().simple().to_string().chars().take(8).collect();
            count(&self.metrics.failed);
            tracing::error!(method, reference, error = %fault, "a request failed");
            reference
        };
        match fault {
            Fault::Denied(denied) => denied.public(),
            Fault::Public(public) => public.clone(),
            Fault::Write(error) => {
                let public = error.public("");
                if public.reference.is_none() { public } else { error.public(&reference()) }
            }
            Fault::Read(error) => {
                let public = error.public("");
                if public.reference.is_none() { public } else { error.public(&reference()) }
            }
            Fault::Vault(VaultError::Commit(CommitError::Fenced { .. })) => {
                Public::new(Code::StoreFenced, "this Auth Service may no longer write")
            }
            Fault::Vault(_) => {
                Public { reference: Some(reference()), ..Public::new(Code::StoreBroken, "the store cannot be read or written") }
            }
            Fault::Audit(_) => Public {
                reference: Some(reference()),
                ..Public::new(Code::Unavailable, "the audit log does not take events, so nothing is done")
            },
            Fault::Issue(error @ (IssueError::SshKey | IssueError::TlsKey | IssueError::NoKey)) => {
                Public::new(Code::Malformed, error.to_string())
            }
            Fault::Issue(error @ IssueError::TooLarge(_)) => {
                Public::new(Code::TooLarge, error.to_string()).hint("give the user fewer roles or shorter traits")
            }
            Fault::Recording(error) => shown_recording(error).unwrap_or_else(|| Public::internal(reference())),
            Fault::Hash(_) | Fault::Issue(IssueError::Sign(_)) | Fault::Internal(_) => Public::internal(reference()),
        }
    }

    /// A user's document, if there is one.
    pub(crate) fn user(&self, name: &types::UserName) -> Option<Resource<types::kind::User>> {
        self.mirror.user(&name.into())
    }
}

fn shown_recording(error: &RecordingError) -> Option<Public> {
    let text = error.to_string();
    Some(match error {
        RecordingError::NotFound => Public::new(Code::NotFound, text).hint("list them: tsh recordings ls"),
        RecordingError::Gap { have, .. } => Public::new(Code::Conflict, text).hint(format!("go on at byte {have}")),
        RecordingError::TooLarge => Public::new(Code::TooLarge, text),
        RecordingError::Digest | RecordingError::NoHeader | RecordingError::Disagrees | RecordingError::Bad(_) => {
            Public::new(Code::RecordingBroken, text)
        }
        RecordingError::Exists => Public::new(Code::AlreadyExists, text),
        RecordingError::Io(_) | RecordingError::Interrupted => return None,
    })
}
