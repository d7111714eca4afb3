//! Which release comes next on the way to the one that was asked for (rules G2 and G5).
//!
//! Majors are taken one at a time, so who asks for a far one is led there by several upgrades, each complete with backup, soak and finalize.
//! Each hop is the newest release that may be reached from where the cluster is: in the mirror, genuine, not past a release that must
//! be visited, and taking upgrades from there.

use crate::plan::{
    outcome::{Bar, Block},
    view::{Release, View},
};
use std::cmp::Ordering;
use types::Version;

/// More than any sane list of releases needs.
const MAX_HOPS: usize = 64;

/// The releases to go through, the last being the one asked for; empty when the cluster is there.
pub(crate) fn route(view: &View, from: &Version, asked: &Version) -> Result<Vec<Version>, Block> {
    let level = view.control.cluster_version.major;
    if view.control.production && asked.is_prerelease() {
        return Err(block(
            Bar::Prerelease,
            format!("{asked} is a pre-release, and this is a production cluster"),
            "ask for a release; a cluster for trying pre-releases is created with --allow-prerelease".into(),
        ));
    }
    if asked.major() < level || asked.release_order(from) == Ordering::Less {
        let cure = if asked.major() < level {
            "only a backup leads back behind the end of an upgrade: tctl backup restore".to_owned()
        } else {
            format!("a minor or patch can be swapped back by hand: install {asked}; an upgrade under way: tctl upgrade rollback")
        };
        return Err(block(Bar::Downgrade, format!("{asked} is older than what runs here: {from}, cluster version {level}"), cure));
    }
    if !view.uses_mirror() && view.release(asked).is_none() {
        return by_hand(view, from, asked);
    }
    if let Some(why) = view.release(asked).map_or(Some("it is not known to this cluster".into()), unusable) {
        return Err(unusable_block(asked, &why));
    }
    let (mut hops, mut at) = (Vec::new(), from.clone());
    while at.release_order(asked) == Ordering::Less && hops.len() < MAX_HOPS {
        let next = hop(view, &at, asked)?;
        hops.push(next.clone());
        at = next;
    }
    Ok(hops)
}

/// The way where people move every member: any release may be theirs, and majors are taken one at a time all the same (rule G5).
fn by_hand(view: &View, from: &Version, asked: &Version) -> Result<Vec<Version>, Block> {
    let next = from.major().saturating_add(1);
    if asked.release_order(from) != Ordering::Greater {
        return Ok(Vec::new());
    }
    if asked.major() > next {
        return Err(block(
            Bar::Release,
            format!("{} runs {from}, and majors are taken one at a time: {next} comes before {asked}", view.cluster),
            format!("tctl upgrade plan --to <the latest {next}>"),
        ));
    }
    Ok(vec![asked.clone()])
}

/// Why a release cannot be installed.
pub(crate) fn unusable(release: &Release) -> Option<String> {
    if !release.verified {
        Some("its signatures do not hold".into())
    } else if let Some(why) = &release.withdrawn {
        Some(format!("it was withdrawn: {why}"))
    } else if !release.mirrored {
        Some("it is not in the mirror".into())
    } else {
        None
    }
}

pub(crate) fn unusable_block(version: &Version, why: &str) -> Block {
    block(
        Bar::Release,
        format!("release {version} cannot be used: {why}"),
        format!("put a genuine {version} into the mirror of a Proxy; see: tctl upgrade releases"),
    )
}

fn hop(view: &View, at: &Version, asked: &Version) -> Result<Version, Block> {
    let ahead = |release: &&Release| {
        release.version.release_order(at) == Ordering::Greater && release.version.release_order(asked) != Ordering::Greater
    };
    let visit = view
        .releases
        .iter()
        .filter(ahead)
        .filter(|release| release.visit)
        .map(|release| &release.version)
        .min_by(|one, other| one.release_order(other));
    let reachable = |release: &&Release| {
        release.version.major() <= at.major().saturating_add(1)
            && visit.is_none_or(|visit| release.version.release_order(visit) != Ordering::Greater)
            && !(view.control.production && release.version.is_prerelease())
    };
    let mut near: Vec<&Release> = view.releases.iter().filter(ahead).filter(reachable).collect();
    near.sort_by(|one, other| other.version.release_order(&one.version));
    if let Some(release) = near.iter().find(|release| unusable(release).is_none() && refuses(release, at).is_none()) {
        return Ok(release.version.clone());
    }
    Err(match near.first() {
        Some(release) => match refuses(release, at) {
            Some((why, cure)) => block(Bar::Source, why, cure),
            None => unusable_block(&release.version, &unusable(release).unwrap_or_default()),
        },
        None => match visit.filter(|visit| visit.major() <= at.major().saturating_add(1)) {
            Some(visit) => unusable_block(visit, "it must not be passed over"),
            None => {
                let major = at.major().saturating_add(1);
                block(
                    Bar::Release,
                    format!("no release of major {major} is known, and majors are taken one at a time"),
                    format!("put the latest {major} into the mirror of a Proxy; see: tctl upgrade releases"),
                )
            }
        },
    })
}

/// Why a release takes no upgrade from this version, and what to do.
fn refuses(release: &Release, from: &Version) -> Option<(String, String)> {
    let version = &release.version;
    if release.denied_sources.contains(from) {
        return Some((
            format!("{version} does not take upgrades from {from}"),
            format!("first: tctl upgrade apply, to another {}", from.major()),
        ));
    }
    let least = release.min_source.as_ref().filter(|least| from.release_order(least) == Ordering::Less)?;
    Some((
        format!("{version} takes upgrades from {least} on; this cluster runs {from}"),
        format!("put {least} into the mirror of a Proxy, then: tctl upgrade plan --to {least}"),
    ))
}

pub(crate) fn block(code: Bar, cause: String, cure: String) -> Block {
    Block { code, cause, cure, members: Vec::new(), waiver: None }
}
