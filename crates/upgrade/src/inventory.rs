//! The inventory: who runs which version, who must move, and what to do about it (rule G12).
//!
//! Made from the `member` documents and the control record; printed by `tctl inventory ls` and `tctl status`, counted in
//! `/metrics`. Alerts name hosts and cures, and are for people who may act on them: whoever serves them asks `rules` first.
//! Versions are judged by major alone.

use crate::windows::{AUTH, PROXY, ROLES};
use std::{collections::BTreeMap, time::Duration};
use types::{
    ControlRecord, Resource, Time, Version,
    kind::{Member, Platform, Quarantine},
};

/// Most hosts named in one sentence.
const MAX_NAMED: usize = 10;

/// How a member stands to the cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// At the newest major of its role.
    Current,
    /// One major behind: works, should move before the next upgrade.
    Behind,
    /// Outside its window: refused, with the cure.
    Outside { cure: String },
    /// A role without a window here.
    Unknown,
}

impl Standing {
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Current => "ok",
            Self::Behind => "behind",
            Self::Outside { .. } => "outside",
            Self::Unknown => "unknown",
        }
    }
}

/// One line of `tctl inventory ls`.
#[derive(Clone, PartialEq, Debug)]
pub struct Row {
    pub hostname: String,
    pub host_id: String,
    /// `auth,proxy`
    pub services: String,
    pub version: Version,
    /// `active`, `draining`, `quarantined`, `offline`, or what a newer release says.
    pub state: String,
    pub started: Time,
    pub last_seen: Time,
    pub online: bool,
    pub skips_version_check: bool,
    pub standing: Standing,
    /// Since when it serves nobody, and what to install there.
    pub quarantine: Option<Quarantine>,
    /// The digest of what its build stores and speaks; empty when it has not said.
    pub content: String,
    pub platform: Platform,
    pub capabilities: Vec<String>,
}

impl Row {
    /// Column headings, in order.
    pub const HEADINGS: [&'static str; 7] = ["Hostname", "Host ID", "Services", "Version", "State", "Last Seen", "Upgrade"];

    /// The cells under [`Self::HEADINGS`].
    pub fn cells(&self) -> [String; 7] {
        let upgrade = match (&self.quarantine, &self.standing) {
            (Some(told), _) if told.next.is_empty() => format!("since {}", told.since.whole_seconds()),
            (Some(told), _) => format!("install {} (since {})", told.next, told.since.whole_seconds()),
            (None, Standing::Outside { cure }) => format!("outside: {cure}"),
            (None, Standing::Current | Standing::Behind | Standing::Unknown) => self.standing.as_str().to_owned(),
        };
        let version = if self.skips_version_check { format!("{} (skips check)", self.version) } else { self.version.to_string() };
        [
            self.hostname.clone(),
            self.host_id.clone(),
            self.services.clone(),
            version,
            self.state.clone(),
            self.last_seen.whole_seconds().to_string(),
            upgrade,
        ]
    }
}

/// How urgent an alert is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Severity {
    Low,
    High,
}

/// A sentence for administrators, with its cure.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Alert {
    pub severity: Severity,
    pub text: String,
    pub cure: String,
}

/// Everything the inventory says.
#[derive(Clone, PartialEq, Debug)]
pub struct Inventory {
    /// Auth first, then Proxies, then resource services: the order of an upgrade (rule G8).
    pub rows: Vec<Row>,
    /// Processes by service and version, e.g. `("node", "1.2.0")`.
    pub by_version: BTreeMap<(String, String), usize>,
    /// Most urgent first.
    pub alerts: Vec<Alert>,
}

/// Reads the members against the control record. `offline_after`: silent for so long counts as gone.
pub fn summarise(members: &[Resource<Member>], control: &ControlRecord, now: Time, offline_after: Duration) -> Inventory {
    let mut rows: Vec<Row> = members.iter().map(|member| row(member, control, now, offline_after)).collect();
    rows.sort_by(|a, b| rank(a).cmp(&rank(b)).then_with(|| a.hostname.cmp(&b.hostname)).then_with(|| a.host_id.cmp(&b.host_id)));
    let mut by_version = BTreeMap::new();
    for member in members {
        for role in &member.spec.roles {
            *by_version.entry((role.to_string(), member.spec.version.to_string())).or_insert(0) += 1;
        }
    }
    let alerts = alerts(&rows, control);
    Inventory { rows, by_version, alerts }
}

fn rank(row: &Row) -> usize {
    let services = || row.services.split(',');
    if services().any(|service| service == AUTH) {
        0
    } else if services().any(|service| service == PROXY) {
        1
    } else {
        2
    }
}

fn row(member: &Resource<Member>, control: &ControlRecord, now: Time, offline_after: Duration) -> Row {
    let spec = &member.spec;
    let online = now.since(spec.last_seen) <= offline_after;
    let state = match (online, spec.state.as_str()) {
        (false, _) => "offline",
        (true, "") => "active",
        (true, state) => state,
    };
    Row {
        hostname: spec.hostname.clone(),
        host_id: member.name().to_string(),
        services: spec.roles.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
        version: spec.version.clone(),
        state: state.to_owned(),
        started: spec.started,
        last_seen: spec.last_seen,
        online,
        skips_version_check: spec.skips_version_check,
        standing: standing(member, control),
        quarantine: spec.quarantine(),
        content: spec.extra.get(Member::CONTENT).and_then(|content| content.as_str()).unwrap_or_default().to_owned(),
        platform: spec.platform.clone(),
        capabilities: spec.capabilities.clone(),
    }
}

/// The worst standing of the member's roles.
fn standing(member: &Resource<Member>, control: &ControlRecord) -> Standing {
    let (spec, major) = (&member.spec, member.spec.version.major());
    let mut worst = Standing::Unknown;
    for role in &spec.roles {
        let Some(window) = role.window(spec.state == "draining").and_then(|name| control.windows.get(name)) else { continue };
        if major < window.lo {
            let steps = (major.saturating_add(1)..=window.lo).take(12).map(|step| step.to_string()).collect::<Vec<_>>().join(", then ");
            return Standing::Outside { cure: format!("upgrade it to the latest {steps}") };
        }
        if major > window.hi {
            return Standing::Outside {
                cure: format!("upgrade the Auth Service and the Proxies first, or use the latest {} here", window.hi),
            };
        }
        if major < window.hi {
            worst = Standing::Behind;
        } else if worst == Standing::Unknown {
            worst = Standing::Current;
        }
    }
    worst
}

fn alerts(rows: &[Row], control: &ControlRecord) -> Vec<Alert> {
    let mut all = Vec::new();
    let mut say = |severity, chosen: Vec<&Row>, what: &dyn Fn(&str) -> String, cure: String| {
        if !chosen.is_empty() {
            let hosts = if chosen.len() == 1 { "1 host".to_owned() } else { format!("{} hosts", chosen.len()) };
            let names = name_hosts(chosen.iter().map(|row| format!("{} ({})", row.hostname, row.version)));
            all.push(Alert { severity, text: format!("{}: {names}", what(&hosts)), cure });
        }
    };
    let newest =
        ROLES.iter().filter_map(|role| control.windows.get(*role)).map(|window| window.hi).max().unwrap_or(control.cluster_version.major);
    let quarantined = rows.iter().filter(|row| row.quarantine.is_some()).collect::<Vec<_>>();
    say(
        Severity::High,
        quarantined,
        &|hosts| format!("{hosts} quarantined, serving nobody until another version is installed"),
        "tctl inventory ls says which; each host fetches it from a Proxy's mirror with: lockgate rescue".into(),
    );
    let pick = |test: &dyn Fn(&Row) -> bool| rows.iter().filter(|row| row.quarantine.is_none() && test(row)).collect::<Vec<_>>();
    let outside = pick(&|row| matches!(row.standing, Standing::Outside { .. }));
    let cure = outside.first().map(|row| match &row.standing {
        Standing::Outside { cure } => cure.clone(),
        Standing::Current | Standing::Behind | Standing::Unknown => String::new(),
    });
    say(Severity::High, outside, &|hosts| format!("{hosts} outside the versions this cluster admits"), cure.unwrap_or_default());
    // A Proxy behind leaves agents of the newer major without a tunnel through it (see `windows`).
    let agents_ahead = rows.iter().any(|row| rank(row) == 2 && row.standing == Standing::Current);
    let proxies = pick(&|row| agents_ahead && rank(row) == 1 && row.standing == Standing::Behind);
    say(
        Severity::High,
        proxies,
        &|hosts| format!("Proxies older than agents, which cannot connect through them; {hosts}"),
        format!("upgrade the Proxies to the latest {newest}"),
    );
    let skipping = pick(&|row| row.skips_version_check);
    say(
        Severity::High,
        skipping,
        &|hosts| format!("{hosts} with --skip-version-check"),
        "upgrade the Auth Service, then start them without the flag".into(),
    );
    let behind = pick(&|row| row.standing == Standing::Behind);
    let next = newest.saturating_add(1);
    say(
        Severity::Low,
        behind,
        &|hosts| format!("{hosts} one major behind"),
        format!("upgrade to the latest {newest} before the cluster moves to {next}"),
    );
    let prerelease = pick(&|row| control.production && row.version.is_prerelease());
    say(Severity::High, prerelease, &|hosts| format!("{hosts} on a pre-release in a production cluster"), "replace it by a release".into());
    all.sort_by_key(|alert| std::cmp::Reverse(alert.severity));
    all
}

/// `a, b, c and 4 more`; empty for none.
pub(crate) fn name_hosts(hosts: impl Iterator<Item = String>) -> String {
    let all: Vec<String> = hosts.collect();
    let shown = all.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
    match all.len().saturating_sub(MAX_NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

#[cfg(test)]
#[path = "inventory/tests.rs"]
pub(crate) mod tests;
