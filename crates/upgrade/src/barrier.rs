//! The barrier between two changes of the windows (design 3.3): who must have heard of the last one before the next may widen.
//!
//! Each Auth Service holds a *seat*, a short lease with the generation of windows by which it admits members. It acknowledges a
//! generation only when it admits by it. A seat that lapses counts no more, because its holder admits nobody until it has read
//! the record again. So when every seat has the present generation, and no member stands outside the present windows, every
//! member that can exist was admitted by windows that are legal together with the next ones. Narrowing needs no barrier: what
//! an Auth Service that has not heard of it admits meanwhile was legal beside everything else, and is outside at the next
//! widening, which then waits. The window of `auth` does not close on a seat; an Auth Service that drained and gave its seat back
//! has left, whatever its document still says. The interleavings are a property test. Caller: `auth::windows`.

use crate::{
    evict::is_evicted,
    inventory::name_hosts,
    windows::{AUTH, IllegalMove, ROLES, is_in, narrow, widen},
};
use serde::{Deserialize, Serialize};
use types::{ControlRecord, Resource, ResourceName, Version, kind::Member};

/// One Auth Service's lease, while it lives.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seat {
    /// Its host id, the name of its `member` document; none for a lease that cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<ResourceName>,
    /// For people: name and address.
    pub name: String,
    pub version: Version,
    /// The generation of windows by which it admits.
    pub acknowledged: u64,
}

/// A change of the windows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Move {
    /// Admits one more major, the next above or below.
    Widen { role: String, major: u64 },
    /// Leaves these majors of what is admitted.
    Narrow { role: String, lo: u64, hi: u64 },
}

/// Why the windows are not changed now.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Refused {
    #[error(transparent)]
    Illegal(#[from] IllegalMove),
    /// Passes by itself: they acknowledge, or their leases lapse.
    #[error("these Auth Services have not acknowledged generation {generation} of the windows: {names}")]
    Behind { generation: u64, names: String },
    #[error("these members are outside the windows and must leave, or be evicted, first: {names}")]
    Outside { names: String },
}

impl Refused {
    /// What to do about it.
    pub fn cure(&self) -> String {
        match self {
            Self::Illegal(illegal) => illegal.cure(),
            Self::Behind { .. } => "they acknowledge, or lose their leases, within a minute: try again; see: tctl windows ls".into(),
            Self::Outside { .. } => {
                "upgrade them, or stop them; who is silent leaves the list within ten minutes, or at once: tctl windows evict <host>".into()
            }
        }
    }

    /// Whether it need only be waited for.
    pub const fn passes(&self) -> bool {
        match self {
            Self::Behind { .. } => true,
            Self::Illegal(_) | Self::Outside { .. } => false,
        }
    }
}

/// The record after the move, or why it must not be made now.
pub fn change(control: &ControlRecord, wanted: &Move, seats: &[Seat], members: &[Resource<Member>]) -> Result<ControlRecord, Refused> {
    match wanted {
        Move::Narrow { role, lo, hi } if role == AUTH => {
            let there: Vec<_> = members.iter().filter(|member| is_in(AUTH, member) && !has_left(member, seats)).cloned().collect();
            let next = narrow(control, role, *lo, *hi, &there)?;
            let sits_outside = |seat: &&Seat| !(*lo..=*hi).contains(&seat.version.major());
            let names = name_hosts(seats.iter().filter(sits_outside).map(|seat| format!("{} ({})", seat.name, seat.version)));
            if !names.is_empty() {
                return Err(IllegalMove::Outside { role: AUTH, lo: *lo, hi: *hi, names }.into());
            }
            Ok(next)
        }
        Move::Narrow { role, lo, hi } => Ok(narrow(control, role, *lo, *hi, members)?),
        Move::Widen { role, major } => {
            let next = widen(control, role, *major)?;
            let behind = seats.iter().filter(|seat| seat.acknowledged != control.window_gen);
            let names = name_hosts(behind.map(|seat| format!("{} ({})", seat.name, seat.version)));
            if !names.is_empty() {
                return Err(Refused::Behind { generation: control.window_gen, names });
            }
            let names = name_hosts(
                members
                    .iter()
                    .filter(|member| outside(control, member, seats))
                    .map(|member| format!("{} ({})", member.spec.hostname, member.spec.version)),
            );
            if names.is_empty() { Ok(next) } else { Err(Refused::Outside { names }) }
        }
    }
}

/// Whether a member stands outside a window of one of its roles, is still there, and nobody has evicted it.
pub fn outside(control: &ControlRecord, member: &Resource<Member>, seats: &[Seat]) -> bool {
    let major = member.spec.version.major();
    let out = |role: &str| {
        is_in(role, member)
            && control.windows.get(role).is_none_or(|window| !window.contains(major))
            && !(role == AUTH && has_left(member, seats))
    };
    ROLES.into_iter().any(out) && !is_evicted(control, member)
}

/// An Auth Service that drained and gave its seat back. Its document lasts some minutes more.
fn has_left(member: &Resource<Member>, seats: &[Seat]) -> bool {
    // A seat that cannot be read may be its.
    let sits = seats.iter().any(|seat| seat.host.as_ref().is_none_or(|host| host == member.name()));
    member.spec.state == "draining" && !sits
}

#[cfg(test)]
#[path = "barrier/tests.rs"]
mod tests;
