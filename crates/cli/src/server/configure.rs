//! `lockgate configure`: prints a commented configuration file, or checks one and reports every fault.

use super::ConfigureArgs;
use crate::{
    config::Config,
    exit::{Could as _, Failure, Outcome, usage},
    output::{Style, write_out},
};
use std::{fmt::Write as _, io::Write as _, os::unix::fs::OpenOptionsExt as _, path::Path, process::ExitCode};
use types::{Code, Public, SystemRole};

pub(super) fn configure(args: &ConfigureArgs) -> Outcome {
    match &args.test {
        Some(path) => test(path),
        None => print(args),
    }
}

fn test(path: &Path) -> Outcome {
    let config = Config::load(path).could("read the configuration")?;
    let faults = config.check();
    if faults.is_empty() {
        write_out(&format!("{}: {}\n", path.display(), Style::of_stdout().green("ok"))).could("print")?;
        return Ok(ExitCode::SUCCESS);
    }
    Err(Failure::new("accept the configuration", Public::new(Code::Config, format!("{}: {}", path.display(), faults.join("; ")))))
}

fn print(args: &ConfigureArgs) -> Outcome {
    let text = render(args);
    let faults = Config::parse(&text).map(|config| config.check()).unwrap_or_else(|fault| vec![fault]);
    if !faults.is_empty() {
        return Err(Failure::new("write a configuration", usage(faults.join("; "))));
    }
    match &args.output {
        None => write_out(&text).could("print the configuration")?,
        Some(path) => {
            // May hold a token; an existing file is somebody's work.
            let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
            file.and_then(|mut file| file.write_all(text.as_bytes())).could(format!("write {}", path.display()))?;
            write_out(&format!("Wrote {}. Start with: lockgate start --config {}\n", path.display(), path.display())).could("print")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// YAML with a double-quoted scalar: JSON strings are valid YAML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn render(args: &ConfigureArgs) -> String {
    let has = |role: SystemRole| args.roles.is_empty() || args.roles.contains(&role);
    let (auth, proxy, ssh) = (has(SystemRole::Auth), has(SystemRole::Proxy), has(SystemRole::Node));
    let mut out = String::from("# Lockgate configuration. Every key: docs/reference/config.md\nversion: v1\nlockgate:\n");
    let mut line = |text: String| {
        // Writing into a String cannot fail.
        let _infallible = writeln!(out, "{text}");
    };
    let path = |path: &Path| quoted(&path.display().to_string());
    if let Some(name) = &args.node_name {
        line(format!("  nodename: {}", quoted(name)));
    }
    line(format!("  data_dir: {}", args.data_dir.as_deref().map_or_else(|| crate::config::DEFAULT_DATA_DIR.into(), path)));
    for (key, value) in [("auth_token", &args.token), ("auth_server", &args.auth_server), ("proxy_server", &args.proxy)] {
        if let Some(value) = value {
            line(format!("  {key}: {}", quoted(value)));
        }
    }
    if !args.ca_pin.is_empty() {
        line(format!("  ca_pin: [{}]", args.ca_pin.iter().map(|pin| quoted(pin)).collect::<Vec<_>>().join(", ")));
    }
    line("  log:\n    severity: info\n    format: text".into());
    line(format!("auth_service:\n  enabled: {auth}"));
    if auth {
        if let Some(name) = &args.cluster_name {
            line(format!("  cluster_name: {}", quoted(name)));
        }
        line("  authentication:\n    second_factor: otp".into());
    }
    line(format!("proxy_service:\n  enabled: {proxy}"));
    if let (true, Some(address)) = (proxy, &args.public_addr) {
        line(format!("  public_addr: [{}]", quoted(address)));
    }
    if let (true, Some(cert), Some(key)) = (proxy, &args.cert_file, &args.key_file) {
        line(format!("  https_keypairs:\n    - key_file: {}\n      cert_file: {}", path(key), path(cert)));
    }
    line(format!("ssh_service:\n  enabled: {ssh}"));
    if let (true, Some(labels)) = (ssh, &args.node_labels) {
        line("  labels:".into());
        for label in labels.split(',') {
            let (key, value) = label.split_once('=').unwrap_or((label, ""));
            line(format!("    {}: {}", quoted(key.trim()), quoted(value.trim())));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    fn rendered(words: &[&str]) -> String {
        let mut all = vec!["lockgate", "configure"];
        all.extend(words);
        let super::super::Command::Configure(args) = super::super::Cli::parse_from(all).command else { panic!() };
        render(&args)
    }

    #[test]
    fn what_configure_prints_is_read_back_without_fault() {
        let text = rendered(&[
            "--roles=node",
            "--proxy=p.example.com:3080",
            "--token=/run/token",
            "--node-labels=env=prod,team=a: b",
            "--node-name=db-7",
        ]);
        let config = Config::parse(&text).unwrap();
        assert_eq!(config.check(), Vec::<String>::new());
        assert_eq!(config.ssh_service.labels["team"], "a: b");
        assert_eq!(config.auth_service.enabled, Some(false));
        assert_eq!(config.lockgate.proxy_server.as_deref(), Some("p.example.com:3080"));
    }
}
