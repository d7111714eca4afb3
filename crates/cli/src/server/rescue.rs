//! `lockgate rescue`: which release this host should run, and the file of it, from a Proxy's mirror (design 3.2).
//!
//! For a host that the cluster refuses for its version. It speaks the rescue protocol with the host's certificate, as the SSH
//! Service does by itself in quarantine, and may run beside it. Nothing is installed: the file is checked by its digest and put
//! where the operator says.

use super::RescueArgs;
use crate::{
    config::{self, Config},
    exit::{Could as _, Outcome},
    output::{Format, show_value, write_out},
};
use agent::rescue::Visit;
use client::{host::HostCredentials, known_proxies};
use net::clock::SystemClock;
use serde_json::json;
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};
use types::{Code, Extra, Public};
use wire::rescue::{Action, Advice, Artifact, Status, system};

/// For the whole of it, a download over a slow line included.
const DEADLINE: Duration = Duration::from_secs(3600);

pub(crate) fn rescue(args: &RescueArgs) -> Outcome {
    let (data_dir, proxies) =
        settings(args.config.as_deref(), args.data_dir.as_deref(), args.proxy_server.as_deref()).could("read the configuration")?;
    let credentials =
        HostCredentials::load(&data_dir.join("host/identity.json")).map_err(|error| error.public()).could("use the host's certificate")?;
    let runtime = crate::connection::runtime().could("start the runtime")?;
    let asked = runtime.block_on(async {
        let late = || Public::new(Code::Timeout, "the Proxy did not finish in time").hint("run it again: it goes on where it ended");
        tokio::time::timeout(DEADLINE, ask(&credentials, &proxies, args.output.as_deref())).await.unwrap_or_else(|_| Err(late()))
    });
    let Rescued { advice, proxy, file } = asked.could("ask for rescue")?;
    let shown = match args.format {
        Format::Text => write_out(&text(&advice, &proxy, file.as_deref())),
        Format::Json | Format::Yaml => show_value(args.format, &json!({"proxy": proxy, "advice": advice, "file": file})),
    };
    shown.could("print the advice").map(|()| ExitCode::SUCCESS)
}

/// Where the certificate is, and whom to ask.
pub(super) fn settings(config: Option<&Path>, data_dir: Option<&Path>, proxy: Option<&str>) -> Result<(PathBuf, Vec<String>), Public> {
    let (data_dir, configured) = place(config, data_dir)?;
    let proxies = match proxy {
        Some(named) => named.split(',').map(|addr| addr.trim().to_owned()).collect(),
        None => {
            let mut named = configured;
            named.extend(known_proxies::load(&data_dir).into_iter().filter(|known| !named.contains(known)).collect::<Vec<_>>());
            named
        }
    };
    if proxies.is_empty() {
        let public = Public::new(Code::Usage, "this host's configuration names no Proxy, and it knew none when it was last well");
        return Err(public.hint("name one with --proxy-server=<proxy>:3080"));
    }
    Ok((data_dir, proxies))
}

/// Where this host's state lies, and the Proxies of its configuration.
pub(super) fn place(config: Option<&Path>, data_dir: Option<&Path>) -> Result<(PathBuf, Vec<String>), Public> {
    let config = match config {
        Some(path) => Config::load(path)?,
        None if Path::new(config::DEFAULT_PATH).exists() => Config::load(Path::new(config::DEFAULT_PATH))?,
        None => Config::default(),
    };
    let general = config.lockgate;
    let data_dir = data_dir.map(Path::to_owned).or(general.data_dir).unwrap_or_else(|| config::DEFAULT_DATA_DIR.into());
    Ok((data_dir, general.proxy_server.into_iter().chain(general.proxy_servers).collect()))
}

struct Rescued {
    advice: Advice,
    proxy: String,
    file: Option<PathBuf>,
}

/// The first Proxy that answers.
async fn ask(credentials: &HostCredentials, proxies: &[String], output: Option<&Path>) -> Result<Rescued, Public> {
    let mut failed = Public::new(Code::Unreachable, "no Proxy was asked");
    for proxy in proxies {
        match ask_one(credentials, proxy, output).await {
            Ok(rescued) => return Ok(rescued),
            Err(error) => failed = error,
        }
    }
    Err(failed)
}

async fn ask_one(credentials: &HostCredentials, proxy: &str, output: Option<&Path>) -> Result<Rescued, Public> {
    let trust = credentials.trust.swap().map_err(|error| Public::new(Code::Certificate, error.to_string()))?;
    let mut visit = Visit::open(proxy, credentials, trust, &SystemClock::shared()).await.map_err(|error| error.public())?;
    let (os, arch) = system();
    let status = Status {
        version: crate::version().to_string(),
        os: os.into(),
        arch: arch.into(),
        content: Some(wire::content::digest().to_owned()),
        refused: None,
        extra: Extra::new(),
    };
    let advice = visit.status(status).await.map_err(|error| error.public())?;
    let mut file = None;
    if let (Some(directory), Some(artifact), Action::Install) = (output, archive(&advice), advice.action) {
        let mut told = 0;
        let mut progress = |have: u64| {
            let percent = have.saturating_mul(100) / artifact.size.max(1);
            if percent >= told + 10 {
                told = percent;
                tracing::info!(percent, "fetching");
            }
        };
        file = Some(visit.fetch(artifact, directory, &mut progress).await.map_err(|error| error.public())?);
    }
    Ok(Rescued { advice, proxy: proxy.to_owned(), file })
}

/// The Proxy that says the digest also serves the file: only another source makes it worth something.
const COMPARE: &str = "Before you install it, compare the digest with SHA256SUMS or releases.toml of that release, from where you trust them, not from this Proxy.\n";

/// The archive for this system, else whatever there is.
fn archive(advice: &Advice) -> Option<&Artifact> {
    advice.artifacts.iter().find(|artifact| artifact.name.as_str().ends_with(".tar.gz")).or(advice.artifacts.first())
}

fn text(advice: &Advice, proxy: &str, file: Option<&Path>) -> String {
    let tame = |text: &str| text.chars().filter(|c| !c.is_control()).collect::<String>();
    let mut out = format!("{}.\n{}.\n", tame(&advice.why), tame(&advice.cure));
    for artifact in &advice.artifacts {
        out.push_str(&format!("  {}  {:>12}  {}\n", artifact.sha256, artifact.size, artifact.name));
    }
    match (file, archive(advice), advice.action) {
        (Some(file), ..) => out.push_str(&format!("Fetched from {proxy}, it is what that Proxy said: {}\n{COMPARE}", file.display())),
        (None, Some(artifact), Action::Install) => {
            out.push_str(&format!("Fetch {} with: lockgate rescue --output <a new directory of your own>\n{COMPARE}", artifact.name));
        }
        (None, None, Action::Install) => {
            out.push_str(&format!("The Proxy {proxy} holds no file of it: take it from where you have releases.\n"))
        }
        (None, _, Action::Wait | Action::Retry | Action::Unknown) => {}
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_advice_reads_as_what_to_do_next() {
        let artifact = Artifact {
            name: "lockgate-2.1.0-linux-amd64.tar.gz".parse().unwrap(),
            os: "linux".into(),
            arch: "amd64".into(),
            sha256: "ab".repeat(32).parse().unwrap(),
            size: 7,
            extra: Extra::new(),
        };
        let mut advice = Advice {
            action: Action::Install,
            why: "this host runs 1.0.0".into(),
            cure: "install 2.1.0\x1b[2J".into(),
            ..Advice::default()
        };
        assert!(text(&advice, "p:1", None).ends_with("The Proxy p:1 holds no file of it: take it from where you have releases.\n"));
        advice.artifacts = vec![artifact];
        let shown = text(&advice, "p:1", None);
        assert!(shown.starts_with("this host runs 1.0.0.\ninstall 2.1.0[2J.\n  abab"), "{shown}");
        let ends = "Fetch lockgate-2.1.0-linux-amd64.tar.gz with: lockgate rescue --output <a new directory of your own>\n";
        assert!(shown.ends_with(&format!("{ends}{COMPARE}")), "{shown}");
        let fetched = text(&advice, "p:1", Some(Path::new("/x/y")));
        assert!(fetched.contains("  abab") && fetched.ends_with(&format!("it is what that Proxy said: /x/y\n{COMPARE}")), "{fetched}");
    }
}
