//! One look at the cluster: everything that the planner decides on, read from the store at this moment.
//!
//! The mirror is not asked: a decision on what was true a while ago is how upgrades go wrong. What a member's updater reports counts only if
//! it is of the directive by which the member was told.

use crate::{
    core::{Core, Fault},
    executor::book::{Book, Told},
    seat,
    windows::{self, members},
    world::Known,
};
use migrate::{read_journal, read_progress};
use std::collections::{BTreeMap, BTreeSet};
use store::control::Stored;
use types::{
    Resource, ResourceName, SystemRole, Version,
    kind::{self, singleton},
    update::UpdateReport,
    upgrade::Policy,
};
use upgrade::plan::{self, Condition, Member, Migration, View, Walk};

/// The label of a Proxy by which Proxies are counted together.
const REGION: &str = "region";

/// What was seen, and what is needed to act on it.
pub(crate) struct Look {
    pub(crate) view: View,
    /// The control record that was read, for the conditional write.
    pub(crate) control: Stored,
    pub(crate) told: BTreeMap<ResourceName, Told>,
    pub(crate) releases: Vec<Known>,
}

/// Looks. `asked` is the version that somebody asks for.
pub(crate) async fn look(core: &Core, asked: Option<Version>) -> Result<Look, Fault> {
    let (releases, fault) = releases(core).await;
    let book = Book::read(core).await?;
    let (seats, documents) = (seat::all(core).await?, members(&core.documents).await?);
    let policy = policy(core).await?;
    // Last, so that a change of it after the rest was read is seen by the conditional write.
    let control = windows::read(core).await?;
    let migrations = migrations(core, &control).await?;
    let named = |(name, value)| ResourceName::new(name).ok().map(|name| (name, value));
    let told: BTreeMap<ResourceName, Told> = book.told.into_iter().filter_map(named).collect();
    let mut walks: BTreeMap<String, Walk> = book.walks.into_iter().collect();
    let members = documents.iter().map(|document| member(document, told.get(document.name()), walks.remove(document.name().as_str())));
    let mut members: Vec<Member> = members.collect();
    // Who was told and never came back is not forgotten with its document.
    let known: BTreeSet<&ResourceName> = documents.iter().map(Resource::name).collect();
    members.extend(told.iter().filter(|(id, _)| !known.contains(id)).map(|(id, told)| lost(id, told)));
    let now = core.now();
    let view = View {
        now,
        read_at: now,
        cluster: core.cluster.to_string(),
        control: control.record.clone(),
        asked,
        members,
        seats,
        leaves: Vec::new(),
        root: None,
        migrations,
        backup: book.proof.map(|held| held.value.backup),
        releases: releases.iter().map(|known| known.release.clone()).collect(),
        findings: Vec::new(),
        policy,
        waivers: book.waivers,
    };
    if let Some(fault) = fault {
        tracing::warn!(fault, "the mirror of releases could not be read");
    }
    Ok(Look { view, control, told, releases })
}

/// What the mirror has, and why it could not be read.
pub(crate) async fn releases(core: &Core) -> (Vec<Known>, Option<String>) {
    match &core.releases {
        None => (Vec::new(), None),
        Some(releases) => match releases.known().await {
            Ok(known) => (known, None),
            Err(why) => (Vec::new(), Some(why)),
        },
    }
}

/// The policy. One that a later release wrote and this one cannot read is no reason to stop: the defaults are the careful ones.
pub(super) async fn policy(core: &Core) -> Result<Policy, Fault> {
    let name = ResourceName::new(singleton::UPGRADE_POLICY)?;
    let document = core.documents.get(<Policy as types::document::Spec>::KIND, &name).await?;
    Ok(match document {
        Some(document) => Resource::<Policy>::from_document(document).map(|policy| policy.spec).unwrap_or_else(|error| {
            tracing::warn!(%error, "the upgrade policy cannot be read here; the defaults hold");
            Policy::default()
        }),
        None => Policy::default(),
    })
}

/// A member as it reports itself, with what was said to it and seen of it.
fn member(document: &Resource<kind::Member>, told: Option<&Told>, walk: Option<Walk>) -> Member {
    let mut member = Member::of(document);
    let report = UpdateReport::of(&document.spec.extra);
    member.by_hand = report.as_ref().is_none_or(|report| report.pinned);
    if member.roles.contains(&SystemRole::Proxy) {
        member.class = document.spec.labels.get(REGION).cloned().unwrap_or_default();
    }
    member.told = told.map(|told| planned(told, report.and_then(|report| failed(&report, told))));
    member.path = walk;
    member
}

/// A member whose document lapsed after it was told.
fn lost(id: &ResourceName, told: &Told) -> Member {
    Member {
        id: id.clone(),
        name: told.name.clone(),
        roles: told.roles.clone(),
        version: told.from.clone(),
        boot: told.boot.clone(),
        started: told.at,
        last_seen: told.at,
        state: Condition::Missing,
        class: told.class.clone(),
        serves: BTreeSet::new(),
        by_hand: false,
        told: Some(planned(told, None)),
        path: None,
        drains_until: None,
    }
}

/// What was said, as the planner knows it.
fn planned(told: &Told, failed: Option<String>) -> plan::Told {
    plan::Told { version: told.version.clone(), at: told.at, boot: told.boot.clone(), attempts: told.attempts, failed }
}

/// What the updater reports against what it was told.
fn failed(report: &UpdateReport, told: &Told) -> Option<String> {
    // By generation and not by time: the host has a clock of its own.
    let against = matches!(report.state.as_str(), UpdateReport::REVERTED | UpdateReport::REFUSED);
    let about = report.version.as_ref().is_none_or(|version| *version == told.version);
    (against && about && report.generation >= told.generation)
        .then(|| if report.why.is_empty() { report.state.clone() } else { report.why.clone() })
}

async fn migrations(core: &Core, control: &Stored) -> Result<Vec<Migration>, Fault> {
    let mut all = Vec::new();
    for migration in core.migrations.registry().iter() {
        let store = core.store.as_ref();
        let internal = |error: migrate::ReadJournalError| Fault::Internal(error.to_string());
        let journal = read_journal(store, migration.id).await.map_err(internal)?.map(|kept| kept.resource.spec);
        let progress = read_progress(store, migration.id).await.map_err(internal)?.map(|kept| kept.resource.spec);
        let known = upgrade::migrate::Known { journal: journal.as_ref(), progress: progress.as_ref(), control: &control.record };
        all.push(Migration::of(migration, known));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{Extra, Time};

    #[test]
    fn what_an_updater_reports_counts_only_against_what_it_was_told() {
        let told = Told {
            version: Version::new(2, 0, 0),
            at: Time::from_unix(1000),
            boot: "a".into(),
            attempts: 1,
            generation: 7,
            name: "web-1".into(),
            roles: [SystemRole::Node].into(),
            class: String::new(),
            from: Version::new(1, 1, 0),
            extra: Extra::new(),
        };
        let report = |state: &str, version: Version, generation: u64, at: i64| UpdateReport {
            state: state.into(),
            version: Some(version),
            generation,
            why: "disk full".into(),
            at: Time::from_unix(at),
            pinned: false,
            extra: Extra::new(),
        };
        let two = Version::new(2, 0, 0);
        assert_eq!(failed(&report("reverted", two.clone(), 7, 1001), &told).as_deref(), Some("disk full"));
        assert_eq!(failed(&report("refused", two.clone(), 8, 1001), &told).as_deref(), Some("disk full"));
        assert_eq!(failed(&report("reverted", two.clone(), 6, 1001), &told), None, "an older directive");
        assert!(failed(&report("reverted", two.clone(), 7, 999), &told).is_some(), "its clock is behind");
        assert_eq!(failed(&report("reverted", Version::new(3, 0, 0), 7, 1001), &told), None, "another release");
        assert_eq!(failed(&report("confirmed", two, 7, 1001), &told), None);
    }
}
