//! Whether a member's version is admitted: the windows of the control record, and rules G2 and G6.
//!
//! The handshake on each connection judges the two ends of it (`types::Skew`); admission judges a member against the
//! cluster, before it serves anything (design 3.3). Which windows are legal is decided in `upgrade::control`.
//! Callers: `auth` at join, registration and heartbeat; Proxies and agents for [`auth_not_older`].

use types::{Code, ControlRecord, Public, SystemRole, Version};

/// A member that asks to be admitted, or to stay.
#[derive(Clone, Copy, Debug)]
pub struct Applicant<'a> {
    pub roles: &'a std::collections::BTreeSet<SystemRole>,
    /// `None` when it sent none, or one that cannot be read.
    pub version: Option<&'a Version>,
    /// Runs with `--skip-version-check`.
    pub skips_version_check: bool,
    /// Serves its last sessions and takes no new ones: judged by the window `draining`.
    pub draining: bool,
}

/// What an admitted member is told.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Admission {
    Inside,
    /// Newer than the cluster and admitted only for its `--skip-version-check`: to be logged and audited.
    Skipped(Public),
}

/// Judges an applicant against the cluster's windows. Every role it has must be inside.
pub fn admit(control: &ControlRecord, applicant: &Applicant<'_>) -> Result<Admission, Public> {
    let Some(version) = applicant.version else {
        return Err(Public::new(Code::VersionUnreadable, "the member sent no readable version")
            .hint("check that it is a Lockgate of a neighbouring major"));
    };
    prerelease_fits(control, version)?;
    let mut admission = Admission::Inside;
    for role in applicant.roles {
        let Some(name) = role.window(applicant.draining) else { continue };
        match judge(control, name, role, version) {
            Ok(()) => {}
            Err(refusal) if refusal.newer && applicant.skips_version_check => admission = Admission::Skipped(refusal.public),
            Err(refusal) => return Err(refusal.public),
        }
    }
    Ok(admission)
}

struct Refusal {
    newer: bool,
    public: Public,
}

fn judge(control: &ControlRecord, name: &str, role: &SystemRole, version: &Version) -> Result<(), Refusal> {
    let major = version.major();
    // A record without the window admits nobody in that role: closed rather than open.
    let Some(window) = control.windows.get(name) else {
        let public = Public::new(Code::VersionWindow, format!("this cluster admits no {role}"));
        return Err(Refusal { newer: false, public });
    };
    if window.contains(major) {
        return Ok(());
    }
    let newer = major > window.hi;
    let admitted = if window.lo == window.hi { format!("major {}", window.lo) } else { format!("majors {} to {}", window.lo, window.hi) };
    let public = Public::new(Code::VersionWindow, format!("{role} {version} is not admitted: the cluster takes {admitted} in this role"));
    let hint = if newer {
        format!("upgrade the Auth Service and then the Proxies first, or use the latest {}", window.hi)
    } else {
        let steps = (major.saturating_add(1)..=window.lo).take(12).map(|step| step.to_string()).collect::<Vec<_>>().join(", then ");
        format!("upgrade this {role} to the latest {steps}")
    };
    Err(Refusal { newer, public: public.hint(hint) })
}

/// Rule G2: a pre-release does not belong into a production cluster.
pub fn prerelease_fits(control: &ControlRecord, version: &Version) -> Result<(), Public> {
    if control.production && version.is_prerelease() {
        return Err(Public::new(Code::VersionPrerelease, format!("{version} is a pre-release, and this is a production cluster"))
            .hint("use a release; a cluster for trying pre-releases is created with --allow-prerelease"));
    }
    Ok(())
}

/// Rule G6, at a Proxy or resource service: an Auth Service of an older major is refused, or with `--skip-version-check`
/// is a warning. `Ok(Some)` is that warning.
pub fn auth_not_older(me: &Version, auth: Option<&Version>, skip: bool) -> Result<Option<Public>, Public> {
    let refusal = match auth {
        None => Public::new(Code::VersionUnreadable, "the Auth Service sent no readable version")
            .hint("check that the address is that of a Lockgate"),
        Some(auth) if auth.major() < me.major() => {
            Public::new(Code::VersionAuthOlder, format!("the Auth Service is {auth}, older than this {me}")).hint(format!(
                "upgrade the Auth Service to {} first, use the latest {} here, or pass --skip-version-check",
                me.major(),
                auth.major()
            ))
        }
        Some(_) => return Ok(None),
    };
    if skip && refusal.is(Code::VersionAuthOlder) { Ok(Some(refusal)) } else { Err(refusal) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::{BTreeMap, BTreeSet};
    use types::{
        Extra,
        control::{ClusterVersion, Window},
        name::ClusterId,
    };

    fn control(production: bool) -> ControlRecord {
        let windows = [("auth", (8, 8)), ("proxy", (7, 8)), ("agent", (7, 8)), ("draining", (7, 8))];
        ControlRecord {
            format: 1,
            cluster_id: ClusterId::from_uuid(uuid::Uuid::nil()),
            epoch: 1,
            min_writer_epoch: 1,
            cluster_version: ClusterVersion { major: 8, step: 0 },
            windows: windows.into_iter().map(|(name, (lo, hi))| (name.to_owned(), Window::new(lo, hi))).collect::<BTreeMap<_, _>>(),
            window_gen: 1,
            production,
            upgrade: None,
            migration_lease: None,
            backup: None,
            rollback: None,
            evictions: Vec::new(),
            written_by: None,
            written_at: None,
            extra: Extra::new(),
        }
    }
    fn judge(role: SystemRole, version: &str, skip: bool, production: bool) -> Result<Admission, Public> {
        let roles = BTreeSet::from([role]);
        let version = version.parse().ok();
        admit(&control(production), &Applicant { roles: &roles, version: version.as_ref(), skips_version_check: skip, draining: false })
    }

    #[test]
    fn g4_members_of_this_major_and_one_behind_are_admitted_and_no_others() {
        let check = |role: SystemRole, version: &str, want: Result<(), Code>| {
            let got = judge(role.clone(), version, false, true);
            match want {
                Ok(()) => assert_eq!(got, Ok(Admission::Inside), "{role} {version}"),
                Err(code) => assert!(got.as_ref().is_err_and(|public| public.is(code)), "{role} {version}: {got:?}"),
            }
        };
        for role in [SystemRole::Proxy, SystemRole::Node, SystemRole::Db] {
            check(role.clone(), "8.0.0", Ok(()));
            check(role.clone(), "8.9.9", Ok(()));
            check(role.clone(), "7.0.0", Ok(()));
            check(role.clone(), "6.9.9", Err(Code::VersionWindow));
            check(role.clone(), "9.0.0", Err(Code::VersionWindow));
            check(role.clone(), "8.0.0-rc.1", Err(Code::VersionPrerelease));
            check(role, "eight", Err(Code::VersionUnreadable));
        }
        check(SystemRole::Auth, "8.1.0", Ok(()));
        check(SystemRole::Auth, "7.1.0", Err(Code::VersionWindow));
        assert_eq!(judge(SystemRole::Node, "8.0.0-rc.1", false, false), Ok(Admission::Inside));
    }

    #[test]
    fn a_refused_member_is_told_the_way() {
        let too_old = judge(SystemRole::Node, "5.1.0", false, true).unwrap_err();
        assert_eq!(too_old.message, "node 5.1.0 is not admitted: the cluster takes majors 7 to 8 in this role");
        assert_eq!(too_old.hint.as_deref(), Some("upgrade this node to the latest 6, then 7"));
        let too_new = judge(SystemRole::Proxy, "9.0.0", false, true).unwrap_err();
        assert_eq!(too_new.hint.as_deref(), Some("upgrade the Auth Service and then the Proxies first, or use the latest 8"));
    }

    #[test]
    fn g6_skip_version_check_turns_newer_into_a_warning_and_never_older() {
        assert!(matches!(judge(SystemRole::Proxy, "9.0.0", true, true), Ok(Admission::Skipped(_))));
        assert!(judge(SystemRole::Proxy, "6.0.0", true, true).is_err());
        assert!(judge(SystemRole::Proxy, "8.0.0-rc.1", true, true).is_err());
    }

    #[test]
    fn a_role_of_a_later_release_is_judged_as_an_agent() {
        let app = || SystemRole::Other("app".into());
        assert_eq!(judge(app(), "7.0.0", false, true), Ok(Admission::Inside));
        let refused = judge(app(), "6.0.0", false, true).unwrap_err();
        assert!(refused.is(Code::VersionWindow));
        assert_eq!(refused.message, "app 6.0.0 is not admitted: the cluster takes majors 7 to 8 in this role");
        assert!(judge(app(), "9.0.0", false, true).is_err_and(|public| public.is(Code::VersionWindow)));
        let roles = BTreeSet::from([app()]);
        let (version, mut closed) = ("7.0.0".parse().ok(), control(true));
        closed.windows.insert("draining".into(), Window::new(8, 8));
        let drains = Applicant { roles: &roles, version: version.as_ref(), skips_version_check: false, draining: true };
        assert!(admit(&closed, &drains).is_err(), "what drains falls under draining");
    }

    #[test]
    fn a_role_without_a_window_is_closed() {
        let mut control = control(true);
        control.windows.remove("agent");
        let roles = BTreeSet::from([SystemRole::Node]);
        let version = Version::new(8, 0, 0);
        let applicant = Applicant { roles: &roles, version: Some(&version), skips_version_check: false, draining: false };
        assert!(admit(&control, &applicant).is_err());
    }

    #[test]
    fn g6_an_older_auth_service_is_refused_unless_skipped() {
        let check = |me: &str, auth: &str, skip: bool, want: Result<bool, Code>| {
            let got = auth_not_older(&me.parse().unwrap(), auth.parse().ok().as_ref(), skip);
            match (&got, want) {
                (Ok(warning), Ok(want)) => assert_eq!(warning.is_some(), want, "{me} {auth}"),
                (Err(public), Err(code)) => assert!(public.is(code), "{me} {auth}: {public}"),
                _ => panic!("{me} {auth}: {got:?}"),
            }
        };
        check("8.0.0", "8.3.0", false, Ok(false));
        check("8.3.0", "8.0.0", false, Ok(false));
        check("7.0.0", "8.0.0", false, Ok(false));
        check("8.0.0", "7.9.9", false, Err(Code::VersionAuthOlder));
        check("8.0.0", "7.9.9", true, Ok(true));
        check("8.0.0", "?", true, Err(Code::VersionUnreadable));
        check("8.0.0-rc.1", "8.0.0", false, Ok(false));
        let both = auth_not_older(&"9.1.0".parse().unwrap(), Some(&"8.2.0".parse().unwrap()), false).unwrap_err();
        assert_eq!(both.message, "the Auth Service is 8.2.0, older than this 9.1.0");
    }
}
