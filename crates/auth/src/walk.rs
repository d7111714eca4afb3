//! Walks a user's path through one member: health is "users can connect", never "the process is up" (design 3.7).
//!
//! The path follows from what the member is ([`steps`]): an Auth Service answers a user at its own address, a Proxy leads to it and to a
//! host, a host opens a session. Each step is made over the network as a user makes it, by the client's half, which comes from outside
//! ([`Walker`]), under the identity of `rules::walk`. He makes a key for each step and has it certified for minutes ([`Pass::certify`]);
//! nothing of it is ever on a disk. A member of a release that does not know the walker is tried as far as a stranger gets: whether the
//! right process answers there. Called by upgrades, and by `tctl inventory walk`.

use crate::{
    api::certs::user_credentials,
    ca::issue::Keys,
    core::{Core, Fault},
};
use futures::future::BoxFuture;
use rules::{CurrentUser, RoleSet, documents::has_role, presence::OFFLINE_AFTER};
use std::{fmt, time::Duration};
use tokio::time::Instant;
use types::{EventKind, HostId, Resource, ResourceName, SystemRole, Version, document::Spec as _, kind::Member};
use wire::{api as pb, capability};

/// For all steps together.
const DEADLINE: Duration = Duration::from_secs(20);
/// Others on the way that are tried: the fault of one of them is not the member's.
const TRIED: usize = 3;
/// Members looked at to find them.
const LOOK: usize = 64;
/// The longest answer.
const MAX_WORDS: usize = 400;

/// A member on the path.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    pub id: HostId,
    pub name: String,
    /// `host:port`, of an Auth Service or a Proxy.
    pub addr: String,
    /// Its release knows the walker.
    pub knows: bool,
    /// What it runs: on the way back of an upgrade it is older than who walks, who then speaks as one of its age.
    pub version: Version,
}

/// One thing that a user does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// Asks this Auth Service for hosts and for a certificate.
    Auth(Place),
    /// Asks the Auth Service through this Proxy, and opens a session on one of these hosts, if there are any.
    Proxy { proxy: Place, hosts: Vec<Place> },
    /// Opens a session on this host through one of these Proxies.
    Host { host: Place, proxies: Vec<Place> },
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auth(auth) => write!(f, "the Auth Service of {} at {}", auth.name, auth.addr),
            Self::Proxy { proxy, .. } => write!(f, "the Proxy {} at {}", proxy.name, proxy.addr),
            Self::Host { host, .. } => write!(f, "the host {}", host.name),
        }
    }
}

/// Whoever walks: the client's half of each step.
pub trait Walker: Send + Sync {
    /// The error is what did not work, as a fragment that fits behind the name of the place.
    fn step<'a>(&'a self, pass: Pass<'a>, step: &'a Step) -> BoxFuture<'a, Result<(), String>>;
}

/// The right to be certified as the walker, for one step.
#[derive(Clone, Copy)]
pub struct Pass<'a>(&'a Core);

impl Pass<'_> {
    /// Certificates for these keys.
    pub async fn certify(self, ssh_public_key: &str, tls_public_key: &[u8]) -> Result<pb::UserCredentials, String> {
        let core = self.0;
        let certified = async {
            let permit = rules::walk::certificate(&core.cluster, core.now())?;
            let options = RoleSet::resolve(&permit.identity, |_| None, CurrentUser::Unknown).options();
            let keys = Keys::both(ssh_public_key, tls_public_key)?;
            user_credentials(core, core.event(EventKind::CertCreate).with("walk", true), permit, &options, &keys).await
        };
        certified.await.map_err(|fault: Fault| format!("no certificate for it: {fault}"))
    }
}

/// Walks through a member. The error is one line: where, and what did not work there.
pub(crate) async fn walk(core: &Core, member: &Resource<Member>) -> Result<(), String> {
    let Some(walker) = &core.walker else { return Err("this Auth Service has nobody to walk".into()) };
    let end = Instant::now() + DEADLINE;
    for step in steps(member, serving(core, &SystemRole::Proxy), serving(core, &SystemRole::Node))? {
        let walked = tokio::time::timeout_at(end, walker.step(Pass(core), &step)).await;
        let walked = walked.unwrap_or_else(|_| Err(format!("not done within {} seconds", DEADLINE.as_secs())));
        walked.map_err(|why| one_line(&format!("{step}: {why}")))?;
    }
    Ok(())
}

/// What a peer said may be in it.
fn one_line(text: &str) -> String {
    text.chars().take(MAX_WORDS).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Members in a role that serve now, from one by chance on: of a hundred thousand only a few are looked at.
fn serving(core: &Core, role: &SystemRole) -> Vec<Place> {
    let (from, now) = (ResourceName::from(&HostId::from_uuid(uuid::Uuid::new_v4())), core.now());
    let look = |after| core.mirror.view(Member::KIND, after, LOOK, usize::MAX, |document| has_role(document, role)).entries;
    let found = look(Some(&from)).into_iter().chain(look(None)).filter_map(|entry| Resource::<Member>::from_document(entry.full()?).ok());
    found
        .filter(|member| member.spec.state == "active" && now.since(member.spec.last_seen) < OFFLINE_AFTER)
        .filter_map(|m| place(&m))
        .collect()
}

fn place(member: &Resource<Member>) -> Option<Place> {
    Some(Place {
        id: member.name().as_str().parse().ok()?,
        name: member.spec.hostname.clone(),
        addr: member.spec.proxy_addrs().into_iter().next().unwrap_or_default(),
        knows: member.spec.capabilities.iter().any(|one| one == capability::WALK),
        version: member.spec.version.clone(),
    })
}

/// The path through a member, with others that serve. Those who know the walker come first; a Proxy that does not lets him go nowhere.
fn steps(member: &Resource<Member>, mut proxies: Vec<Place>, mut hosts: Vec<Place>) -> Result<Vec<Step>, String> {
    let Some(own) = place(member) else { return Err(format!("{} has no id of a host", member.name())) };
    proxies.retain(|proxy| proxy.knows && !proxy.addr.is_empty());
    hosts.sort_by_key(|host| !host.knows);
    for others in [&mut proxies, &mut hosts] {
        let mut seen = Vec::new();
        others.retain(|place| {
            !seen.contains(&place.id) && seen.len() < TRIED && {
                seen.push(place.id);
                true
            }
        });
    }
    let mut steps = Vec::new();
    for role in &member.spec.roles {
        match role {
            SystemRole::Auth => {
                let addr = member.spec.extra.get(crate::presence::ADDRESS).and_then(|addr| addr.as_str()).unwrap_or_default();
                steps.push(Step::Auth(Place { addr: addr.to_owned(), ..own.clone() }));
            }
            SystemRole::Proxy => {
                let hosts = if own.knows { hosts.clone() } else { Vec::new() };
                steps.push(Step::Proxy { proxy: own.clone(), hosts });
            }
            SystemRole::Node if proxies.is_empty() => return Err(format!("the host {}: there is no Proxy that leads to it", own.name)),
            SystemRole::Node => steps.push(Step::Host { host: own.clone(), proxies: proxies.clone() }),
            // No release has users there yet.
            SystemRole::Db | SystemRole::Admin | SystemRole::Other(_) => {}
        }
    }
    match steps.iter().find(|step| matches!(step, Step::Auth(place) | Step::Proxy { proxy: place, .. } if place.addr.is_empty())) {
        Some(step) => Err(format!("{step}: it does not say where it is reached")),
        None if steps.is_empty() => Err(format!("{} serves nothing that a user could walk through", own.name)),
        None => Ok(steps),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{Metadata, Time};
    use uuid::Uuid;

    fn member(number: u128, roles: &[SystemRole], extra: &[(&str, &str)]) -> Resource<Member> {
        let spec = Member {
            hostname: format!("m{number}"),
            roles: roles.iter().cloned().collect(),
            version: Version::new(1, 1, 0),
            boot_id: "b".into(),
            started: Time::EPOCH,
            last_seen: Time::EPOCH,
            state: "active".into(),
            skips_version_check: false,
            labels: types::Labels::new(),
            platform: Default::default(),
            capabilities: vec![capability::WALK.into()],
            extra: extra.iter().map(|(name, value)| ((*name).to_owned(), (*value).into())).collect(),
        };
        Resource::new(Metadata::named(&HostId::from_uuid(Uuid::from_u128(number))), spec)
    }
    fn other(number: u128, addr: &str, knows: bool) -> Place {
        Place {
            id: HostId::from_uuid(Uuid::from_u128(number)),
            name: format!("m{number}"),
            addr: addr.into(),
            knows,
            version: Version::new(1, 1, 0),
        }
    }
    const PROXY: (&str, &str) = (Member::PROXY_PUBLIC_ADDR, "p:1");

    #[test]
    fn the_path_is_what_a_user_does_with_each_part_of_a_member() {
        let whole = member(1, &[SystemRole::Auth, SystemRole::Proxy, SystemRole::Node], &[PROXY, (crate::presence::ADDRESS, "a:1")]);
        let path = steps(&whole, vec![other(1, "p:1", true)], vec![other(1, "", true)]).unwrap();
        let own = |addr| other(1, addr, true);
        let want = [
            Step::Auth(own("a:1")),
            Step::Proxy { proxy: own("p:1"), hosts: vec![own("")] },
            Step::Host { host: own("p:1"), proxies: vec![own("p:1")] },
        ];
        assert_eq!(path, want);
        let names: Vec<_> = path.iter().map(Step::to_string).collect();
        assert_eq!(names, ["the Auth Service of m1 at a:1", "the Proxy m1 at p:1", "the host m1"]);
    }

    #[test]
    fn others_are_a_few_that_know_the_walker_first_and_each_once() {
        let hosts: Vec<_> = [9, 8, 9, 7, 6].into_iter().map(|number| other(number, "", number < 8)).collect();
        let [Step::Proxy { hosts, .. }] = &steps(&member(1, &[SystemRole::Proxy], &[PROXY]), Vec::new(), hosts).unwrap()[..] else {
            panic!()
        };
        assert_eq!(*hosts, [other(7, "", true), other(6, "", true), other(9, "", false)]);
    }

    #[test]
    fn what_has_no_path_is_told() {
        let check =
            |member: Resource<Member>, proxies: Vec<Place>, want: &str| assert_eq!(steps(&member, proxies, Vec::new()), Err(want.into()));
        check(member(1, &[SystemRole::Node], &[]), vec![other(2, "p:1", false)], "the host m1: there is no Proxy that leads to it");
        check(member(1, &[SystemRole::Db], &[]), Vec::new(), "m1 serves nothing that a user could walk through");
        check(member(1, &[SystemRole::Proxy], &[]), Vec::new(), "the Proxy m1 at : it does not say where it is reached");
    }

    #[test]
    fn a_proxy_of_an_older_release_is_tried_as_far_as_a_stranger_gets() {
        let mut old = member(1, &[SystemRole::Proxy], &[PROXY]);
        old.spec.capabilities.clear();
        let path = steps(&old, Vec::new(), vec![other(2, "", true)]).unwrap();
        assert_eq!(path, [Step::Proxy { proxy: other(1, "p:1", false), hosts: Vec::new() }]);
    }

    #[test]
    fn an_answer_is_one_line_whatever_a_peer_said() {
        assert_eq!(one_line("a\r\nb\u{1b}[2J"), "a  b [2J");
        assert_eq!(one_line(&"x".repeat(5000)).len(), MAX_WORDS);
    }
}
