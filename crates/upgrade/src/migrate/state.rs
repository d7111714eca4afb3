//! The states of one migration: which moves are legal, which side is the truth, what a writer writes.
//!
//! `absent → expanded → shadowing → verified → flipped → contracted`, and `undoing` back to `absent` from everything but
//! `contracted`. How far a scan has come (the cursor) is kept beside the state, in `journal::Progress`: writers make each
//! batch conditional on the state's row, and a row that moved with every back-filled batch would refuse them all the time.
//!
//! Old is the truth until the flip, because a new side that is read first, with the old one as a fallback, serves stale rows
//! after a rollback and a second upgrade. New rows are complete before they are read, old rows are complete until they are given up.

use serde::{Deserialize, Serialize};

/// Where a migration stands.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Not begun, or undone. Nothing of it is in the store but its journal.
    Absent,
    /// Begun: rows are checked. The older binary may still write.
    Expanded,
    /// Writers write both sides, a back-fill copies the rest, then both are compared.
    Shadowing,
    /// Two full comparisons found no difference.
    Verified,
    /// The new side is the truth; the old one is kept in step.
    Flipped,
    /// The old side is given up and goes to retention.
    Contracted,
    /// The new side is being removed; the old one is the truth.
    Undoing,
}

/// One of the two representations.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Side {
    Old,
    New,
}

/// What a writer must write, in one batch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Writes {
    Old,
    Both,
    New,
}

/// Whether there is a way back to the major before.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Band {
    /// The floor is the major before: it may take over again, after an undo.
    Reversible,
    /// The one move that ends the way back.
    PointOfNoReturn,
    /// Only a backup leads back.
    Irreversible,
}

impl State {
    pub const ALL: [Self; 7] =
        [Self::Absent, Self::Expanded, Self::Shadowing, Self::Verified, Self::Flipped, Self::Contracted, Self::Undoing];

    /// The side that readers read.
    pub const fn truth(self) -> Side {
        match self {
            Self::Absent | Self::Expanded | Self::Shadowing | Self::Verified | Self::Undoing => Side::Old,
            Self::Flipped | Self::Contracted => Side::New,
        }
    }

    /// The sides that a writer writes.
    pub const fn writes(self) -> Writes {
        match self {
            Self::Absent | Self::Expanded | Self::Undoing => Writes::Old,
            Self::Shadowing | Self::Verified | Self::Flipped => Writes::Both,
            Self::Contracted => Writes::New,
        }
    }

    /// Whether a binary of the major before, which writes only the old side and knows nothing of this, may write in this state.
    pub const fn admits_old_writers(self) -> bool {
        matches!(self.writes(), Writes::Old)
    }

    /// The states that may follow.
    pub const fn successors(self) -> &'static [Self] {
        match self {
            Self::Absent => &[Self::Expanded],
            Self::Expanded => &[Self::Shadowing, Self::Undoing],
            Self::Shadowing => &[Self::Verified, Self::Undoing],
            Self::Verified => &[Self::Flipped, Self::Undoing],
            Self::Flipped => &[Self::Contracted, Self::Undoing],
            Self::Contracted => &[],
            Self::Undoing => &[Self::Absent],
        }
    }

    /// The band of a move; `None` if it is not a legal one.
    pub fn band_to(self, next: Self) -> Option<Band> {
        if !self.successors().contains(&next) {
            return None;
        }
        Some(if next == Self::Contracted { Band::PointOfNoReturn } else { Band::Reversible })
    }

    /// The band of being in a state.
    pub const fn band(self) -> Band {
        match self {
            Self::Absent | Self::Expanded | Self::Shadowing | Self::Verified | Self::Flipped | Self::Undoing => Band::Reversible,
            Self::Contracted => Band::Irreversible,
        }
    }

    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::Expanded => "expanded",
            Self::Shadowing => "shadowing",
            Self::Verified => "verified",
            Self::Flipped => "flipped",
            Self::Contracted => "contracted",
            Self::Undoing => "undoing",
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_side_is_read_only_while_every_writer_of_that_state_and_the_one_before_writes_it() {
        for from in State::ALL {
            for to in from.successors() {
                let written = |state: State, side: Side| match state.writes() {
                    Writes::Both => true,
                    Writes::Old => side == Side::Old,
                    Writes::New => side == Side::New,
                };
                assert!(written(*to, to.truth()), "{from} -> {to}: the truth is not written");
                assert!(written(from, to.truth()), "{from} -> {to}: the new truth was not written before");
            }
        }
    }

    #[test]
    fn only_contraction_ends_the_way_back() {
        for from in State::ALL {
            for to in State::ALL {
                let expected = match (from.successors().contains(&to), to) {
                    (false, _) => None,
                    (true, State::Contracted) => Some(Band::PointOfNoReturn),
                    (true, _) => Some(Band::Reversible),
                };
                assert_eq!(from.band_to(to), expected, "{from} -> {to}");
            }
            let back = from.successors().contains(&State::Undoing) || matches!(from, State::Absent | State::Undoing);
            assert_eq!(from.band() == Band::Reversible, back, "{from}");
        }
    }

    #[test]
    fn old_writers_are_admitted_only_where_nobody_relies_on_the_new_side() {
        let admitted: Vec<_> = State::ALL.into_iter().filter(|state| state.admits_old_writers()).collect();
        assert_eq!(admitted, [State::Absent, State::Expanded, State::Undoing]);
    }
}
