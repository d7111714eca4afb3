//! `tsh login` and `tsh logout`.
//!
//! The order matters: the Proxy's certificate and version are checked before a password is asked for, and nothing is
//! written before the cluster has answered. A certificate that this machine does not trust is shown to the person once, as
//! ssh shows a new host, and from then on the cluster's own authority is in the profile; scripts must bring `--ca-pin`.

mod ask;
mod otp;

use super::{Global, LoginArgs, profile, version};
use crate::{
    connection::runtime,
    exit::{Could as _, Outcome, usage},
    output::write_out,
};
use client::{
    credentials::UserCredentials,
    identity_file,
    login::{InviteLink, Login, LoginError, Ping, Web, WebTrust},
    profile::{Home, Profile, ProfileError, ProxyAddr},
};
use net::{clock::SystemClock, tls::Pin};
use otp::Authenticator;
use std::{net::IpAddr, path::Path, process::ExitCode, time::Duration};
use types::{Code, Public, Secret, Skew, Ttl, UserName, Version, version::Direction};

/// `tsh login`
pub(crate) fn login(global: &Global, args: &LoginArgs) -> Outcome {
    const WHAT: &str = "log in";
    let ttl = args.ttl.as_deref().map(read_ttl).transpose().could(WHAT)?;
    let invite = args.invite.as_deref().map(str::parse::<InviteLink>).transpose().map_err(|error| error.public()).could(WHAT)?;
    if invite.is_none() && already(global, args).could(WHAT)? {
        return profile::print_current(global).could("print the status").map(|()| ExitCode::SUCCESS);
    }
    let runtime = runtime().could(WHAT)?;
    let done = runtime.block_on(async {
        match &invite {
            Some(link) => accept(global, args, link, ttl).await,
            None => with_password(global, args, ttl).await,
        }
    });
    done.could(if invite.is_some() { "take the invitation" } else { WHAT })?;
    if args.out.is_none() {
        profile::print_current(global).could("print the status")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `tsh logout`
pub(crate) fn logout(global: &Global) -> Outcome {
    const WHAT: &str = "log out";
    let proxy = profile::proxy_flag(global).could(WHAT)?;
    let Ok(home) = Home::find() else { return Ok(ExitCode::SUCCESS) };
    let mut found = home.profiles().map_err(|error| error.public()).could(WHAT)?;
    found.retain(|one| proxy.as_ref().is_none_or(|proxy| *proxy == one.web_proxy_addr));
    found.retain(|one| global.user.as_deref().is_none_or(|user| user == one.user.as_str()));
    let mut text = String::new();
    for one in &found {
        home.logout(one).map_err(|error| error.public()).could(WHAT)?;
        text.push_str(&format!("Logged out {} from {}.\n", one.user, one.web_proxy_addr));
    }
    if found.is_empty() {
        text.push_str("Nobody was logged in.\n");
    }
    write_out(&text).could(WHAT).map(|()| ExitCode::SUCCESS)
}

/// `8h`, `30m`; a bare number is minutes, as in the field's best-known client.
fn read_ttl(text: &str) -> Result<Ttl, Public> {
    let minutes = text.trim().parse::<u64>().ok().and_then(|minutes| minutes.checked_mul(60)).map(Ttl::from_secs);
    let ttl = match minutes {
        Some(ttl) => ttl,
        None => text.parse().map_err(|error: types::time::BadTtl| usage(error.to_string()))?,
    };
    if ttl.0.is_zero() { Err(usage("a certificate's life is longer than nothing; write --ttl=8h or --ttl=30m")) } else { Ok(ttl) }
}

/// Whether a valid login is all that was asked for; makes it the one in use.
fn already(global: &Global, args: &LoginArgs) -> Result<bool, Public> {
    let fresh = global.user.is_some() || args.ttl.is_some() || args.out.is_some() || global.identity.is_some() || !global.ca_pin.is_empty();
    if fresh {
        return Ok(false);
    }
    let proxy = profile::proxy_flag(global)?;
    let Ok((home, (profile, credentials))) = Home::find().and_then(|home| home.load(proxy.as_ref()).map(|loaded| (home, loaded))) else {
        return Ok(false);
    };
    let other = args.cluster.as_deref().is_some_and(|cluster| cluster != profile.cluster.as_str());
    if other || credentials.is_expired(profile::now()) {
        return Ok(false);
    }
    home.set_current(&profile.web_proxy_addr).map_err(|error| error.public())?;
    Ok(true)
}

/// The profile of that Proxy, or the one in use.
fn known(proxy: Option<&ProxyAddr>) -> Option<(Home, Profile)> {
    let home = Home::find().ok()?;
    let profile = home.profile(proxy).ok()?;
    Some((home, profile))
}

async fn with_password(global: &Global, args: &LoginArgs, ttl: Option<Ttl>) -> Result<(), Public> {
    let flag = profile::proxy_flag(global)?;
    let known = known(flag.as_ref());
    let proxy = flag.or_else(|| known.as_ref().map(|(_, profile)| profile.web_proxy_addr.clone())).ok_or_else(|| {
        Public::new(Code::LoginRequired, "no Proxy is given, and nobody was logged in before")
            .hint("tsh login --proxy=<address> --user=<name>")
    })?;
    let user = user(global, known.as_ref().map(|(_, profile)| profile))?;
    let (web, ping) = reach(global, &proxy).await?;
    check(&ping, args.cluster.as_deref())?;
    let password = ask::password(&format!("Password for {user}: "))?;
    let mut login = Login { user, password, otp: None, ttl };
    let credentials = match ping.second_factor() {
        "otp" => match ask::otp_secret_file().filter(|path| ask::otp_variable().is_none() && path.exists()) {
            Some(path) => {
                let authenticator = Authenticator::load(&path)?;
                let first = authenticator.step(profile::now());
                // The code of this step may have been used a moment ago, and the one after it by an invitation.
                with_computed_code(&web, &mut login, &authenticator, first, |step| step.saturating_add(1)).await?
            }
            None => {
                login.otp = Some(ask::otp("One-time code: ")?);
                web.login(&login).await?
            }
        },
        _ => web.login(&login).await?,
    };
    keep(args.out.as_deref(), &proxy, &ping, &credentials)
}

/// `--user`, or whoever was logged in there, or this machine's user.
fn user(global: &Global, known: Option<&Profile>) -> Result<UserName, Public> {
    let text = global.user.clone().or_else(|| known.map(|profile| profile.user.to_string())).or_else(profile::local_user);
    let text = text.ok_or_else(|| usage("no user is given").hint("tsh login --proxy=<address> --user=<name>"))?;
    UserName::new(text).map_err(|error| usage(error.to_string()))
}

/// Sets the password and the second factor that an invitation asks for, then logs in.
async fn accept(global: &Global, args: &LoginArgs, link: &InviteLink, ttl: Option<Ttl>) -> Result<(), Public> {
    // The link has the name that the Proxy knows itself by; whoever reaches it by another says so.
    let proxy = profile::proxy_flag(global)?.unwrap_or_else(|| link.proxy.clone());
    let (web, ping) = reach(global, &proxy).await?;
    check(&ping, args.cluster.as_deref())?;
    let invite = web.invite(&link.secret).await?;
    let password = ask::new_password(invite.user.as_str())?;
    let factor = if invite.otp_url.is_empty() { None } else { Some(enrol(&invite.otp_url)?) };
    web.accept_invite(&link.secret, &password, factor.as_ref().map(|(_, code)| code)).await?;
    eprintln!("The password of {} is set.", invite.user);
    let mut login = Login { user: invite.user, password, otp: None, ttl };
    let credentials = match &factor {
        None => web.login(&login).await?,
        Some((authenticator, code)) => {
            let used = authenticator.step_of(code, profile::now()).unwrap_or_else(|| authenticator.step(profile::now()));
            with_computed_code(&web, &mut login, authenticator, used.saturating_add(1), |step| step).await?
        }
    };
    keep(args.out.as_deref(), &proxy, &ping, &credentials)
}

/// Hands the second factor to the person's telephone or to the script's file; returns it with a first code.
fn enrol(url: &str) -> Result<(Authenticator, Secret), Public> {
    let authenticator = Authenticator::from_url(url)?;
    if let Some(path) = ask::otp_secret_file() {
        authenticator.save(&path)?;
        let code = authenticator.code(authenticator.step(profile::now()));
        return Ok((authenticator, code));
    }
    if !ask::person() {
        let why = "the invitation asks for a second factor, and there is no terminal to show it on";
        return Err(
            Public::new(Code::LoginRequired, why).hint("run this on a terminal, or set LOCKGATE_OTP_SECRET_FILE to a file for the secret")
        );
    }
    eprintln!("Scan this with an authenticator app:\n");
    if let Some(picture) = otp::picture(url) {
        eprintln!("{picture}\n");
    }
    eprintln!("or type this secret into it: {}\n", authenticator.base32().expose());
    for _ in 0..3 {
        let typed = ask::visible("One-time code that it shows: ")?;
        let typed = Secret::new(typed.expose().replace(' ', ""));
        if authenticator.step_of(&typed, profile::now()).is_some() {
            return Ok((authenticator, typed));
        }
        eprintln!("That is not the code of this moment. If it stays so, compare this machine's clock with the telephone's.");
    }
    Err(Public::new(Code::LoginFailed, "the one-time code does not fit").hint("try again; the invitation is not used up"))
}

/// Logs in with a code that is computed here; when it is refused, once more with the code that `later` says of the next step.
async fn with_computed_code(
    web: &Web,
    login: &mut Login,
    authenticator: &Authenticator,
    first: u64,
    later: impl Fn(u64) -> u64,
) -> Result<UserCredentials, LoginError> {
    login.otp = Some(authenticator.code(first));
    match web.login(login).await {
        Err(LoginError::Refused(public)) if public.is(Code::LoginFailed) => {}
        other => return other,
    }
    let seconds = authenticator.left(profile::now());
    eprintln!("Waiting {seconds} s for the next one-time code ...");
    tokio::time::sleep(Duration::from_millis(seconds.saturating_mul(1000).saturating_add(200))).await;
    login.otp = Some(authenticator.code(later(authenticator.step(profile::now()))));
    web.login(login).await
}

/// Reaches a Proxy that is trusted, asking the person about one that is not.
async fn reach(global: &Global, proxy: &ProxyAddr) -> Result<(Web, Ping), Public> {
    let clock = SystemClock::shared();
    let web = Web::new(proxy.clone(), trust(global, proxy)?, &crate::version(), &clock)?;
    let pin = match web.ping().await {
        Ok(ping) => return Ok((web, ping)),
        Err(LoginError::Untrusted { why, fingerprint, authority: Some(pin), .. }) if ask::person() && global.ca_pin.is_empty() => {
            if !confirmed(proxy, &why, &fingerprint, &pin)? {
                return Err(Public::new(Code::Certificate, "the Proxy's certificate was not accepted"));
            }
            pin
        }
        Err(error) => return Err(error.public()),
    };
    let web = Web::new(proxy.clone(), WebTrust::Pins(vec![pin]), &crate::version(), &clock)?;
    let ping = web.ping().await?;
    Ok((web, ping))
}

fn trust(global: &Global, proxy: &ProxyAddr) -> Result<WebTrust, Public> {
    if global.insecure {
        eprintln!("warning: --insecure: the certificate of {proxy} is not checked; whoever answers there gets the password");
        return Ok(WebTrust::Anyone);
    }
    if !global.ca_pin.is_empty() {
        let pins =
            global.ca_pin.iter().flat_map(|text| text.split(',')).map(|text| text.parse::<Pin>().map_err(|error| usage(error.to_string())));
        return Ok(WebTrust::Pins(pins.collect::<Result<_, _>>()?));
    }
    let kept = known(Some(proxy)).and_then(|(home, profile)| home.credentials(&profile).ok());
    Ok(WebTrust::SystemAnd(kept.map(|credentials| credentials.trust.host_tls.clone()).unwrap_or_default()))
}

fn confirmed(proxy: &ProxyAddr, why: &str, fingerprint: &str, pin: &Pin) -> Result<bool, Public> {
    eprintln!("The authenticity of {proxy} cannot be established: {why}.");
    eprintln!("Its certificate is {fingerprint},");
    eprintln!("its cluster's authority is {pin}.");
    eprintln!("Compare the authority with `tctl status` on the Auth Service.");
    for _ in 0..3 {
        match ask::visible("Do you trust this authority from now on (yes/no)? ")?.expose().trim().to_ascii_lowercase().as_str() {
            "yes" => return Ok(true),
            "no" => return Ok(false),
            _ => eprintln!("Please write yes or no."),
        }
    }
    Ok(false)
}

/// Version and cluster, before anything is asked (rule G4).
fn check(ping: &Ping, cluster: Option<&str>) -> Result<(), Public> {
    let theirs = ping.server_version.parse::<Version>().ok();
    Skew::judge(Direction::ServerFirst, Some(&crate::version()), theirs.as_ref()).accepted().map_err(Clone::clone)?;
    match cluster {
        Some(cluster) if cluster != ping.cluster_name => {
            Err(Public::new(Code::NotFound, format!("the Proxy knows no cluster \"{cluster}\""))
                .hint(format!("its cluster is {}", ping.cluster_name)))
        }
        _ => Ok(()),
    }
}

/// Writes the credentials to where they belong.
fn keep(out: Option<&Path>, proxy: &ProxyAddr, ping: &Ping, credentials: &UserCredentials) -> Result<(), Public> {
    if let Some(path) = out {
        identity_file::save(path, credentials).map_err(|error| Public::new(Code::Config, error.to_string()))?;
        return write_out(&format!(
            "Wrote the identity of {} to {}, valid until {}.\nUse it: tsh -i {} --proxy={proxy} ls\n",
            credentials.user(),
            path.display(),
            credentials.expires,
            super::env::quoted(&path.to_string_lossy())
        ));
    }
    let home = Home::find().map_err(|error: ProfileError| error.public())?;
    let mut extra = types::Extra::new();
    extra.insert(profile::SERVER_VERSION.into(), ping.server_version.clone().into());
    let profile = Profile {
        web_proxy_addr: proxy.clone(),
        user: credentials.user().clone(),
        cluster: credentials.cluster().clone(),
        ssh_proxy_addr: ping.ssh_addr().and_then(|address| jump_address(address, proxy)),
        extra,
    };
    home.save(&profile, credentials).map_err(|error| error.public())?;
    version::hint(&home, ping.server_version.parse().ok().as_ref());
    Ok(())
}

/// A jump server that listens everywhere is reached where the Proxy is.
fn jump_address(told: &str, proxy: &ProxyAddr) -> Option<String> {
    let (host, port) = told.rsplit_once(':')?;
    let port: u16 = port.parse().ok()?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let anywhere = host.is_empty() || host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified());
    let host = if anywhere { proxy.host() } else { host };
    let fits = port != 0 && host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':'));
    fits.then(|| if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_number_of_a_ttl_is_minutes() {
        let check = |text: &str, want: Option<Ttl>| assert_eq!(read_ttl(text).ok(), want, "{text}");
        check("30", Some(Ttl::from_secs(1800)));
        check("8h", Some(Ttl::hours(8)));
        check("90s", Some(Ttl::from_secs(90)));
        check("0", None);
        check("soon", None);
        check("-5", None);
        check("99999999999999999999", None);
    }

    #[test]
    fn an_invitation_says_where_it_is_taken_and_never_shows_its_secret() {
        let check = |text: &str, want: Option<&str>| {
            assert_eq!(text.parse::<InviteLink>().ok().map(|link| link.proxy.to_string()), want.map(str::to_owned), "{text}")
        };
        check("https://proxy.example.com:3080/web/invite/0123456789abcdef", Some("proxy.example.com:3080"));
        check("https://proxy.example.com/web/invite/0123456789abcdef", Some("proxy.example.com:443"));
        check("https://127.0.0.1:34567/web/invite/0123456789abcdef/", Some("127.0.0.1:34567"));
        check("http://proxy.example.com:3080/web/invite/0123456789abcdef", None);
        check("https://proxy.example.com:3080/web/invite/../../etc", None);
        check("0123456789abcdef", None);
        let error = "https://p.example.com/x/0123456789abcdef".parse::<InviteLink>().unwrap_err();
        assert!(!error.to_string().contains("0123456789abcdef"), "{error}");
    }

    #[test]
    fn a_jump_server_is_where_a_client_can_reach_it() {
        let proxy: ProxyAddr = "proxy.example.com".parse().unwrap();
        let check = |told: &str, want: Option<&str>| assert_eq!(jump_address(told, &proxy).as_deref(), want, "{told}");
        check("0.0.0.0:3023", Some("proxy.example.com:3023"));
        check("[::]:3023", Some("proxy.example.com:3023"));
        check("127.0.0.1:40001", Some("127.0.0.1:40001"));
        check("jump.example.com:3023", Some("jump.example.com:3023"));
        check("[2001:db8::1]:22", Some("[2001:db8::1]:22"));
        check("evil\nProxyCommand x:22", None);
        check("nonsense", None);
    }

    #[test]
    fn a_cluster_of_another_name_or_version_is_refused_before_any_password() {
        let ping = |version: String| Ping { server_version: version, cluster_name: "demo".into(), ..Ping::default() };
        let ours = crate::version();
        assert!(check(&ping(ours.to_string()), None).is_ok());
        assert!(check(&ping(ours.to_string()), Some("demo")).is_ok());
        assert!(check(&ping(ours.to_string()), Some("other")).unwrap_err().is(Code::NotFound));
        assert!(check(&ping(format!("{}.0.0", ours.major() + 2)), None).unwrap_err().is(Code::VersionTooOld));
        assert!(check(&ping("?".into()), None).unwrap_err().is(Code::VersionUnreadable));
    }
}
