//! Who is logged in: the profile in `~/.tsh` or an identity file, opened for a command, and `tsh status`.
//!
//! Every command that talks to a cluster begins with [`logged_in`] or [`open`]. Both refuse expired certificates here, with
//! the command that cures it, so that nobody waits for a handshake that must fail. What is printed by `status` is what the
//! certificate says; the servers decide for themselves.

use super::{Global, version};
use crate::{
    connection::{Connection, runtime},
    exit::{Could as _, Failure, Outcome},
    output::{Format, Style, show_value, write_out},
};
use client::{
    api::{Api, Settings, Via},
    credentials::UserCredentials,
    identity_file,
    profile::{Home, Profile, ProfileError, ProxyAddr},
};
use net::clock::SystemClock;
use serde_json::{Value, json};
use std::{path::Path, process::ExitCode, time::Duration};
use types::{Code, Public, Time};

/// Key in the profile's file: the Proxy's version when the user logged in, for [`version::hint`].
pub(super) const SERVER_VERSION: &str = "server_version";

/// A user, the way to the cluster, and proof.
pub(crate) struct LoggedIn {
    pub(crate) proxy: ProxyAddr,
    pub(crate) credentials: UserCredentials,
    /// Absent with an identity file.
    pub(crate) profile: Option<(Home, Profile)>,
}

pub(super) fn now() -> Time {
    Time::from(std::time::SystemTime::now())
}

/// `--proxy`, read.
pub(super) fn proxy_flag(global: &Global) -> Result<Option<ProxyAddr>, Public> {
    global
        .proxy
        .as_deref()
        .map(|text| text.parse().map_err(|error: client::profile::BadProxyAddr| crate::exit::usage(error.to_string())))
        .transpose()
}

/// The operating system's name for whoever runs this.
pub(super) fn local_user() -> Option<String> {
    let named = nix::unistd::User::from_uid(nix::unistd::Uid::effective()).ok().flatten().map(|user| user.name);
    named.or_else(|| std::env::var("USER").ok()).filter(|name| !name.is_empty())
}

/// The command that gets fresh certificates.
fn cure(proxy: Option<&ProxyAddr>, user: Option<&str>) -> String {
    let proxy = proxy.map_or_else(|| "<address>".into(), ToString::to_string);
    let user = user.map(|user| format!(" --user={user}")).unwrap_or_default();
    format!("log in: tsh login --proxy={proxy}{user}")
}

fn not_logged_in(proxy: Option<&ProxyAddr>, user: Option<&str>) -> Public {
    let at = proxy.map(|proxy| format!(" at {proxy}")).unwrap_or_default();
    Public::new(Code::LoginRequired, format!("not logged in{at}")).hint(cure(proxy, user))
}

/// The user of this command, with certificates that are still valid.
pub(crate) fn logged_in(global: &Global) -> Result<LoggedIn, Public> {
    let found = match &global.identity {
        Some(path) => from_identity_file(path, proxy_flag(global)?)?,
        None => from_profile(global)?,
    };
    let credentials = &found.credentials;
    if credentials.is_expired(now()) {
        let message = format!("the certificate of {} expired at {}", credentials.user(), credentials.expires);
        let hint = match &global.identity {
            Some(_) => "get a new identity file: tctl auth sign, or tsh login --out".into(),
            None => cure(Some(&found.proxy), Some(credentials.user().as_str())),
        };
        return Err(Public::new(Code::LoginExpired, message).hint(hint));
    }
    Ok(found)
}

fn from_profile(global: &Global) -> Result<LoggedIn, Public> {
    let proxy = proxy_flag(global)?;
    let user = global.user.as_deref();
    let home = Home::find().map_err(|error| said(&error, proxy.as_ref(), user))?;
    let profile = home.profile(proxy.as_ref()).map_err(|error| said(&error, proxy.as_ref(), user))?;
    if user.is_some_and(|user| user != profile.user.as_str()) {
        return Err(not_logged_in(Some(&profile.web_proxy_addr), user));
    }
    let credentials =
        home.credentials(&profile).map_err(|error| said(&error, Some(&profile.web_proxy_addr), Some(profile.user.as_str())))?;
    Ok(LoggedIn { proxy: profile.web_proxy_addr.clone(), credentials, profile: Some((home, profile)) })
}

fn said(error: &ProfileError, proxy: Option<&ProxyAddr>, user: Option<&str>) -> Public {
    match error {
        ProfileError::NotLoggedIn => not_logged_in(proxy, user),
        other => Public { hint: Some(cure(proxy, user)), ..other.public() },
    }
}

/// The Proxy is the one given, or that of the profile in use when it is of the same cluster.
fn from_identity_file(path: &Path, proxy: Option<ProxyAddr>) -> Result<LoggedIn, Public> {
    let credentials = identity_file::load(path).map_err(|error| {
        Public::new(Code::LoginRequired, error.to_string()).hint("give a file that tctl auth sign or tsh login --out wrote")
    })?;
    let of_profile = || Home::find().and_then(|home| home.profile(None)).ok().filter(|profile| profile.cluster == *credentials.cluster());
    match proxy.or_else(|| of_profile().map(|profile| profile.web_proxy_addr)) {
        Some(proxy) => Ok(LoggedIn { proxy, credentials, profile: None }),
        None => Err(crate::exit::usage("an identity file does not say where its cluster is").hint("give --proxy=<address> too")),
    }
}

/// A connection to the Auth Service through the Proxy, as the logged-in user.
pub(crate) fn open(global: &Global) -> Result<Connection, Failure> {
    let user = logged_in(global).could("connect to the cluster")?;
    user.hint();
    let via = Via::Proxy(user.proxy.to_string());
    connect(&user, via, "tsh", global.skip_version_check).could("connect to the cluster")
}

/// The same for `tctl` away from the Auth Service's host. `server` is an Auth Service or a Proxy: both answer to the same
/// protocol, so it need not be known which.
pub(crate) fn open_for_tctl(identity: Option<&Path>, server: Option<&str>, skip_version_check: bool) -> Result<Connection, Failure> {
    const WHAT: &str = "connect to the cluster";
    let as_if = |proxy: Option<&str>| Global {
        proxy: proxy.map(str::to_owned),
        user: None,
        login: None,
        identity: identity.map(Path::to_owned),
        insecure: false,
        ca_pin: Vec::new(),
        skip_version_check,
        debug: false,
    };
    let user = match logged_in(&as_if(server)) {
        // No profile is called like an Auth Service: the one in use may be of its cluster.
        Err(error) if error.is(Code::LoginRequired) && identity.is_none() && server.is_some() => logged_in(&as_if(None)),
        other => other,
    };
    let user = user.could(WHAT)?;
    let address = server.map_or_else(|| user.proxy.to_string(), str::to_owned);
    connect(&user, Via::Proxy(address), "tctl", skip_version_check).could(WHAT)
}

fn connect(user: &LoggedIn, via: Via, role: &str, skip_version_check: bool) -> Result<Connection, Public> {
    let runtime = runtime()?;
    let api = runtime.block_on(async { user.api(via, role, skip_version_check) })?;
    Ok(Connection::new(runtime, api, user.credentials.cluster().clone()))
}

impl LoggedIn {
    /// Inside a runtime; connects at the first call.
    pub(super) fn api(&self, via: Via, role: &str, skip_version_check: bool) -> Result<Api, Public> {
        let access = self.credentials.access().map_err(|error| Public::new(Code::Certificate, error.to_string()))?;
        Ok(Api::new(Settings {
            via,
            access,
            role: role.into(),
            version: crate::version(),
            skip_version_check,
            clock: SystemClock::shared(),
        }))
    }
    /// Tells the user, once a day, that this program should be upgraded.
    pub(super) fn hint(&self) {
        if let Some((home, profile)) = &self.profile {
            let server = profile.extra.get(SERVER_VERSION).and_then(Value::as_str).and_then(|text| text.parse().ok());
            version::hint(home, server.as_ref());
        }
    }
}

/// One profile as `status` shows it.
struct Shown {
    active: bool,
    proxy: ProxyAddr,
    user: String,
    cluster: String,
    credentials: Result<UserCredentials, String>,
}

/// `tsh status`
pub(crate) fn status(global: &Global, format: Format, verbose: bool) -> Outcome {
    let shown = profiles(global).could("read the profiles")?;
    print_status(&shown, format, verbose).could("print the status")?;
    let style = Style::of_stderr();
    match shown.iter().find(|one| one.active) {
        None => {
            eprintln!("{}", style.red("Not logged in."));
            Ok(ExitCode::FAILURE)
        }
        Some(one) if !one.is_valid(now()) => {
            eprintln!("{}", style.red("Active profile expired."));
            Ok(ExitCode::FAILURE)
        }
        Some(_) => Ok(ExitCode::SUCCESS),
    }
}

/// Prints the block of the profile in use, after a login.
pub(super) fn print_current(global: &Global) -> Result<(), Public> {
    let mut shown = profiles(global)?;
    shown.retain(|one| one.active);
    print_status(&shown, Format::Text, false)
}

fn print_status(shown: &[Shown], format: Format, verbose: bool) -> Result<(), Public> {
    let now = now();
    match format {
        Format::Text => write_out(&shown.iter().map(|one| one.block(now, verbose)).collect::<Vec<_>>().join("\n")),
        Format::Json | Format::Yaml => {
            let active = shown.iter().find(|one| one.active).map(|one| one.value(now));
            let others: Vec<Value> = shown.iter().filter(|one| !one.active).map(|one| one.value(now)).collect();
            show_value(format, &json!({"active": active, "profiles": others}))
        }
    }
}

/// The identity file given, or every profile: the one in use (or of `--proxy`) first.
fn profiles(global: &Global) -> Result<Vec<Shown>, Public> {
    if let Some(path) = &global.identity {
        let LoggedIn { proxy, credentials, .. } = from_identity_file(path, proxy_flag(global)?)?;
        let (user, cluster) = (credentials.user().to_string(), credentials.cluster().to_string());
        return Ok(vec![Shown { active: true, proxy, user, cluster, credentials: Ok(credentials) }]);
    }
    let wanted = proxy_flag(global)?;
    let Ok(home) = Home::find() else { return Ok(Vec::new()) };
    let mut shown: Vec<Shown> = home
        .profiles()
        .map_err(|error| error.public())?
        .into_iter()
        .map(|profile| Shown {
            active: wanted.as_ref().map_or_else(|| home.is_current(&profile), |proxy| *proxy == profile.web_proxy_addr),
            credentials: home.credentials(&profile).map_err(|error| error.to_string()),
            proxy: profile.web_proxy_addr,
            user: profile.user.to_string(),
            cluster: profile.cluster.to_string(),
        })
        .collect();
    shown.sort_by_key(|one| !one.active);
    Ok(shown)
}

impl Shown {
    fn is_valid(&self, now: Time) -> bool {
        self.credentials.as_ref().is_ok_and(|credentials| !credentials.is_expired(now))
    }

    fn block(&self, now: Time, verbose: bool) -> String {
        let mut lines = vec![
            ("Profile URL", format!("https://{}", self.proxy)),
            ("Logged in as", self.user.clone()),
            ("Cluster", self.cluster.clone()),
        ];
        match &self.credentials {
            Ok(credentials) => {
                lines.push(("Roles", join(&credentials.identity.roles)));
                lines.push(("Logins", join(&credentials.identity.logins)));
                lines.push(("Valid until", format!("{} [{}]", credentials.expires, validity(credentials.expires, now))));
                if verbose {
                    lines.push(("Extensions", join(extensions(credentials))));
                    lines.push(("Authorities", join(credentials.trust.pins().iter().map(ToString::to_string))));
                }
            }
            Err(why) => lines.push(("Valid until", format!("- [no usable certificates: {why}]"))),
        }
        let mut out = String::new();
        for (at, (name, value)) in lines.iter().enumerate() {
            let mark = if at == 0 && self.active { '>' } else { ' ' };
            let value: String =
                value.chars().flat_map(|c| if c.is_control() { c.escape_default().collect::<Vec<_>>() } else { vec![c] }).collect();
            out.push_str(&format!("{mark} {:<19} {value}\n", format!("{name}:")));
        }
        out
    }

    fn value(&self, now: Time) -> Value {
        let mut value = json!({"profile_url": format!("https://{}", self.proxy), "username": self.user, "cluster": self.cluster, "expired": !self.is_valid(now)});
        if let (Ok(credentials), Some(object)) = (&self.credentials, value.as_object_mut()) {
            let identity = &credentials.identity;
            object.insert("roles".into(), json!(identity.roles));
            object.insert("traits".into(), json!(identity.traits));
            object.insert("logins".into(), json!(identity.logins));
            object.insert("valid_until".into(), json!(credentials.expires));
            object.insert("extensions".into(), json!(extensions(credentials)));
        }
        value
    }
}

fn extensions(credentials: &UserCredentials) -> Vec<String> {
    credentials.ssh_certificate.extensions().keys().filter(|name| *name != wire::identity::SSH_EXTENSION).cloned().collect()
}

fn join(words: impl IntoIterator<Item = impl ToString>) -> String {
    words.into_iter().map(|word| word.to_string()).collect::<Vec<_>>().join(", ")
}

/// `valid for 11h59m`, or `EXPIRED`.
fn validity(until: Time, now: Time) -> String {
    if until <= now { "EXPIRED".into() } else { format!("valid for {}", left(until.since(now))) }
}

/// Hours and minutes; seconds only in the last minute.
fn left(length: Duration) -> String {
    let seconds = length.as_secs();
    match (seconds / 3600, seconds % 3600 / 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m"),
        (hours, minutes) => format!("{hours}h{minutes}m"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_reads_as_people_say_it() {
        let check = |seconds: u64, want: &str| {
            assert_eq!(validity(Time::from_unix(1_000_000).plus(Duration::from_secs(seconds)), Time::from_unix(1_000_000)), want)
        };
        check(12 * 3600 - 1, "valid for 11h59m");
        check(30 * 3600, "valid for 30h0m");
        check(61, "valid for 1m");
        check(59, "valid for 59s");
        check(0, "EXPIRED");
    }

    #[test]
    fn a_profile_without_certificates_is_shown_with_the_reason() {
        let shown = Shown {
            active: true,
            proxy: "proxy.example.com".parse().unwrap(),
            user: "alice".into(),
            cluster: "demo".into(),
            credentials: Err("not logged in".into()),
        };
        assert_eq!(
            shown.block(Time::EPOCH, false),
            "> Profile URL:        https://proxy.example.com:3080\n  Logged in as:       alice\n  Cluster:            demo\n  Valid until:        - [no usable certificates: not logged in]\n"
        );
        assert!(!shown.is_valid(Time::EPOCH));
        assert_eq!(shown.value(Time::EPOCH)["expired"], true);
    }

    #[test]
    fn who_is_not_logged_in_reads_the_command_that_cures_it() {
        let public = not_logged_in(None, None);
        assert_eq!((public.code.as_str(), public.hint.as_deref()), ("LG-LOGIN-004", Some("log in: tsh login --proxy=<address>")));
        let public = not_logged_in(Some(&"a.example.com".parse().unwrap()), Some("bob"));
        assert_eq!(public.message, "not logged in at a.example.com:3080");
        assert_eq!(public.hint.as_deref(), Some("log in: tsh login --proxy=a.example.com:3080 --user=bob"));
    }
}
