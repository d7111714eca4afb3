//! What people read of a plan: the stage table, the state of an upgrade, one code explained. Text of at most 100 columns.
//!
//! Pure: a plan in, text out. The command line prints it; `status` is data first, so that a page or a script can show the same. Nothing is
//! decided here, and nothing is left out that stands against an upgrade: lists of hosts are cut, the count is not.

mod screen;
mod status;

use crate::{
    inventory::name_hosts,
    plan::{Bar, Block, Decision, Direction, Gate, Hint, Outcome, Step, Upgrade, Verdict, View, Wait},
};
use std::collections::BTreeMap;

pub use status::{Count, Rollback, Status, status, status_text};

/// The widest line.
pub const WIDTH: usize = 100;

/// `tctl upgrade plan`.
pub fn plan_text(view: &View, outcome: &Outcome) -> String {
    let decision = &outcome.decision;
    let Some(upgrade) = &decision.upgrade else {
        let level = view.control.cluster_version;
        return match decision.blocked.is_empty() {
            true => format!("Cluster {}: nothing to do, cluster version {}.{}\n", view.cluster, level.major, level.step),
            false => blocks(&decision.blocked),
        };
    };
    let mut text = head(view, upgrade, outcome);
    if !outcome.forecast.is_empty() {
        text.push('\n');
        text.push_str(&table(outcome));
    }
    for part in [blocks(&decision.blocked), waits(&decision.waits), steps(&decision.next), notes(decision)] {
        if !part.is_empty() {
            text.push('\n');
            text.push_str(&part);
        }
    }
    text
}

fn head(view: &View, upgrade: &Upgrade, outcome: &Outcome) -> String {
    let level = view.control.cluster_version;
    let kind = if view.root.is_some() { " (leaf)" } else { "" };
    let (from, to) = (upgrade.source(), upgrade.goal());
    let word = if upgrade.direction == Direction::Down { "back to" } else { "target" };
    let first = format!("Cluster  {}{kind}   now {from}, cluster version {}.{}   {word} {to}", view.cluster, level.major, level.step);
    let decision = &outcome.decision;
    let count = |what: &str, n: usize| match n {
        0 => String::new(),
        1 => format!(", 1 {what}"),
        n => format!(", {n} {what}s"),
    };
    let second = format!(
        "Verdict  {}{}{}   plan {}",
        decision.verdict().as_str(),
        count("block", decision.blocked.len()),
        count("note", decision.notes.len()),
        outcome.id
    );
    format!("{}\n{}\n", screen::cut(&first), screen::cut(&second))
}

fn table(outcome: &Outcome) -> String {
    let mut text = format!("{:>2}  {:<36} {:>7}  {:<8} {:<6} {}\n", "#", "stage", "members", "takes", "back?", "next stage waits for");
    for (number, row) in outcome.forecast.iter().enumerate() {
        let members = if row.members == 0 { "-".to_owned() } else { screen::thousands(row.members) };
        let takes = if row.takes.0.is_zero() { "-".to_owned() } else { screen::length(row.takes.0) };
        let back = if row.back { "yes" } else { "NO" };
        let line = format!("{number:>2}  {:<36} {members:>7}  {takes:<8} {back:<6} {}", screen::fit(&row.what, 36), row.then);
        text.push_str(screen::cut(line.trim_end()).as_str());
        text.push('\n');
    }
    text
}

fn blocks(blocked: &[Block]) -> String {
    let mut text = String::new();
    for block in blocked {
        text.push_str(&screen::item("BLOCKED", block.code.as_str(), &block.cause));
        text.push_str(&screen::item("cure", "", &block.cure));
    }
    text
}

fn waits(waits: &[Wait]) -> String {
    let mut text = String::new();
    for wait in waits {
        let until = wait.until.map_or_else(String::new, |until| format!(", until {}", until.whole_seconds()));
        text.push_str(&screen::item("waiting", wait.code.as_str(), &format!("{}{until}", wait.cause)));
        text.push_str(&screen::item("cure", "", &wait.cure));
    }
    text
}

fn steps(next: &[Step]) -> String {
    describe(next).iter().map(|line| screen::item("next", "", line)).collect()
}

fn notes(decision: &Decision) -> String {
    decision.notes.iter().map(|note| screen::item("note", note.code.as_str(), &note.text)).collect()
}

/// Steps in words; members that get the same are one line.
pub fn describe(next: &[Step]) -> Vec<String> {
    let (mut lines, mut groups) = (Vec::new(), BTreeMap::<String, Vec<String>>::new());
    for step in next {
        let line = match step {
            Step::Begin { upgrade } => {
                format!("begin the upgrade to {}, once somebody accepts this plan: tctl upgrade apply", upgrade.target)
            }
            Step::Backup => "make a backup".into(),
            Step::Drill { backup } => format!("restore backup {backup} into a scratch store and log in there"),
            Step::Rehearse { backup, target } => format!("rehearse the upgrade to {target} on backup {backup}, there and back"),
            Step::Widen { role, major } => format!("open the window of {role} to {major}"),
            Step::Narrow { role, lo, hi } if lo == hi => format!("close the window of {role} to [{lo}]"),
            Step::Narrow { role, lo, hi } => format!("close the window of {role} to [{lo}, {hi}]"),
            Step::Migrate { id, undo: true } => format!("undo migration {id}"),
            Step::Migrate { id, undo: false } => format!("let migration {id} go on"),
            Step::Soak => "everything is moved: begin the soak".into(),
            Step::Pause { reason, revert } => {
                let back = revert.map_or_else(String::new, |wave| format!(", and take {wave} back"));
                format!("pause{back}: {reason}")
            }
            Step::Finalize => "end the way back: raise the cluster version".into(),
            Step::GiveBack { major } => {
                format!("give the cluster back to {major}; then install {major} where the Auth Service runs, and start it")
            }
            Step::Finish => "the upgrade is over: take it out of the control record".into(),
            Step::Install { name, version, attempt, .. } => {
                let again = if *attempt > 1 { " again" } else { "" };
                groups.entry(format!("install {version}{again} on")).or_default().push(name.clone());
                continue;
            }
            Step::Walk { name, .. } => {
                groups.entry("walk a user's path through".into()).or_default().push(name.clone());
                continue;
            }
            Step::Evict { name, .. } => {
                groups.entry("evict, with rescue when they come back:".into()).or_default().push(name.clone());
                continue;
            }
        };
        lines.push(line);
    }
    for (what, mut names) in groups {
        names.sort();
        lines.push(format!("{what} {}", name_hosts(names.into_iter())));
    }
    lines
}

/// `tctl upgrade explain <code>`: what a code means, and what it says at the moment. `None` for what is no code.
pub fn explain(decision: &Decision, code: &str) -> Option<String> {
    let code = code.trim().to_ascii_uppercase();
    let meaning = Bar::ALL.iter().map(|bar| (bar.as_str(), bar.meaning()));
    let meaning = meaning.chain(Gate::ALL.iter().map(|gate| (gate.as_str(), gate.meaning())));
    let mut meaning = meaning.chain(Hint::ALL.iter().map(|hint| (hint.as_str(), hint.meaning())));
    let (_, meaning) = meaning.find(|(known, _)| *known == code)?;
    let mut text = screen::item(&code, "", meaning);
    let mut said = String::new();
    for block in decision.blocked.iter().filter(|block| block.code.as_str() == code) {
        said.push_str(&screen::item("now", "", &block.cause));
        said.push_str(&screen::item("cure", "", &block.cure));
        if let Some(waiver) = &block.waiver {
            said.push_str(&screen::item(
                "waiver",
                "",
                &format!("tctl upgrade waive {waiver} --reason=… takes this check away, for some time and under your name"),
            ));
        }
        if !block.members.is_empty() {
            said.push_str(&screen::item("members", "", &block.members.join(", ")));
        }
    }
    for wait in decision.waits.iter().filter(|wait| wait.code.as_str() == code) {
        said.push_str(&waits(std::slice::from_ref(wait)).replacen("waiting", "now    ", 1));
        if !wait.members.is_empty() {
            said.push_str(&screen::item("members", "", &wait.members.join(", ")));
        }
    }
    for note in decision.notes.iter().filter(|note| note.code.as_str() == code) {
        said.push_str(&screen::item("now", "", &note.text));
    }
    text.push_str(if said.is_empty() { "now      nothing of it\n" } else { &said });
    Some(text)
}

/// Why nothing more is done, in one line.
pub fn headline(decision: &Decision) -> String {
    match decision.verdict() {
        Verdict::Blocked | Verdict::FailedAndPaused => {
            decision.blocked.first().map_or_else(|| "paused".to_owned(), |block| format!("{} {}", block.code, block.cause))
        }
        Verdict::Waiting => decision.waits.first().map_or_else(String::new, |wait| format!("{} {}", wait.code, wait.cause)),
        Verdict::Ready => describe(&decision.next).into_iter().next().unwrap_or_default(),
        Verdict::Done => "nothing to do".into(),
    }
}
