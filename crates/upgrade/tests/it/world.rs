//! Clusters made of a few words, for all tests here.

use std::{collections::BTreeSet, time::Duration};
use types::{ClusterName, ControlRecord, ResourceName, SystemRole, Time, Ttl, Version, control::ClusterVersion, name::ClusterId};
use upgrade::{
    barrier::Seat,
    migrate::State,
    plan::{Backup, Condition, Drill, Leaf, Member, Migration, Policy, Rehearsal, Release, View},
};

/// The beginning of every story: 2026-11-23, noon.
pub(crate) fn noon() -> Time {
    "2026-11-23T12:00:00Z".parse().unwrap()
}

pub(crate) fn v(text: &str) -> Version {
    text.parse().unwrap()
}

pub(crate) fn id(name: &str) -> ResourceName {
    ResourceName::new(name).unwrap()
}

pub(crate) fn role(name: &str) -> SystemRole {
    match name {
        "auth" => SystemRole::Auth,
        "proxy" => SystemRole::Proxy,
        _ => SystemRole::Node,
    }
}

/// A member that serves, with an updater.
pub(crate) fn member(name: &str, roles: &[&str], version: &str) -> Member {
    Member {
        id: id(name),
        name: name.to_owned(),
        roles: roles.iter().map(|name| role(name)).collect(),
        version: v(version),
        boot: format!("{name}-1"),
        started: noon().minus(Duration::from_secs(86_400)),
        last_seen: noon().minus(Duration::from_secs(20)),
        state: Condition::Active,
        class: String::new(),
        serves: BTreeSet::new(),
        by_hand: false,
        told: None,
        path: None,
        drains_until: None,
    }
}

pub(crate) fn seat(member: &Member, generation: u64) -> Seat {
    Seat { host: Some(member.id.clone()), name: member.name.clone(), version: member.version.clone(), acknowledged: generation }
}

pub(crate) fn release(version: &str) -> Release {
    Release {
        version: v(version),
        digest: format!("sha256:{version}"),
        verified: true,
        mirrored: true,
        min_source: None,
        denied_sources: Vec::new(),
        visit: false,
        withdrawn: None,
    }
}

pub(crate) fn leaf(name: &str, version: &str) -> Leaf {
    Leaf { name: name.to_owned(), version: v(version), last_seen: noon().minus(Duration::from_secs(30)), by_others: false }
}

/// A migration to a major that has not begun.
pub(crate) fn migration(name: &str, to: u64) -> Migration {
    Migration {
        id: name.to_owned(),
        to: ClusterVersion { major: to, step: 0 },
        floor: to - 1,
        state: State::Absent,
        undo: false,
        stuck: None,
        done: 0,
        total: 1000,
        swept: false,
    }
}

pub(crate) fn control(version: &str) -> ControlRecord {
    let cluster = ClusterId::from_uuid(uuid::Uuid::from_u128(7));
    upgrade::birth(cluster, &v(version), true).unwrap()
}

/// A cluster at rest: so many Auth Services, Proxies and agents of one version, and that version's release and the next majors'.
pub(crate) fn cluster(version: &str, auths: usize, proxies: usize, agents: usize) -> View {
    let control = control(version);
    let mut members = Vec::new();
    members.extend((1..=auths).map(|n| member(&format!("auth-{n}"), &["auth"], version)));
    members.extend((1..=proxies).map(|n| member(&format!("proxy-{n}"), &["proxy"], version)));
    members.extend((1..=agents).map(|n| Member { class: "linux-amd64".into(), ..member(&format!("web-{n}"), &["node"], version) }));
    let seats = members.iter().take(auths).map(|member| seat(member, control.window_gen)).collect();
    let major = v(version).major();
    let mut releases = vec![release(version)];
    releases.extend((1..=3).map(|ahead| release(&format!("{}.0.0", major + ahead))));
    View {
        now: noon(),
        read_at: noon(),
        cluster: ClusterName::new("acme").unwrap().to_string(),
        control,
        asked: None,
        members,
        seats,
        leaves: Vec::new(),
        root: None,
        migrations: Vec::new(),
        backup: None,
        releases,
        findings: Vec::new(),
        policy: Policy::default(),
        waivers: Vec::new(),
    }
}

/// A backup of now with all its proofs.
pub(crate) fn proven(view: &View, target: &str) -> Backup {
    let rehearsal = Rehearsal { at: view.now, target: v(target), failed: None, bad_rows: Vec::new(), rows: 1200, seconds: 1320 };
    Backup {
        id: "b-1".into(),
        at: view.now,
        cluster_version: view.control.cluster_version,
        failed: None,
        drill: Some(Drill { at: view.now, failed: None }),
        rehearsal: Some(rehearsal),
    }
}

/// Short waits, for tests that walk the whole way.
pub(crate) fn brisk() -> Policy {
    Policy { bake_canary: Ttl::from_secs(60), bake: Ttl::from_secs(10), ..Policy::default() }
}
