//! Admission windows: which majors may be in which role, so that every possible connection is legal (design 3.3).
//!
//! For a client role c and a server role s, two rules over windows, not over the connections seen: *order*
//! `hi(c) <= lo(s)` (no client is newer than its server) and *span* `hi(s) - lo(c) <= 1` (none is two behind).
//!
//! While an upgrade rolls, both hold on every edge. A cluster at rest at N has the windows of [`resting`]: `auth [N, N]`,
//! all others `[N-1, N]`, since rule G4 promises members one major behind a place. They keep *span* on every edge and
//! *order* on every edge towards Auth; towards Proxies *order* cannot be had together with that promise (an agent at N
//! could dial a Proxy at N-1). There the handshake, which runs on both ends of every connection before anything else,
//! refuses that one pair with its cure: nothing illegal ever connects, a tunnel is merely missing until the Proxy is
//! upgraded, and the inventory names it. An upgrade begins by narrowing to `[N, N]`; [`widen`] refuses until then.
//!
//! Widening is refused when the result breaks a rule; narrowing never breaks one, but needs every member inside or evicted.

use crate::{control::final_of, evict::is_evicted};
use std::collections::BTreeMap;
use types::{ControlRecord, Resource, control::Window, kind::Member};

/// Windows by role, as in the control record.
pub type Windows = BTreeMap<String, Window>;

pub const AUTH: &str = "auth";
pub const PROXY: &str = "proxy";
pub const AGENT: &str = "agent";
pub const DRAINING: &str = "draining";
pub const LEAF: &str = "leaf";

/// Every role with a window, in the order of an upgrade (rule G8).
pub const ROLES: [&str; 5] = [AUTH, PROXY, AGENT, DRAINING, LEAF];

/// Client and server roles that connect. A draining process has outgoing edges only; a leaf is its Proxy's tunnel.
pub const EDGES: [(&str, &str); 6] = [(PROXY, AUTH), (AGENT, AUTH), (AGENT, PROXY), (DRAINING, AUTH), (LEAF, AUTH), (LEAF, PROXY)];

/// How strictly windows are judged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Phase {
    /// Between upgrades: *order* towards Proxies is left to the handshake.
    Resting,
    /// During an upgrade: every rule on every edge.
    Rolling,
}

/// A broken rule.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Violation {
    #[error("role {0} has no window")]
    Missing(&'static str),
    #[error("the window of {role} is [{lo}, {hi}]: it must hold one major or two neighbours")]
    Shape { role: &'static str, lo: u64, hi: u64 },
    #[error("a {client} of major {newest} could meet an {server} of major {oldest}: newer than its server")]
    Order { client: &'static str, server: &'static str, newest: u64, oldest: u64 },
    #[error("a {client} of major {oldest} could meet an {server} of major {newest}: two or more behind")]
    Span { client: &'static str, server: &'static str, oldest: u64, newest: u64 },
}

/// The windows of a cluster at rest at this major.
pub fn resting(major: u64) -> Windows {
    let before = major.saturating_sub(1);
    let window = |role: &str| if role == AUTH { Window::new(major, major) } else { Window::new(before, major) };
    ROLES.iter().map(|role| ((*role).to_owned(), window(role))).collect()
}

/// The windows from which an upgrade may begin: everybody at this major.
pub fn settled(major: u64) -> Windows {
    ROLES.iter().map(|role| ((*role).to_owned(), Window::new(major, major))).collect()
}

/// Every rule that these windows break; none if they are legal in this phase.
pub fn check_windows(windows: &Windows, phase: Phase) -> Vec<Violation> {
    let mut broken = Vec::new();
    for role in ROLES {
        match windows.get(role) {
            None => broken.push(Violation::Missing(role)),
            Some(window) if window.lo > window.hi || window.hi.abs_diff(window.lo) > 1 => {
                broken.push(Violation::Shape { role, lo: window.lo, hi: window.hi });
            }
            Some(_) => {}
        }
    }
    for (client, server) in EDGES {
        let (Some(c), Some(s)) = (windows.get(client), windows.get(server)) else { continue };
        let left_to_handshake = phase == Phase::Resting && server == PROXY;
        if c.hi > s.lo && !left_to_handshake {
            broken.push(Violation::Order { client, server, newest: c.hi, oldest: s.lo });
        }
        if s.hi.saturating_sub(c.lo) > 1 {
            broken.push(Violation::Span { client, server, oldest: c.lo, newest: s.hi });
        }
    }
    broken
}

/// Why a window cannot be moved.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum IllegalMove {
    #[error("there is no role \"{0}\"")]
    NoRole(String),
    #[error("the window of {role} is [{lo}, {hi}]; major {major} is not next to it")]
    NotNext { role: &'static str, lo: u64, hi: u64, major: u64 },
    #[error("the window of {role} is [{lo}, {hi}]; [{want_lo}, {want_hi}] is not part of it")]
    NotInside { role: &'static str, lo: u64, hi: u64, want_lo: u64, want_hi: u64 },
    #[error("with {role} at {major}, {violation}")]
    Breaks { role: &'static str, major: u64, violation: Violation },
    #[error("cannot close {role} to majors outside [{lo}, {hi}]: {names} would be outside")]
    Outside { role: &'static str, lo: u64, hi: u64, names: String },
    #[error("the cluster is at version {major}.{step}: no Auth Service of major {wanted} can work on it")]
    Unfit { wanted: u64, major: u64, step: u32 },
}

impl IllegalMove {
    /// What to do first.
    pub fn cure(&self) -> String {
        match self {
            Self::NoRole(_) => format!("roles are {}", ROLES.join(", ")),
            Self::NotNext { lo, hi, .. } if lo == hi => {
                format!("one major at a time: {} or {}", lo.saturating_sub(1), hi.saturating_add(1))
            }
            Self::NotNext { role, hi, .. } => format!("it is open to two already; close it to one first: tctl windows narrow {role} {hi}"),
            Self::NotInside { role, lo, want_lo, want_hi, .. } => {
                format!("open it first: tctl windows widen {role} {}", if want_lo < lo { want_lo } else { want_hi })
            }
            // Whoever moves last in this direction goes first to its end.
            Self::Breaks { role, violation: Violation::Order { client, server, newest, oldest }, .. } => {
                let (other, major) = if role == client { (server, newest) } else { (client, oldest) };
                format!("first: tctl windows narrow {other} {major}; see: tctl windows ls")
            }
            Self::Breaks { role, violation: Violation::Span { client, server, oldest, newest }, .. } => {
                let (other, major) = if role == client { (server, newest.saturating_sub(1)) } else { (client, oldest.saturating_add(1)) };
                format!("first: tctl windows narrow {other} {major}; see: tctl windows ls")
            }
            Self::Breaks { .. } => "see: tctl windows ls".into(),
            Self::Outside { .. } => {
                "upgrade them, or stop them; who is silent leaves the list within ten minutes, or at once: tctl windows evict <host>".into()
            }
            Self::Unfit { wanted, major, .. } if wanted < major => "only a backup leads back behind the end of an upgrade".into(),
            Self::Unfit { major, .. } => format!("finish the upgrade to {} first", major.saturating_add(1)),
        }
    }
}

fn named<'w>(windows: &'w Windows, role: &str) -> Result<(&'static str, &'w Window), IllegalMove> {
    let known = ROLES.into_iter().find(|known| *known == role);
    known.and_then(|known| Some((known, windows.get(known)?))).ok_or_else(|| IllegalMove::NoRole(role.chars().take(40).collect()))
}

/// Admits one more major in a role: the next above (an upgrade) or below (a rollback). Legal only if every possible
/// connection stays legal.
pub fn widen(control: &ControlRecord, role: &str, major: u64) -> Result<ControlRecord, IllegalMove> {
    let (role, window) = named(&control.windows, role)?;
    let (lo, hi) = (window.lo, window.hi);
    let mut moved = window.clone();
    // Asked again, as whoever lost the answer does: nothing is to be done.
    if lo != hi && window.contains(major) {
        return Ok(control.clone());
    }
    if lo != hi || major.abs_diff(lo) != 1 {
        return Err(IllegalMove::NotNext { role, lo, hi, major });
    }
    if role == AUTH && !fits(control, major) {
        let version = control.cluster_version;
        return Err(IllegalMove::Unfit { wanted: major, major: version.major, step: version.step });
    }
    (moved.lo, moved.hi, moved.shut) = (lo.min(major), hi.max(major), None);
    let next = with_window(control, role, moved);
    match check_windows(&next.windows, Phase::Rolling).into_iter().next() {
        None => Ok(next),
        Some(violation) => Err(IllegalMove::Breaks { role, major, violation }),
    }
}

/// Forbids majors in a role. Every registered member of the role must be inside, or evicted by name. Narrowing Auth raises
/// the epoch, so that the store refuses the writes of those left outside (design 3.4), and a newer major that is shut out does not take over by itself.
pub fn narrow(control: &ControlRecord, role: &str, lo: u64, hi: u64, members: &[Resource<Member>]) -> Result<ControlRecord, IllegalMove> {
    let (role, window) = named(&control.windows, role)?;
    if lo > hi || lo < window.lo || hi > window.hi {
        return Err(IllegalMove::NotInside { role, lo: window.lo, hi: window.hi, want_lo: lo, want_hi: hi });
    }
    // Asked again: no new epoch, and what was shut out stays so.
    if (lo, hi) == (window.lo, window.hi) {
        return Ok(control.clone());
    }
    let outside = members
        .iter()
        .filter(|member| is_in(role, member) && !(lo..=hi).contains(&member.spec.version.major()) && !is_evicted(control, member));
    let names = crate::inventory::name_hosts(outside.map(|member| format!("{} ({})", member.spec.hostname, member.spec.version)));
    if !names.is_empty() {
        return Err(IllegalMove::Outside { role, lo, hi, names });
    }
    let mut moved = window.clone();
    moved.shut = (role == AUTH && hi < window.hi).then_some(window.hi);
    (moved.lo, moved.hi) = (lo, hi);
    let mut next = with_window(control, role, moved);
    if role == AUTH {
        next.epoch = next.epoch.saturating_add(1);
        next.min_writer_epoch = next.epoch;
    }
    Ok(next)
}

/// An Auth Service of major N works from final(N-1) to final(N).
fn fits(control: &ControlRecord, major: u64) -> bool {
    let version = control.cluster_version;
    major == version.major || (version == final_of(version.major) && Some(major) == version.major.checked_add(1))
}

fn with_window(control: &ControlRecord, role: &str, window: Window) -> ControlRecord {
    let mut next = control.clone();
    next.windows.insert(role.to_owned(), window);
    next.window_gen = next.window_gen.saturating_add(1);
    next
}

/// Whether a member falls under a role's window. A process that drains falls under `draining` alone, unless it is an Auth; one
/// that was refused for its version and waits for another serves nobody, and falls under none.
pub(crate) fn is_in(role: &str, member: &Resource<Member>) -> bool {
    if member.spec.state == Member::QUARANTINED {
        return false;
    }
    member.spec.roles.iter().any(|system| system.window(member.spec.state == "draining") == Some(role))
}

#[cfg(test)]
#[path = "windows/tests.rs"]
mod tests;
