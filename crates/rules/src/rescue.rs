//! Which release a host that is refused for its version should install next (design 3.2, rules G4, G5 and G8).
//!
//! Majors are taken one at a time upwards, so a host three majors behind is sent to its next major, not to the newest; one that
//! is too new is sent back to what the cluster admits, or told to wait where the cluster is on its way. Whoever follows the
//! advice comes to an end (a property test walks it). The caller gives what it knows: the window of the control record, the
//! Proxy's own version, the releases in its mirror. Callers: `proxy::rescue` for the host, `auth` for the inventory.

use types::{Version, control::Window};

/// Who asks, and what is known where he asks.
#[derive(Clone, Copy, Debug)]
pub struct Case<'a> {
    /// What the host says it runs; `None` when that cannot be read.
    pub host: Option<&'a Version>,
    /// It is of the cluster's version and not of the cluster's build.
    pub other_build: bool,
    /// The control record's window for hosts, if it is known.
    pub window: Option<&'a Window>,
    /// A cluster that takes no pre-releases (rule G2).
    pub production: bool,
    /// Of the Proxy that the host would go through.
    pub proxy: &'a Version,
    /// In the mirror, in any order.
    pub releases: &'a [Version],
}

/// What the host should do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Advice {
    /// Install this release.
    Install(Target, Way),
    /// Nothing to install: a Proxy is behind or ahead of the windows for a moment.
    Wait,
    /// Its version is admitted.
    Retry,
}

/// A release of this major; which one, if any is known.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Target {
    pub major: u64,
    pub version: Option<Version>,
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.version {
            Some(version) => version.fmt(f),
            None => write!(f, "the latest {}", self.major),
        }
    }
}

/// Which way a release lies from what the host runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// The next major on the way up.
    Up,
    /// Back to what the cluster admits.
    Back,
    /// Another build or release of the same major.
    Same,
}

/// The majors that this Proxy and the windows admit together; `None` when that is none.
fn admitted(case: &Case<'_>) -> Option<(u64, u64)> {
    let own = case.proxy.major();
    let (lo, hi) = case.window.map_or((0, own), |window| (window.lo, window.hi));
    let (lo, hi) = (lo.max(own.saturating_sub(1)), hi.min(own));
    (lo <= hi).then_some((lo, hi))
}

/// Decides.
pub fn next(case: &Case<'_>) -> Advice {
    let Some((lo, hi)) = admitted(case) else { return Advice::Wait };
    let Some(host) = case.host else { return Advice::Install(target(case, hi), Way::Same) };
    let major = host.major();
    if major > hi {
        // The windows have it already, and this Proxy will follow (rule G8).
        let soon = case.window.is_some_and(|window| window.contains(major));
        return if soon { Advice::Wait } else { Advice::Install(target(case, hi), Way::Back) };
    }
    if major < lo {
        return Advice::Install(target(case, major.saturating_add(1)), Way::Up);
    }
    if case.other_build {
        return Advice::Install(Target { major, version: Some(host.clone()) }, Way::Same);
    }
    if case.production && host.is_prerelease() {
        return Advice::Install(target(case, major), Way::Same);
    }
    Advice::Retry
}

/// The newest release of a major that this cluster takes, among those in the mirror and the Proxy's own.
fn target(case: &Case<'_>, major: u64) -> Target {
    let known = case.releases.iter().chain([case.proxy]);
    let fit = known.filter(|version| version.major() == major && !(case.production && version.is_prerelease()));
    Target { major, version: fit.max_by(|one, other| one.release_order(other)).cloned() }
}

/// For people: what stands against the host, and what to do.
pub fn explain(case: &Case<'_>, advice: &Advice) -> (String, String) {
    let runs = case.host.map_or_else(|| "a version that cannot be read".to_owned(), ToString::to_string);
    let takes = match admitted(case) {
        Some((lo, hi)) if lo == hi => format!("the cluster takes major {lo}"),
        Some((lo, hi)) => format!("the cluster takes majors {lo} to {hi}"),
        None => format!("the cluster is between two majors (this Proxy is {})", case.proxy),
    };
    let why = match advice {
        Advice::Install(_, Way::Same) if case.other_build => format!("this host runs another build of {runs} than the cluster"),
        Advice::Install(_, Way::Same) if case.host.is_some() => {
            format!("this host runs {runs}, a pre-release, and this is a production cluster")
        }
        Advice::Install(..) | Advice::Wait | Advice::Retry => format!("this host runs {runs}, {takes}"),
    };
    let cure = match advice {
        Advice::Install(target, Way::Up) => {
            let last = admitted(case).map_or(target.major, |(lo, _)| lo);
            let rest: String = (target.major.saturating_add(1)..=last).take(8).map(|major| format!(", then {major}")).collect();
            format!("install {target}{rest}")
        }
        Advice::Install(target, Way::Back) => format!("install {target}, or wait until the cluster is upgraded"),
        Advice::Install(target, Way::Same) if case.other_build => format!("install the cluster's build of {target}"),
        Advice::Install(target, Way::Same) => format!("install {target}"),
        Advice::Wait => "wait: the Proxies are upgraded next; it comes back by itself".into(),
        Advice::Retry => "nothing to install: it comes back by itself".into(),
    };
    (why, cure)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v(text: &str) -> Version {
        text.parse().unwrap()
    }

    /// `window`: `lo-hi`, or empty when it is not known. `mirror`: versions, by blanks.
    fn ask(host: &str, window: &str, proxy: &str, mirror: &str, production: bool) -> (Advice, (String, String)) {
        let window = window.split_once('-').map(|(lo, hi)| Window::new(lo.parse().unwrap(), hi.parse().unwrap()));
        let (host, proxy) = (host.parse().ok(), v(proxy));
        let releases: Vec<Version> = mirror.split_whitespace().map(v).collect();
        let case =
            Case { host: host.as_ref(), other_build: false, window: window.as_ref(), production, proxy: &proxy, releases: &releases };
        let advice = next(&case);
        let words = explain(&case, &advice);
        (advice, words)
    }

    #[test]
    fn g5_the_release_that_is_next_is_the_one_of_the_table() {
        let check = |host: &str, window: &str, proxy: &str, mirror: &str, want: &str| {
            let got = match ask(host, window, proxy, mirror, true).0 {
                Advice::Install(target, way) => format!("{way:?} {target}"),
                other => format!("{other:?}"),
            };
            assert_eq!(got, want, "{host} at {proxy} [{window}] with {mirror}");
        };
        let mirror = "8.1.0 8.4.2 8.5.0-rc.1 9.0.0 9.10.0 9.9.0 10.2.0";
        // Behind: one major at a time, the newest release of it.
        check("7.3.7", "9-10", "10.2.0", mirror, "Up 8.4.2");
        check("8.1.0", "9-10", "10.2.0", mirror, "Up 9.10.0");
        check("6.0.0", "9-10", "10.2.0", mirror, "Up the latest 7");
        check("6.0.0", "", "10.2.0", "", "Up the latest 7");
        // Inside.
        check("9.0.0", "9-10", "10.2.0", mirror, "Retry");
        check("10.9.0", "9-10", "10.2.0", mirror, "Retry");
        // Ahead: back to the newest that is taken; the Proxy's own version is known without a mirror.
        check("12.0.0", "9-10", "10.2.0", "", "Back 10.2.0");
        check("11.0.0", "9-10", "10.2.0", "10.3.0 9.1.0", "Back 10.3.0");
        // The windows are narrower than what the Proxy could serve.
        check("9.1.0", "10-10", "10.2.0", "", "Up 10.2.0");
        check("10.2.0", "9-9", "10.2.0", mirror, "Back 9.10.0");
        // On the way: the windows are open to 11, this Proxy is not there yet.
        check("11.0.0", "10-11", "10.2.0", mirror, "Wait");
        check("8.0.0", "11-11", "10.2.0", mirror, "Wait");
        // Pre-releases.
        check("10.0.0-rc.1", "9-10", "10.2.0", mirror, "Same 10.2.0");
        check("7.9.0-rc.1", "9-10", "10.2.0", mirror, "Up 8.4.2");
        check("soon", "9-10", "10.2.0", mirror, "Same 10.2.0");
        assert_eq!(ask("10.0.0-rc.1", "9-10", "10.2.0", mirror, false).0, Advice::Retry);
    }

    #[test]
    fn the_sentences_name_what_runs_and_what_to_install() {
        let check = |host: &str, want: &str| {
            let (_, (why, cure)) = ask(host, "9-10", "10.2.0", "8.4.2", true);
            assert_eq!(format!("{why}; {cure}"), want);
        };
        check("7.3.7", "this host runs 7.3.7, the cluster takes majors 9 to 10; install 8.4.2, then 9");
        check("12.0.0", "this host runs 12.0.0, the cluster takes majors 9 to 10; install 10.2.0, or wait until the cluster is upgraded");
        check("10.0.0-rc.1", "this host runs 10.0.0-rc.1, a pre-release, and this is a production cluster; install 10.2.0");
        check("soon", "this host runs a version that cannot be read, the cluster takes majors 9 to 10; install 10.2.0");
        let (host, proxy) = (v("10.2.0"), v("10.2.0"));
        let case = Case { host: Some(&host), other_build: true, window: None, production: true, proxy: &proxy, releases: &[] };
        let advice = next(&case);
        assert_eq!(advice, Advice::Install(Target { major: 10, version: Some(host.clone()) }, Way::Same));
        assert_eq!(explain(&case, &advice).1, "install the cluster's build of 10.2.0");
    }

    proptest! {
        #[test]
        fn g5_whoever_follows_the_advice_skips_no_major_upwards_and_comes_to_an_end(
            start in 0u64..14, proxy in 0u64..12, lo in 0u64..12, width in 0u64..2, known: bool, pre: bool, production: bool,
            mirror in prop::collection::vec((0u64..14, 0u64..3), 0..8),
        ) {
            let window = Window::new(lo, lo + width);
            let releases: Vec<Version> = mirror.into_iter().map(|(major, minor)| Version::new(major, minor, 0)).collect();
            let proxy = Version::new(proxy, 1, 0);
            let mut host = if pre { v(&format!("{start}.0.0-rc.1")) } else { Version::new(start, 0, 0) };
            let mut moves = 0;
            loop {
                let case = Case { host: Some(&host), other_build: false, window: known.then_some(&window), production, proxy: &proxy, releases: &releases };
                match next(&case) {
                    Advice::Retry => {
                        let inside = !known || window.contains(host.major());
                        prop_assert!(inside && host.major() <= proxy.major() && proxy.major() - host.major() <= 1);
                        break;
                    }
                    Advice::Wait => { prop_assert!(known); break }
                    Advice::Install(target, way) => {
                        let to = target.version.clone().unwrap_or_else(|| Version::new(target.major, 0, 0));
                        prop_assert_eq!(to.major(), target.major);
                        prop_assert!(to != host);
                        match way {
                            Way::Up => prop_assert_eq!(target.major, host.major() + 1),
                            Way::Back => prop_assert!(target.major < host.major()),
                            Way::Same => prop_assert_eq!(target.major, host.major()),
                        }
                        host = to;
                    }
                }
                moves += 1;
                prop_assert!(moves < 20);
            }
        }
    }
}
