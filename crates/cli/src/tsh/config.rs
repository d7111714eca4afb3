//! `tsh config`: what makes plain `ssh host.cluster`, `scp`, `sftp`, `git` and `rsync -e ssh` work.
//!
//! OpenSSH runs `tsh proxy ssh` for each connection, shows the user's certificate from `~/.tsh`, and believes hosts by the
//! cluster's authority in `~/.tsh/known_hosts`. Nothing but the certificates changes at the next login, so the text is
//! appended to `~/.ssh/config` once.

use super::{Global, profile};
use crate::{
    exit::{Could as _, Outcome},
    output::write_out,
};
use client::profile::{HOME_VARIABLE, Home, Paths, Profile};
use std::{path::Path, process::ExitCode};
use types::{Code, Public};

/// `tsh config`
pub(crate) fn config(global: &Global, port: u16) -> Outcome {
    let what = "print the OpenSSH configuration";
    let user = profile::logged_in(global).could(what)?;
    let (home, profile) = user
        .profile
        .as_ref()
        .ok_or_else(|| crate::exit::usage("the configuration needs a login; it cannot use an identity file"))
        .could(what)?;
    let tsh = std::env::current_exe().could("find this program")?;
    let home_variable = std::env::var_os(HOME_VARIABLE).filter(|value| !value.is_empty()).map(|_| home.path());
    let text = render(profile, &absolute(home, profile), &command(&tsh, home_variable).could(what)?, port).could(what)?;
    write_out(&text).could(what).map(|()| ExitCode::SUCCESS)
}

fn absolute(home: &Home, profile: &Profile) -> Paths {
    let place = std::path::absolute(home.path()).unwrap_or_else(|_| home.path().to_owned());
    Home::at(place).paths(profile)
}

/// How OpenSSH starts this program. It may be called by another of its names, and may use another directory.
fn command(program: &Path, home: Option<&Path>) -> Result<String, Public> {
    let program_text = shell_word(program)?;
    let tsh = if program.file_name().is_some_and(|name| name == "tsh") { program_text } else { format!("{program_text} tsh") };
    match home {
        None => Ok(tsh),
        Some(home) => {
            let home = std::path::absolute(home).unwrap_or_else(|_| home.to_owned());
            Ok(format!("env {HOME_VARIABLE}={} {tsh}", shell_word(&home)?))
        }
    }
}

fn render(profile: &Profile, paths: &Paths, tsh: &str, port: u16) -> Result<String, Public> {
    let (cluster, proxy) = (&profile.cluster, &profile.web_proxy_addr);
    let jump = profile.ssh_proxy_addr.as_deref().and_then(|address| address.rsplit_once(':'));
    let (names, jump) = match jump {
        Some((host, port)) => (format!("*.{cluster} {cluster}-jump"), jump_block(profile, host.trim_matches(['[', ']']), port)),
        None => (format!("*.{cluster}"), String::new()),
    };
    Ok(format!(
        "# Begin Lockgate configuration for {cluster} at {proxy}
# Append it once:  tsh config >> ~/.ssh/config
# Then these work as long as you are logged in (tsh login):
#   ssh <login>@<host>.{cluster}
#   scp file <login>@<host>.{cluster}:
#   git clone ssh://<login>@<host>.{cluster}/srv/repository.git
#   rsync -e ssh -a directory <login>@<host>.{cluster}:

# All hosts of {cluster}
Host {names}
    UserKnownHostsFile {known_hosts}
    IdentityFile {key}
    CertificateFile {certificate}
    IdentitiesOnly yes
    StrictHostKeyChecking yes
    HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com,ecdsa-sha2-nistp256-cert-v01@openssh.com

# The hosts, through tsh
Host *.{cluster}
    Port {port}
    ProxyCommand {tsh} proxy ssh --cluster={cluster} --proxy={proxy} %r@%h:%p
{jump}# End Lockgate configuration for {cluster}
",
        known_hosts = ssh_word(&paths.known_hosts)?,
        key = ssh_word(&paths.key)?,
        certificate = ssh_word(&paths.ssh_certificate)?,
    ))
}

/// The Proxy's jump server under a name of its own: the Proxy's name stays free for the administrator of that machine.
fn jump_block(profile: &Profile, host: &str, port: &str) -> String {
    let (cluster, user) = (&profile.cluster, &profile.user);
    format!(
        "
# Without tsh, through the Proxy's jump server:  ssh -J {cluster}-jump <login>@<host>.{cluster}
Host {cluster}-jump
    HostName {host}
    Port {port}
    User {user}
"
    )
}

fn text(path: &Path) -> Result<&str, Public> {
    let text = path.to_str().filter(|text| !text.contains(char::is_control));
    text.ok_or_else(|| Public::new(Code::Config, format!("the path {} cannot stand in a configuration file", path.display())))
}

/// One argument in ssh_config(5): quoted, tokens escaped.
fn ssh_word(path: &Path) -> Result<String, Public> {
    let text = text(path)?;
    if text.contains('"') {
        return Err(Public::new(Code::Config, format!("the path {text} cannot stand in ssh's configuration: it has a quotation mark")));
    }
    Ok(format!("\"{}\"", text.replace('%', "%%")))
}

/// One word of a `ProxyCommand`: for the shell that runs it, tokens escaped.
fn shell_word(path: &Path) -> Result<String, Public> {
    let mut out = String::from("\"");
    for c in text(path)?.chars() {
        match c {
            '"' | '\\' | '$' | '`' => out.extend(['\\', c]),
            '%' => out.push_str("%%"),
            c => out.push(c),
        }
    }
    out.push('"');
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{ClusterName, Extra, UserName};

    fn profile() -> Profile {
        Profile {
            web_proxy_addr: "proxy.example.com".parse().unwrap(),
            user: UserName::new("alice").unwrap(),
            cluster: ClusterName::new("demo").unwrap(),
            ssh_proxy_addr: Some("proxy.example.com:3023".into()),
            extra: Extra::new(),
        }
    }

    #[test]
    fn the_configuration_sends_every_host_of_the_cluster_through_tsh() {
        let (home, profile) = (Home::at("/home/alice/.tsh"), profile());
        let text = render(&profile, &home.paths(&profile), &command(Path::new("/usr/bin/tsh"), None).unwrap(), 3022).unwrap();
        assert!(!text.contains("Host proxy"), "the Proxy's own name is the administrator's");
        for line in [
            "Host *.demo demo-jump",
            "    UserKnownHostsFile \"/home/alice/.tsh/known_hosts\"",
            "    IdentityFile \"/home/alice/.tsh/keys/proxy.example.com/alice\"",
            "    CertificateFile \"/home/alice/.tsh/keys/proxy.example.com/alice-ssh/demo-cert.pub\"",
            "Host *.demo",
            "    Port 3022",
            "    ProxyCommand \"/usr/bin/tsh\" proxy ssh --cluster=demo --proxy=proxy.example.com:3080 %r@%h:%p",
            "Host demo-jump",
            "    HostName proxy.example.com",
            "    Port 3023",
            "    User alice",
        ] {
            assert!(text.lines().any(|found| found == line), "{line:?} is missing in\n{text}");
        }
    }

    #[test]
    fn the_command_is_right_under_every_name_and_place_of_the_program() {
        let check =
            |program: &str, home: Option<&str>, want: &str| assert_eq!(command(Path::new(program), home.map(Path::new)).unwrap(), want);
        check("/usr/local/bin/lockgate", None, "\"/usr/local/bin/lockgate\" tsh");
        check("/opt/my tools/100%/tsh", None, "\"/opt/my tools/100%%/tsh\"");
        check("/usr/bin/tsh", Some("/tmp/$x"), "env LOCKGATE_HOME=\"/tmp/\\$x\" \"/usr/bin/tsh\"");
    }

    #[test]
    fn a_path_that_would_break_out_of_its_line_is_refused() {
        assert!(ssh_word(Path::new("/tmp/a\nProxyCommand evil")).is_err());
        assert!(ssh_word(Path::new("/tmp/a\"b")).is_err());
    }
}
