//! The decision itself: reads the legs of the way in order, and works on the first that is not over.
//!
//! Nothing remembers where the upgrade stands. A leg is over when the windows, members and journals say so, so a planner that was killed, a
//! member that came back and an operator who turned round are all the same case: look again. What a leg needs is in the files beside
//! this one: `preflight` (may it begin?), `gates` (windows, data), `moves` (members), and the end of the way here.

use crate::{
    plan::{
        fleet::{Fleet, Tier},
        gates, moves,
        outcome::{Bar, Block, Decision, Gate, Hint, Note, Stage, Step, Wait},
        policy::Consent,
        preflight,
        record::{Direction, Upgrade, Way},
        route::block,
        view::{Condition, View},
    },
    windows::{AGENT, AUTH, DRAINING, LEAF, PROXY},
};
use types::{Resource, Time, kind};

/// A part of the way. Its place in the list is its order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Leg {
    Proof,
    /// Narrows the windows of a cluster at rest to its one major.
    Settle,
    Open(&'static str),
    Move(Tier),
    /// The one Auth Service is replaced, and its successor opens the windows.
    TakeOver,
    Close(&'static str),
    Data,
    Leaves,
    Soak,
    Finalize,
    Contract,
    Undo,
    GiveBack,
}

/// What was decided so far.
pub(crate) struct Draft<'a> {
    pub(crate) view: &'a View,
    pub(crate) upgrade: &'a Upgrade,
    pub(crate) fleet: Fleet<'a>,
    pub(crate) decision: Decision,
    documents: Option<Vec<Resource<kind::Member>>>,
}

impl<'a> Draft<'a> {
    pub(crate) fn new(view: &'a View, upgrade: &'a Upgrade) -> Self {
        let decision = Decision { upgrade: Some(upgrade.clone()), ..nothing() };
        Self { view, upgrade, fleet: Fleet { view, upgrade }, decision, documents: None }
    }

    pub(crate) fn goal(&self) -> u64 {
        self.upgrade.goal().major()
    }

    pub(crate) fn source(&self) -> u64 {
        self.upgrade.source().major()
    }

    pub(crate) fn admits(&self, role: &str, major: u64) -> bool {
        self.view.control.windows.get(role).is_some_and(|window| window.contains(major))
    }

    /// Whether a role admits one major alone.
    pub(crate) fn is_closed_to(&self, role: &str, major: u64) -> bool {
        self.view.control.windows.get(role).is_some_and(|window| (window.lo, window.hi) == (major, major))
    }

    pub(crate) fn documents(&mut self) -> &[Resource<kind::Member>] {
        self.documents.get_or_insert_with(|| self.view.documents())
    }

    pub(crate) fn step(&mut self, step: Step) {
        self.decision.next.push(step);
    }

    pub(crate) fn wait(&mut self, code: Gate, cause: impl Into<String>, cure: impl Into<String>) {
        self.wait_for(code, Vec::new(), None, cause, cure);
    }

    pub(crate) fn wait_for(
        &mut self,
        code: Gate,
        members: Vec<String>,
        until: Option<Time>,
        cause: impl Into<String>,
        cure: impl Into<String>,
    ) {
        self.decision.waits.push(Wait { code, cause: cause.into(), cure: cure.into(), members, until });
    }

    pub(crate) fn block(&mut self, block: Block) {
        self.decision.blocked.push(block);
    }

    pub(crate) fn note(&mut self, code: Hint, text: impl Into<String>) {
        self.decision.notes.push(Note { code, text: text.into() });
    }
}

fn nothing() -> Decision {
    Decision {
        upgrade: None,
        stage: Stage::Done,
        wave: None,
        next: Vec::new(),
        waits: Vec::new(),
        blocked: Vec::new(),
        notes: Vec::new(),
        after: Vec::new(),
    }
}

/// What to do now, what is waited for, and what stands against it.
pub fn decide(view: &View) -> Decision {
    match view.upgrade() {
        Ok(Some(upgrade)) => under_way(view, &upgrade),
        Ok(None) => preflight::propose(view).unwrap_or_else(nothing),
        Err(error) => Decision {
            stage: Stage::Preflight,
            blocked: vec![block(
                Bar::Record,
                format!("the upgrade in the control record cannot be read: {error}"),
                "use the release that began it; see: tctl upgrade history".into(),
            )],
            ..nothing()
        },
    }
}

fn under_way(view: &View, upgrade: &Upgrade) -> Decision {
    let mut draft = Draft::new(view, upgrade);
    if let Some(asked) = view.asked.as_ref().filter(|asked| **asked != upgrade.target && upgrade.direction == Direction::Up) {
        draft.note(Hint::Sequence, format!("{asked} was asked for; the upgrade to {} comes first", upgrade.target));
    }
    preflight::notes(&mut draft);
    let finalized = upgrade.is_major() && view.control.cluster_version.major >= upgrade.target.major();
    if finalized && upgrade.direction == Direction::Down {
        draft.decision.stage = Stage::Finalize;
        draft.block(block(
            Bar::Final,
            format!("the cluster version is {} already: {} cannot work on it", upgrade.target.major(), upgrade.from),
            "tctl upgrade resume; or restore the backup made before the upgrade: tctl backup restore".into(),
        ));
        return draft.decision;
    }
    if !finalized {
        preflight::goal_is_usable(&mut draft);
    }
    let current = legs(upgrade).iter().find(|leg| {
        let over = run(&mut draft, **leg);
        // A leg that is over may have left a wait of no consequence; it is the next one's to say.
        if over {
            draft.decision.waits.clear();
        }
        !over
    });
    match current {
        Some(leg) => draft.decision.stage = stage(*leg, upgrade.direction),
        None => {
            draft.decision.stage = Stage::Done;
            draft.step(Step::Finish);
        }
    }
    if !windows_are_known(&mut draft) || !draft.decision.blocked.is_empty() {
        hold(&mut draft);
    }
    paused(&mut draft);
    if !is_fresh(&mut draft) {
        draft.decision.next.clear();
    }
    draft.decision
}

/// Nothing new is begun; what is under way is watched to its end, and a pause is still written.
fn hold(draft: &mut Draft<'_>) {
    draft.decision.next.retain(|step| matches!(step, Step::Walk { .. } | Step::Pause { .. }));
}

pub(crate) fn legs(upgrade: &Upgrade) -> &'static [Leg] {
    use Leg::{Close, Contract, Data, Finalize, GiveBack, Leaves, Move, Open, Proof, Settle, Soak, TakeOver, Undo};
    const UP: [Leg; 20] = [
        Proof,
        Settle,
        Open(AUTH),
        Move(Tier::Auth),
        Close(AUTH),
        Data,
        Open(DRAINING),
        Open(PROXY),
        Move(Tier::Proxy),
        Close(PROXY),
        Open(AGENT),
        Move(Tier::Agent),
        Close(AGENT),
        Close(DRAINING),
        Open(LEAF),
        Leaves,
        Close(LEAF),
        Soak,
        Finalize,
        Contract,
    ];
    const DOWN: [Leg; 15] = [
        Open(LEAF),
        Leaves,
        Close(LEAF),
        Open(DRAINING),
        Open(AGENT),
        Move(Tier::Agent),
        Close(AGENT),
        Open(PROXY),
        Move(Tier::Proxy),
        Close(PROXY),
        Close(DRAINING),
        Undo,
        Open(AUTH),
        Move(Tier::Auth),
        Close(AUTH),
    ];
    const OVER: [Leg; 13] = [
        Proof,
        TakeOver,
        Data,
        Move(Tier::Proxy),
        Close(PROXY),
        Move(Tier::Agent),
        Close(AGENT),
        Close(DRAINING),
        Leaves,
        Close(LEAF),
        Soak,
        Finalize,
        Contract,
    ];
    match (upgrade.way, upgrade.direction) {
        (Way::Roll, Direction::Up) => &UP,
        (Way::Roll, Direction::Down) => &DOWN,
        (Way::TakeOver, Direction::Up) => &OVER,
        (Way::TakeOver, Direction::Down) => {
            &[Open(LEAF), Leaves, Open(DRAINING), Open(AGENT), Move(Tier::Agent), Open(PROXY), Move(Tier::Proxy), Undo, GiveBack]
        }
        (Way::Swap, Direction::Up) => &[Proof, Move(Tier::Auth), Move(Tier::Proxy), Move(Tier::Agent)],
        (Way::Swap, Direction::Down) => &[Move(Tier::Agent), Move(Tier::Proxy), Move(Tier::Auth)],
    }
}

pub(crate) fn stage(leg: Leg, direction: Direction) -> Stage {
    match leg {
        Leg::Settle => Stage::Preflight,
        Leg::Proof => Stage::Backup,
        Leg::TakeOver | Leg::GiveBack | Leg::Move(Tier::Auth) | Leg::Open(AUTH) => Stage::Auth,
        Leg::Close(AUTH) => Stage::CloseAuth,
        Leg::Data | Leg::Undo => Stage::Data,
        Leg::Move(Tier::Proxy) | Leg::Open(PROXY) | Leg::Close(PROXY) => Stage::Proxies,
        Leg::Move(Tier::Agent) | Leg::Open(AGENT) | Leg::Close(AGENT) => Stage::Agents,
        Leg::Leaves | Leg::Open(LEAF) | Leg::Close(LEAF) => Stage::Leaves,
        // Who drains belongs to the tier that is moved first, and then last.
        Leg::Open(_) => {
            if direction == Direction::Up {
                Stage::Proxies
            } else {
                Stage::Agents
            }
        }
        Leg::Close(_) => {
            if direction == Direction::Up {
                Stage::Agents
            } else {
                Stage::Proxies
            }
        }
        Leg::Soak => Stage::Soak,
        Leg::Finalize | Leg::Contract => Stage::Finalize,
    }
}

/// Works on a leg; true when it is over.
fn run(draft: &mut Draft<'_>, leg: Leg) -> bool {
    match leg {
        Leg::Proof => gates::proof(draft),
        Leg::Settle => gates::settle(draft),
        // The process that is everything stands in the way of that window, and needs it for nobody but Proxies beside it.
        Leg::Open(PROXY) if draft.upgrade.way == Way::TakeOver && !has_to_move(draft, Tier::Proxy) => true,
        Leg::Open(role) => gates::open(draft, role),
        Leg::Close(role) => gates::close(draft, role),
        Leg::Move(tier) => moves::tier(draft, tier),
        Leg::TakeOver => take_over(draft),
        Leg::Data => gates::data(draft),
        Leg::Undo => gates::undo(draft),
        Leg::Leaves => gates::leaves(draft),
        Leg::Soak => soak(draft),
        Leg::Finalize => finalize(draft),
        Leg::Contract => gates::contract(draft),
        Leg::GiveBack => give_back(draft),
    }
}

fn has_to_move(draft: &Draft<'_>, tier: Tier) -> bool {
    draft.fleet.tier(tier).any(|member| !draft.upgrade.is_goal(&member.version))
}

/// The new process opens the windows itself when it starts; before that there is nothing but to replace the old one.
fn take_over(draft: &mut Draft<'_>) -> bool {
    let moved = moves::tier(draft, Tier::Auth);
    if draft.is_closed_to(AUTH, draft.goal()) {
        return moved;
    }
    if moved {
        draft.wait(Gate::Moving, "the new Auth Service has not taken the cluster over yet", "see its log; tctl windows ls");
    }
    false
}

fn give_back(draft: &mut Draft<'_>) -> bool {
    let back = draft.goal();
    if !draft.admits(AUTH, draft.source()) {
        return true;
    }
    draft.step(Step::GiveBack { major: back });
    false
}

/// The legs before this one ask for everybody's health at each look: a red gate ends the soak before it ends itself.
fn soak(draft: &mut Draft<'_>) -> bool {
    if draft.view.control.cluster_version.major >= draft.goal() {
        return true;
    }
    let Some(since) = draft.upgrade.soaks_since else {
        draft.step(Step::Soak);
        return false;
    };
    let end = since.plus(draft.view.policy.soak.0);
    if draft.view.now >= end {
        return true;
    }
    let cause = format!("everything is moved and holds since {}", since.whole_seconds());
    draft.wait_for(Gate::Soak, Vec::new(), Some(end), cause, "nothing to do; tctl upgrade status shows what is watched");
    false
}

fn finalize(draft: &mut Draft<'_>) -> bool {
    let view = draft.view;
    if view.control.cluster_version.major >= draft.goal() {
        return true;
    }
    if view.policy.finalize == Consent::Manual && draft.upgrade.finalize.is_none() {
        draft.wait(
            Gate::Consent,
            format!("from now on {} can be the only major; until somebody says so there is a way back", draft.goal()),
            "tctl upgrade finalize, or: tctl upgrade rollback",
        );
        return false;
    }
    if gates::fresh_backup(draft, view.now.minus(view.policy.backup_age.0), false) {
        draft.step(Step::Finalize);
    }
    false
}

/// The windows must be such as this way leads through; somebody may have moved them by hand.
fn windows_are_known(draft: &mut Draft<'_>) -> bool {
    use crate::windows::{Phase, check_windows};
    let begun = draft.admits(AUTH, draft.upgrade.target.major());
    let phase = if draft.upgrade.way == Way::Roll && begun && draft.upgrade.is_major() { Phase::Rolling } else { Phase::Resting };
    let Some(violation) = check_windows(&draft.view.control.windows, phase).into_iter().next() else { return true };
    draft.block(block(
        Bar::Windows,
        format!("the windows were moved to where no upgrade leads: {violation}"),
        "see: tctl windows ls; narrow what is too wide: tctl windows narrow <role> <major>".into(),
    ));
    false
}

fn paused(draft: &mut Draft<'_>) {
    let Some(pause) = draft.upgrade.paused.clone() else { return };
    draft.decision.next.clear();
    if let Some(wave) = pause.revert {
        moves::revert(draft, wave);
    }
    draft.wait(
        Gate::Paused,
        format!("paused by {} since {}: {}", pause.by, pause.at.whole_seconds(), pause.reason),
        "tctl upgrade resume, or: tctl upgrade rollback",
    );
}

pub(crate) fn is_fresh(draft: &mut Draft<'_>) -> bool {
    let view = draft.view;
    let old = view.now.since(view.read_at);
    if old > view.policy.fresh.0 {
        let cause = format!("the cluster was read {} seconds ago", old.as_secs());
        draft.wait(Gate::Stale, cause, "see: tctl status; the Auth Service must reach its store");
        return false;
    }
    let serves = |member: &crate::plan::Member| member.state == Condition::Active && Tier::of(member) == Some(Tier::Auth);
    if !view.members.iter().any(|member| serves(member) && draft.fleet.is_present(member)) {
        draft.wait(Gate::NoAuth, "no Auth Service has reported lately", "see: tctl inventory ls; start one");
        return false;
    }
    true
}
