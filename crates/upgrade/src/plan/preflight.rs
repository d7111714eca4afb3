//! May an upgrade begin? Everything that stands against it is told at once, so that nobody mends one thing to hear of the next.
//!
//! The answer to "what if" for who only asks (`tctl upgrade plan`), and the condition of the first step, which writes the upgrade into
//! the control record. It needs no record: whatever an operator did by hand with the windows is read off them.

use crate::{
    evict::is_evicted,
    inventory::name_hosts,
    plan::{
        decide::Draft,
        fleet::{Tier, oldest},
        gates,
        outcome::{Bar, Block, Decision, Hint, Stage, Step},
        record::{Direction, Upgrade, Way},
        route::{block, route, unusable, unusable_block},
        view::{Condition, Finding, Member, Release, View},
    },
    windows::AUTH,
};
use types::{SystemRole, Version};

/// The upgrade that was asked for, or what stands against it; `None` when nothing was asked or it is there already.
pub(crate) fn propose(view: &View) -> Option<Decision> {
    let asked = view.asked.as_ref()?;
    let level = view.control.cluster_version.major;
    let from = oldest(view, Tier::Auth).cloned().unwrap_or(Version::new(level, 0, 0));
    // An Auth Service of the next major may have taken over by hand already; the way still begins where the data is.
    let from = if from.major() > level { source_by_hand(view, level) } else { from };
    let mut refused = None;
    let mut hops = route(view, &from, asked).unwrap_or_else(|block| {
        refused = Some(block);
        Vec::new()
    });
    if hops.is_empty() && refused.is_none() {
        return lagging(view, asked).then(|| begin(view, &upgrade(view, &from, asked), Vec::new(), None));
    }
    let target = if hops.is_empty() { asked.clone() } else { hops.remove(0) };
    Some(begin(view, &upgrade(view, &from, &target), hops, refused))
}

/// Whether members that can be moved are behind a version at which the Auth Services are.
fn lagging(view: &View, asked: &Version) -> bool {
    let behind =
        |member: &&Member| member.state == Condition::Active && Tier::of(member).is_some() && member.version.release_order(asked).is_lt();
    view.members.iter().any(|member| behind(&member))
}

fn source_by_hand(view: &View, level: u64) -> Version {
    let older = view.members.iter().map(|member| &member.version).filter(|version| version.major() == level);
    older.max_by(|one, other| one.release_order(other)).cloned().unwrap_or(Version::new(level, 0, 0))
}

fn upgrade(view: &View, from: &Version, target: &Version) -> Upgrade {
    let way = if from.major() == target.major() {
        Way::Swap
    } else if combined(view).next().is_some() || adopted(view, target) {
        Way::TakeOver
    } else {
        Way::Roll
    };
    Upgrade {
        id: format!("{target}-{}", view.control.window_gen),
        from: from.clone(),
        target: target.clone(),
        direction: Direction::Up,
        way,
        begun: view.now,
        by: String::new(),
        generation: 0,
        parent: String::new(),
        paused: None,
        soaks_since: None,
        finalize: None,
        extra: types::Extra::new(),
    }
}

/// The guide's manual way was gone: the next major serves, and the windows are those that it opened.
fn adopted(view: &View, target: &Version) -> bool {
    let control = &view.control;
    control.cluster_version.major < target.major() && control.windows == crate::windows::resting(target.major())
}

/// Processes that fall under several windows at once.
fn combined(view: &View) -> impl Iterator<Item = &Member> {
    view.members.iter().filter(|member| {
        let (auth, proxy) = (member.roles.contains(&SystemRole::Auth), member.roles.contains(&SystemRole::Proxy));
        let agent = member.roles.iter().any(SystemRole::is_agent);
        usize::from(auth) + usize::from(proxy) + usize::from(agent) > 1 && member.state != Condition::Quarantined
    })
}

fn begin(view: &View, upgrade: &Upgrade, after: Vec<Version>, refused: Option<Block>) -> Decision {
    let mut draft = Draft::new(view, upgrade);
    draft.decision.stage = Stage::Preflight;
    draft.decision.after = after;
    match refused {
        Some(block) => draft.block(block),
        None => releases(&mut draft),
    }
    findings(&mut draft);
    behind(&mut draft);
    leaves(&mut draft);
    shape(&mut draft);
    notes(&mut draft);
    if draft.decision.blocked.is_empty() && crate::plan::decide::is_fresh(&mut draft) {
        draft.step(Step::Begin { upgrade: Box::new(upgrade.clone()) });
    }
    draft.decision
}

fn releases(draft: &mut Draft<'_>) {
    let (view, upgrade) = (draft.view, draft.upgrade);
    let Some(back) = unusable_at(view, &upgrade.from).filter(|_| view.uses_mirror()) else { return };
    draft.block(Block {
        waiver: Some("way-back".into()),
        ..block(
            Bar::WayBack,
            format!("there would be no way back to {}: {back}", upgrade.from),
            format!("put {} into the mirror of a Proxy; see: tctl upgrade releases", upgrade.from),
        )
    });
    if view.waived("way-back").is_some() {
        draft.decision.blocked.retain(|block| block.code != Bar::WayBack);
    }
}

fn unusable_at(view: &View, version: &Version) -> Option<String> {
    match view.release(version) {
        None => Some("it is not known to this cluster".into()),
        // It runs here, so it may have been withdrawn since; it is still the way back.
        Some(release) => unusable(&Release { withdrawn: None, ..release.clone() }),
    }
}

fn findings(draft: &mut Draft<'_>) {
    let view = draft.view;
    let mut all: Vec<&Finding> = view.findings.iter().collect();
    all.sort();
    for finding in all {
        let told = match finding {
            Finding::Rotation { authority, phase } => block(
                Bar::Rotation,
                format!("the {authority} authority is being rotated, phase {phase}; a way back would lead behind it"),
                format!("finish it, or take it back: tctl auth rotate --type={authority}"),
            ),
            Finding::Setting { member, key, instead } => Block {
                members: vec![member.clone()],
                waiver: Some(format!("setting:{key}")),
                ..block(
                    Bar::Setting,
                    format!("{member} sets {key}, which {} does not know", draft.upgrade.target),
                    format!("on {member}: {instead}"),
                )
            },
            Finding::Disk { member, needs, has } => Block {
                members: vec![member.clone()],
                ..block(
                    Bar::Host,
                    format!("{member} needs {needs} MiB for the new release and has {has}"),
                    format!("free space on {member}"),
                )
            },
            Finding::Clock { member, off } => Block {
                members: vec![member.clone()],
                ..block(
                    Bar::Host,
                    format!("the clock of {member} is {off} seconds off"),
                    format!("on {member}: set up time synchronisation"),
                )
            },
        };
        let waived = told.waiver.as_ref().is_some_and(|name| view.waived(name).is_some());
        if !waived {
            draft.block(told);
        }
    }
}

/// Members at another major than the cluster: an upgrade would leave them two behind, or they went ahead of it.
fn behind(draft: &mut Draft<'_>) {
    let (view, upgrade) = (draft.view, draft.upgrade);
    if !upgrade.is_major() {
        return;
    }
    let (from, target) = (upgrade.from.major(), upgrade.target.major());
    let taken = draft.admits(AUTH, target);
    let mut hosts: Vec<&Member> = view
        .members
        .iter()
        .filter(|member| Tier::of(member).is_some() && member.state != Condition::Missing && member.version.major() != from)
        .filter(|member| !taken || member.version.major() != target)
        .filter(|member| !is_evicted(&view.control, &member.document()))
        // Who is ahead and refused waits for the upgrade; who is behind and refused would be lost from sight by it.
        .filter(|member| !(member.state == Condition::Quarantined && member.version.major() > from))
        .filter(|member| view.waived(&format!("member:{}", member.name)).is_none())
        .collect();
    hosts.sort_by(|one, other| (&one.name, &one.id).cmp(&(&other.name, &other.id)));
    let Some(first) = hosts.first() else { return };
    let steps = |member: &Member| {
        let major = member.version.major();
        if major < from { (major + 1..=from).map(|step| step.to_string()).collect::<Vec<_>>().join(", then ") } else { from.to_string() }
    };
    let named = name_hosts(hosts.iter().map(|member| format!("{} ({})", member.name, member.version)));
    let cure = format!(
        "on {}: install the latest {}, with: lockgate rescue; or leave it behind: tctl upgrade waive member:{} --reason=…",
        first.name,
        steps(first),
        first.name
    );
    draft.block(Block {
        members: hosts.iter().map(|member| member.name.clone()).collect(),
        waiver: Some(format!("member:{}", first.name)),
        ..block(Bar::Behind, format!("members are not at major {from}: {named}"), cure)
    });
}

fn leaves(draft: &mut Draft<'_>) {
    let (view, upgrade) = (draft.view, draft.upgrade);
    if !upgrade.is_major() {
        return;
    }
    if let Some(root) = view.root.as_ref().filter(|root| root.version.major() < upgrade.target.major()) {
        draft.block(block(
            Bar::RootFirst,
            format!("the root cluster {} runs {}, and a leaf does not go ahead of its root", root.name, root.version),
            format!("upgrade {} to {} first", root.name, upgrade.target.major()),
        ));
    }
    let from = upgrade.from.major();
    for leaf in &view.leaves {
        let check = format!("leaf:{}", leaf.name);
        if view.waived(&check).is_some() {
            continue;
        }
        let why = if leaf.version.major() < from {
            format!("leaf {} runs {}, and would be two majors behind", leaf.name, leaf.version)
        } else if view.now.since(leaf.last_seen) > view.policy.offline_after.0 {
            format!("leaf {} has been silent since {}", leaf.name, leaf.last_seen.whole_seconds())
        } else {
            continue;
        };
        let cure = format!("mend its link and bring it to {from}; or leave it behind: tctl upgrade waive {check} --reason=…");
        draft.block(Block { members: vec![leaf.name.clone()], waiver: Some(check), ..block(Bar::Leaf, why, cure) });
    }
}

/// Who is several services at once can only be replaced while there is one Auth Service.
fn shape(draft: &mut Draft<'_>) {
    let (view, upgrade) = (draft.view, draft.upgrade);
    if !upgrade.is_major() {
        return;
    }
    let auths = view.members.iter().filter(|member| Tier::of(member) == Some(Tier::Auth) && member.state != Condition::Missing).count();
    let mut names: Vec<String> = combined(view).map(|member| member.name.clone()).collect();
    names.sort();
    if upgrade.way == Way::TakeOver && auths > 1 && !names.is_empty() && !draft.admits(AUTH, upgrade.target.major()) {
        let shown = name_hosts(names.iter().cloned());
        draft.block(Block {
            members: names,
            ..block(
                Bar::Combined,
                format!("these are several services in one process, beside other Auth Services: {shown}"),
                "give each service a process of its own; or stop all Auth Services but one".into(),
            )
        });
    }
}

/// What is worth knowing at every look.
pub(crate) fn notes(draft: &mut Draft<'_>) {
    let (view, upgrade) = (draft.view, draft.upgrade);
    gates::absent(draft);
    let hand: Vec<String> = view
        .members
        .iter()
        .filter(|member| {
            member.by_hand && Tier::of(member).is_some() && !upgrade.is_goal(&member.version) && draft.fleet.is_present(member)
        })
        .map(|member| member.name.clone())
        .collect();
    if !hand.is_empty() {
        draft.note(
            Hint::ByHand,
            format!("{} without an updater, moved by people: {}", gates::hosts(hand.len()), name_hosts(hand.into_iter())),
        );
    }
    for leaf in view.leaves.iter().filter(|leaf| leaf.by_others && upgrade.is_major()) {
        let after = upgrade.target.major().saturating_add(1);
        draft.note(
            Hint::LeafOfOthers,
            format!("leaf {} is run by others; this cluster cannot start {after} until it reaches {}", leaf.name, upgrade.target.major()),
        );
    }
    let replaces = upgrade.way == Way::TakeOver && upgrade.direction == Direction::Up && !draft.admits(AUTH, upgrade.target.major());
    if replaces && combined(view).next().is_some() {
        draft.note(Hint::Combined, "one process is several services: it is replaced, and users are away while it restarts");
    }
    for waiver in view.waivers.iter().filter(|waiver| waiver.until > view.now) {
        draft.note(
            Hint::Waived,
            format!("{} is waived by {} until {}: {}", waiver.name, waiver.by, waiver.until.whole_seconds(), waiver.reason),
        );
    }
    if !draft.decision.after.is_empty() {
        let list = draft.decision.after.iter().map(ToString::to_string).collect::<Vec<_>>().join(", then ");
        draft.note(Hint::Sequence, format!("majors are taken one at a time; after this upgrade comes {list}"));
    }
}

/// Also for a release that became unusable while the upgrade is under way. What ran before may be withdrawn: it is the way back.
pub(crate) fn goal_is_usable(draft: &mut Draft<'_>) {
    let (view, goal) = (draft.view, draft.upgrade.goal());
    let why = match draft.upgrade.direction {
        Direction::Up => view.release(goal).map_or(Some("it is not known to this cluster".into()), unusable),
        Direction::Down => unusable_at(view, goal),
    };
    // Members that people move need nothing of the mirror.
    let needed = view.members.iter().any(|member| !member.by_hand && !draft.upgrade.is_goal(&member.version));
    if let Some(why) = why.filter(|_| needed) {
        draft.block(unusable_block(goal, &why));
    }
}
