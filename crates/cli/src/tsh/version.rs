//! `tsh version`, and the hint to upgrade that other commands give once a day.
//!
//! This program's own line is out before anybody is asked: it must be there in milliseconds, cluster or not.

use super::{Global, profile};
use crate::{
    connection::runtime,
    exit::{Could as _, Outcome},
    output::{Format, show_value, write_out},
};
use client::{
    login::{Web, WebTrust},
    profile::Home,
};
use net::clock::SystemClock;
use serde_json::json;
use std::{path::Path, process::ExitCode, time::Duration};
use types::{Skew, Version, version::Direction};

/// For the Proxy to tell its version.
const DEADLINE: Duration = Duration::from_secs(2);
/// In the profile directory: when the user was last told, seconds since 1970.
const MARKER: &str = "version-hint";
/// Between two hints, in seconds.
const DAY: i64 = 24 * 3600;

/// `tsh version`
pub(crate) fn version(global: &Global, format: Format, client: bool) -> Outcome {
    const WHAT: &str = "print the version";
    let ours = crate::version();
    if format == Format::Text {
        // A line ends the buffer of standard output: it is written now.
        write_out(&format!("tsh v{ours} git:{}\n", crate::GITREF)).could(WHAT)?;
    }
    let theirs = if client { None } else { of_proxy(global) };
    match format {
        Format::Text => {
            if let Some(theirs) = &theirs {
                write_out(&format!("Proxy version: {theirs}\n")).could(WHAT)?;
            }
        }
        Format::Json | Format::Yaml => {
            let mut value = json!({"version": ours, "gitref": crate::GITREF});
            if let (Some(theirs), Some(object)) = (&theirs, value.as_object_mut()) {
                object.insert("proxyVersion".into(), json!(theirs));
            }
            show_value(format, &value).could(WHAT)?;
        }
    }
    if let (Some(theirs), Ok(home)) = (theirs.and_then(|text| text.parse().ok()), Home::find()) {
        hint(&home, Some(&theirs));
    }
    Ok(ExitCode::SUCCESS)
}

/// What the Proxy of the profile in use says, when it answers in time. Certificates that have expired do not matter here.
fn of_proxy(global: &Global) -> Option<String> {
    let proxy = profile::proxy_flag(global).ok()?;
    let home = Home::find().ok()?;
    let profile = home.profile(proxy.as_ref()).ok()?;
    let authorities = home.credentials(&profile).map(|credentials| credentials.trust.host_tls.clone()).unwrap_or_default();
    let trust = if global.insecure { WebTrust::Anyone } else { WebTrust::SystemAnd(authorities) };
    let runtime = runtime().ok()?;
    let web = Web::new(profile.web_proxy_addr, trust, &crate::version(), &SystemClock::shared()).ok()?;
    let found = runtime.block_on(async { tokio::time::timeout(DEADLINE, web.find()).await }).ok()?.ok();
    // A name that is still being resolved must not hold the program.
    runtime.shutdown_background();
    let shown = found?.server_version;
    Some(shown.chars().take(64).filter(|c| !c.is_control()).collect())
}

/// Says on standard error, at most once a day, that this program is one major behind `server`.
pub(super) fn hint(home: &Home, server: Option<&Version>) {
    let ours = crate::version();
    if let Some(text) = due(home.path(), &ours, server, profile::now().unix()) {
        eprintln!("{text}");
    }
}

/// The hint, if it is due; notes that it was given.
fn due(home: &Path, ours: &Version, server: Option<&Version>, now: i64) -> Option<String> {
    let server = server?;
    if Skew::judge(Direction::ServerFirst, Some(ours), Some(server)) != Skew::ClientBehind {
        return None;
    }
    let marker = home.join(MARKER);
    let last = std::fs::read_to_string(&marker).ok().and_then(|text| text.trim().parse::<i64>().ok());
    if last.is_some_and(|last| (last..last.saturating_add(DAY)).contains(&now)) {
        return None;
    }
    // Without a place to note it, the hint would come with every command.
    std::fs::write(&marker, format!("{now}\n")).ok()?;
    Some(format!("hint: this tsh is {ours}, the cluster runs {server}; upgrade tsh to {} before the cluster goes further", server.major()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn a_client_one_major_behind_is_told_once_a_day() {
        let home = tempfile::tempdir().unwrap();
        let told = |now: i64| due(home.path(), &v("7.4.0"), Some(&v("8.0.1")), now).is_some();
        assert!(told(1_000_000));
        assert!(!told(1_000_001));
        assert!(!told(1_000_000 + DAY - 1));
        assert!(told(1_000_000 + DAY));
        // A clock that was set back does not silence it for years.
        assert!(told(500));
    }

    #[test]
    fn others_are_told_nothing() {
        let home = tempfile::tempdir().unwrap();
        for server in [Some(v("7.9.0")), Some(v("6.0.0")), Some(v("9.0.0")), None] {
            assert_eq!(due(home.path(), &v("7.4.0"), server.as_ref(), 1), None, "{server:?}");
        }
    }

    #[test]
    fn a_home_that_cannot_be_written_brings_no_hint_at_all() {
        assert_eq!(due(Path::new("/nonexistent/home"), &v("7.4.0"), Some(&v("8.0.1")), 1), None);
    }
}
