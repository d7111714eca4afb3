//! Who moves when: tiers, waves, and how each member stands to the version it is moved to.
//!
//! A member's wave follows from a hash of its id and the upgrade's, and from nothing else but those who serve the same resource: members that
//! come and go do not push others from one wave into another, and each upgrade begins elsewhere. Whoever is not known to be well counts
//! as unwell: a member is ready when it said so a short while ago, on a run that nobody is replacing, and no walk through it failed.

use crate::plan::{
    policy::Policy,
    record::{Direction, Upgrade},
    view::{Condition, Member, View},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, BTreeSet};
use types::{SystemRole, Time, Version};

/// Members that move together, in the order of rule G8. A process that is several services moves with the first of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    Auth,
    Proxy,
    Agent,
}

impl Tier {
    pub const ALL: [Self; 3] = [Self::Auth, Self::Proxy, Self::Agent];

    /// `None` for what has no place in an upgrade.
    pub fn of(member: &Member) -> Option<Self> {
        let has = |test: fn(&SystemRole) -> bool| member.roles.iter().any(test);
        if has(|role| *role == SystemRole::Auth) {
            Some(Self::Auth)
        } else if has(|role| *role == SystemRole::Proxy) {
            Some(Self::Proxy)
        } else if has(SystemRole::is_agent) {
            Some(Self::Agent)
        } else {
            None
        }
    }

    /// The name of its window.
    pub const fn window(self) -> &'static str {
        match self {
            Self::Auth => crate::windows::AUTH,
            Self::Proxy => crate::windows::PROXY,
            Self::Agent => crate::windows::AGENT,
        }
    }
}

/// Members of a tier that are moved before anybody of the next wave.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Wave {
    pub tier: Tier,
    /// From 0, the canaries.
    pub number: usize,
}

impl std::fmt::Display for Wave {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.number {
            0 => write!(f, "{} canary", self.tier.window()),
            number => write!(f, "{} wave {number}", self.tier.window()),
        }
    }
}

/// How a member stands to the version that members are moved to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// There, and a user got through.
    Proved,
    /// There, and nobody has walked through it since it has served for long enough, which is from this time on.
    Unproved(Time),
    /// There, and does not serve; or did not come to serve within the deadline.
    Ailing(String),
    /// Told, and on its way.
    Moving,
    /// Told, and failed: where it came from, or nowhere.
    Failed { why: String, attempts: u32, at: Time },
    /// Where it came from, and serving.
    Idle,
    /// Where it came from, and not serving as it should.
    Unwell,
    /// Not heard of.
    Absent,
}

/// The members of a view in the light of an upgrade.
#[derive(Clone, Copy)]
pub struct Fleet<'a> {
    pub view: &'a View,
    pub upgrade: &'a Upgrade,
}

impl<'a> Fleet<'a> {
    fn policy(&self) -> &'a Policy {
        &self.view.policy
    }

    /// Whether it reported lately.
    pub fn is_present(&self, member: &Member) -> bool {
        member.state != Condition::Missing && self.view.now.since(member.last_seen) <= self.policy().offline_after.0
    }

    /// Whether users are served through it now, as far as is known.
    pub fn is_ready(&self, member: &Member) -> bool {
        let walk_failed = member.path.as_ref().is_some_and(|walk| walk.boot == member.boot && walk.failed.is_some());
        member.state == Condition::Active && self.is_present(member) && !walk_failed && !self.is_replacing(member)
    }

    /// Whether its process is being replaced at this moment, to whatever version.
    pub fn is_replacing(&self, member: &Member) -> bool {
        let Some(told) = &member.told else { return false };
        let arrived = member.version == told.version && member.boot != told.boot;
        !arrived && told.failed.is_none() && self.view.now <= told.at.plus(self.policy().deadline.0)
    }

    /// The members of a tier. Who drains has left it, unless it drains on its way to another release: until it is back, nobody may take its
    /// place, as canary or as one who may be away. Who is quarantined was never in it, unless it was told to go there.
    pub fn tier(&self, tier: Tier) -> impl Iterator<Item = &'a Member> {
        self.view.members.iter().filter(move |member| {
            let counts = match member.state {
                Condition::Draining => member.told.as_ref().is_some_and(|told| told.boot == member.boot),
                Condition::Quarantined => member.told.as_ref().is_some_and(|told| told.version == member.version),
                Condition::Joining | Condition::Active | Condition::Missing => true,
            };
            counts && Tier::of(member) == Some(tier) && !self.is_evicted(member)
        })
    }

    /// Whether somebody gave it up, and it has not reported since.
    fn is_evicted(&self, member: &Member) -> bool {
        let control = &self.view.control;
        !control.evictions.is_empty() && crate::evict::is_evicted(control, &member.document())
    }

    pub fn standing(&self, member: &Member, wave: Wave) -> Standing {
        let (now, policy) = (self.view.now, self.policy());
        let told = member.told.as_ref().filter(|told| told.version == *self.upgrade.goal());
        let restarted = told.is_none_or(|told| told.boot != member.boot);
        if !self.upgrade.is_goal(&member.version) || !restarted {
            return match told {
                Some(told) => match &told.failed {
                    Some(why) => Standing::Failed { why: why.clone(), attempts: told.attempts, at: told.at },
                    None if now <= told.at.plus(policy.deadline.0) => Standing::Moving,
                    None => {
                        let why = format!("no word of {} within {}", told.version, policy.deadline);
                        Standing::Failed { why, attempts: told.attempts, at: told.at.plus(policy.deadline.0) }
                    }
                },
                None if !self.is_present(member) => Standing::Absent,
                None if self.is_ready(member) => Standing::Idle,
                None => Standing::Unwell,
            };
        }
        // Told to go elsewhere before somebody turned round: it may leave at any moment.
        if told.is_none() && self.is_replacing(member) {
            return Standing::Moving;
        }
        // On the way back, who was never moved has nothing to prove.
        if self.upgrade.direction == Direction::Down && member.started < self.upgrade.begun && told.is_none() {
            match (self.is_present(member), self.is_ready(member)) {
                (false, _) => return Standing::Absent,
                (true, true) => return Standing::Proved,
                (true, false) => {}
            }
        }
        if member.state == Condition::Quarantined {
            return Standing::Ailing("the cluster refuses it".into());
        }
        let bake = if wave.number == 0 { policy.bake_canary } else { policy.bake };
        let from = member.started.plus(bake.0);
        let walk = member.path.as_ref().filter(|walk| walk.boot == member.boot && !member.boot.is_empty());
        if let Some(why) = walk.and_then(|walk| walk.failed.as_ref()) {
            return Standing::Ailing(why.clone());
        }
        let proved = walk.is_some_and(|walk| walk.at >= from);
        match (self.is_present(member), proved) {
            (true, true) => return Standing::Proved,
            // Members come and go; this one was well when it went.
            (false, true) => return Standing::Absent,
            (false, false) => return Standing::Ailing(format!("silent since {}", member.last_seen.whole_seconds())),
            (true, false) => {}
        }
        let end = from.plus(policy.deadline.0);
        let late = told.is_some() && now > end;
        if late { Standing::Ailing(format!("no user got through within {}", policy.deadline)) } else { Standing::Unproved(from) }
    }

    /// The members of a tier by wave; each wave in the order in which its members are taken.
    pub fn waves(&self, tier: Tier) -> BTreeMap<Wave, Vec<&'a Member>> {
        let mut ordered: Vec<(u64, &Member)> = self.tier(tier).map(|member| (rank(&self.upgrade.id, member), member)).collect();
        ordered.sort_by_key(|(rank, member)| (member.by_hand, *rank, &member.id));
        let (mut with_canary, mut taken) = (BTreeSet::new(), BTreeMap::<&str, BTreeSet<usize>>::new());
        let placed: Vec<(usize, &Member)> = ordered
            .into_iter()
            .map(|(rank, member)| {
                // Agents that people move come last of all: nobody else waits for them.
                let alone = tier == Tier::Agent && member.by_hand;
                let class = if tier == Tier::Auth { "" } else { &member.class };
                let canary = !alone && with_canary.insert(class);
                (if canary { 0 } else { self.plain_wave(tier, rank, alone) }, member)
            })
            .collect();
        let mut waves = BTreeMap::<Wave, Vec<&Member>>::new();
        let last = placed.iter().map(|(number, _)| *number).max().unwrap_or(0);
        for round in 0..=last {
            for (_, member) in placed.iter().filter(|(number, _)| *number == round) {
                // Two that serve the same resource are never in one wave.
                let free =
                    |number: &usize| member.serves.iter().all(|served| taken.get(served.as_str()).is_none_or(|t| !t.contains(number)));
                let number = if tier == Tier::Agent { (round..).find(free).unwrap_or(round) } else { round };
                for served in &member.serves {
                    taken.entry(served).or_default().insert(number);
                }
                waves.entry(Wave { tier, number }).or_default().push(member);
            }
        }
        waves
    }

    /// The wave of a member that is no canary.
    fn plain_wave(&self, tier: Tier, rank: u64, by_hand: bool) -> usize {
        let ends = &self.policy().waves;
        match tier {
            Tier::Auth | Tier::Proxy => 1,
            Tier::Agent if by_hand => ends.len() + 1,
            Tier::Agent => {
                let percent = u8::try_from((u128::from(rank) * 100) >> 64).unwrap_or(99);
                1 + ends.iter().position(|end| percent < *end).unwrap_or(ends.len().saturating_sub(1))
            }
        }
    }
}

/// The place of a member in the order of an upgrade.
pub fn rank(upgrade: &str, member: &Member) -> u64 {
    let digest = Sha256::new().chain_update(upgrade).chain_update([0]).chain_update(member.id.as_str()).finalize();
    digest.iter().take(8).fold(0, |rank, byte| rank << 8 | u64::from(*byte))
}

/// The oldest version among the members of a tier that are there.
pub fn oldest(view: &View, tier: Tier) -> Option<&Version> {
    let there = view
        .members
        .iter()
        .filter(|member| Tier::of(member) == Some(tier) && matches!(member.state, Condition::Active | Condition::Joining));
    there.map(|member| &member.version).min_by(|one, other| one.release_order(other))
}
