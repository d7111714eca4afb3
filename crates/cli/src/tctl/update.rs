//! `tctl update …`: which release hosts should run, said by hand, and how far they are (docs/updates.md).
//!
//! A target is written into the document `update_directive`; the Auth Service signs it and gives it its generation. It names archives by
//! digest, taken from a mirror or typed: hosts install only what the vendor vouches for under the same digest.

use super::{Global, connect};
use crate::{
    exit::{Could as _, Outcome, usage},
    output::{Format, Style, Table, show, show_value, write_out},
};
use clap::{Args, Subcommand};
use serde_json::json;
use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    process::ExitCode,
};
use types::{
    Code, HostId, Labels, Metadata, Public, Resource, ResourceName, Sha256, SystemRole, Time, Ttl, Version,
    kind::{Member, singleton},
    update::{Directive, Target, UpdateDirective, UpdateReport},
};
use upgrade::updater::{Host, target_for};

#[derive(Subcommand, Debug)]
pub(crate) enum Update {
    /// Says which release hosts should run
    #[command(
        after_help = "Hosts with an updater (lockgate update agent) move by themselves; the first target that fits a host counts, and a new one comes first.\nDigests come from a mirror's manifest.json, or are typed.\n\nExamples:\n  tctl update target 1.1.0 --mirror=/srv/releases --hosts=web-1\n  tctl update target 1.1.0 --mirror=/srv/releases --roles=node --share=20\n  tctl update target --clear"
    )]
    Target(Box<TargetArgs>),
    /// Shows which release each host should run, and how far it is
    Status {
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
}

#[derive(Args, Debug)]
pub(crate) struct TargetArgs {
    /// The release
    #[arg(required_unless_present = "clear")]
    version: Option<Version>,
    /// Mirror of releases: its <version>/manifest.json has the digests
    #[arg(long)]
    mirror: Option<PathBuf>,
    /// Digest of an archive, system=sha256, e.g. linux/amd64=…; repeated, in place of --mirror
    #[arg(long, value_name = "SYSTEM=SHA256", conflicts_with = "mirror")]
    artifact: Vec<String>,
    /// Only these hosts, by name or id
    #[arg(long, value_delimiter = ',')]
    hosts: Vec<String>,
    /// Only hosts with no other roles than these, of auth, proxy and node
    #[arg(long, value_delimiter = ',')]
    roles: Vec<SystemRole>,
    /// Only so many percent of them, chosen by chance and the same at each look
    #[arg(long, value_parser = clap::value_parser!(u16).range(0..=100))]
    share: Option<u16>,
    /// Tries again what hosts have marked as not working
    #[arg(long)]
    retry: bool,
    /// How long it holds
    #[arg(long, default_value = "30d")]
    holds: Ttl,
    /// Forgets the targets before this one
    #[arg(long)]
    replace: bool,
    /// Takes all targets away: nobody is moved
    #[arg(long, conflicts_with_all = ["version", "mirror", "artifact", "hosts", "roles", "share", "retry"])]
    clear: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
}

pub(crate) fn run(global: &Global, what: &Update) -> Outcome {
    match what {
        Update::Target(args) => target(global, args),
        Update::Status { format } => status(global, *format),
    }
}

fn name() -> Result<ResourceName, Public> {
    ResourceName::new(singleton::UPDATE_DIRECTIVE).map_err(|error| Public::new(Code::Internal, error.to_string()))
}

fn target(global: &Global, args: &TargetArgs) -> Outcome {
    const COULD: &str = "set the target";
    let connection = connect::open(global)?;
    let api = connection.api();
    let name = name().could(COULD)?;
    let known = connection.run(api.find::<UpdateDirective>(&name)).could(COULD)?;
    let mut document = known.clone().unwrap_or_else(|| Resource::new(Metadata::named(name), UpdateDirective::default()));
    let spec = &mut document.spec;
    if args.clear || args.replace {
        spec.targets.clear();
    }
    if let Some(version) = &args.version {
        let members =
            if args.hosts.is_empty() { Vec::new() } else { connection.run(api.list::<Member>(&Labels::new())).could(COULD)?.items };
        let fresh = made(args, version, &members).could(COULD)?;
        // One for the same hosts is replaced.
        let same = |old: &Target| old.hosts == fresh.hosts && old.roles == fresh.roles && (old.wave.is_some() == fresh.wave.is_some());
        spec.targets.retain(|old| !same(old));
        spec.targets.insert(0, fresh);
    }
    spec.expires = Some(now().plus(args.holds.0).whole_seconds());
    let written = connection.run(async {
        match known {
            Some(_) => api.update(&document).await,
            None => api.create(&document).await,
        }
    });
    let written = written.could(COULD)?;
    if args.format != Format::Text {
        return show_value(args.format, &written.to_document()).could("print the directive").map(|()| ExitCode::SUCCESS);
    }
    let done = Style::of_stdout().green("Done.");
    let holds = written.spec.expires.map(|end| end.whole_seconds().to_string()).unwrap_or_default();
    let text = format!(
        "{done} Directive {} with {} targets holds until {holds}. See: tctl update status\n",
        written.spec.generation,
        written.spec.targets.len()
    );
    write_out(&text).could("print the directive").map(|()| ExitCode::SUCCESS)
}

fn now() -> Time {
    net::clock::Clock::now(&net::clock::SystemClock)
}

fn made(args: &TargetArgs, version: &Version, members: &[Resource<Member>]) -> Result<Target, Public> {
    let artifacts = match &args.mirror {
        Some(mirror) => digests(mirror, version)?,
        None => args.artifact.iter().map(|text| artifact(text)).collect::<Result<_, _>>()?,
    };
    if artifacts.is_empty() {
        return Err(usage("no archive is named: give --mirror, or --artifact for each system"));
    }
    let hosts: Result<BTreeSet<HostId>, Public> = args.hosts.iter().map(|meant| host(meant, members)).collect();
    let wave = args.share.map(|percent| types::update::Wave { salt: uuid::Uuid::new_v4().to_string(), below: percent.saturating_mul(100) });
    Ok(Target {
        hosts: hosts?,
        roles: args.roles.iter().cloned().collect(),
        wave,
        version: version.clone(),
        artifacts,
        retry: args.retry,
        extra: types::Extra::new(),
    })
}

/// The digests of a release's archives, by system, as its manifest says.
fn digests(mirror: &Path, version: &Version) -> Result<BTreeMap<String, Sha256>, Public> {
    let path = mirror.join(version.to_string()).join("manifest.json");
    let bytes = std::fs::read(&path).map_err(|error| usage(format!("{}: {error}", path.display())))?;
    let manifest: release::Manifest =
        serde_json::from_slice(&bytes).map_err(|error| Public::new(Code::Malformed, format!("{}: {error}", path.display())))?;
    Ok(manifest.digests())
}

fn artifact(text: &str) -> Result<(String, Sha256), Public> {
    let bad = || usage(format!("\"{text}\" is not an archive's digest; write it as linux/amd64=<64 hexadecimal digits>"));
    let (system, digest) = text.split_once('=').ok_or_else(bad)?;
    Ok((system.to_owned(), digest.parse().map_err(|_| bad())?))
}

fn host(meant: &str, members: &[Resource<Member>]) -> Result<HostId, Public> {
    if let Ok(id) = meant.parse() {
        return Ok(id);
    }
    let mut named = members.iter().filter(|member| member.spec.hostname == meant).filter_map(|member| member.name().as_str().parse().ok());
    match (named.next(), named.next()) {
        (Some(id), None) => Ok(id),
        (None, _) => Err(Public::new(Code::NotFound, format!("no member is called \"{meant}\"")).hint("see: tctl inventory ls")),
        (Some(_), Some(_)) => Err(usage(format!("several members are called \"{meant}\": give the id"))),
    }
}

/// One member, as it stands to the directive.
struct Row {
    host: String,
    version: String,
    target: String,
    state: String,
    why: String,
}

fn row(member: &Resource<Member>, spec: &UpdateDirective, directive: Option<&Directive>) -> Row {
    let report = UpdateReport::of(&member.spec.extra);
    let target = directive.zip(member.name().as_str().parse::<HostId>().ok()).and_then(|(directive, id)| {
        let host = Host { id, cluster: &directive.cluster, roles: &member.spec.roles, edition: "", os: "", arch: "" };
        target_for(directive, &host).map(|target| target.version.clone())
    });
    let there = target.as_ref() == Some(&member.spec.version);
    // Without a report there is no updater, or it has had nothing to say.
    let state = match (&report, &target) {
        (Some(report), _) if report.pinned => "pinned".to_owned(),
        (_, Some(_)) if there => "done".to_owned(),
        (Some(report), Some(_)) if report.generation >= spec.generation || report.state == UpdateReport::REFUSED => report.state.clone(),
        (Some(_), Some(_)) => "waiting".to_owned(),
        (None, Some(_)) => "no updater has reported".to_owned(),
        (_, None) => "-".to_owned(),
    };
    let why = report.filter(|_| !there).map(|report| report.why).unwrap_or_default();
    Row {
        host: member.spec.hostname.clone(),
        version: member.spec.version.to_string(),
        target: target.map_or_else(|| "-".into(), |version| version.to_string()),
        state,
        why,
    }
}

fn status(global: &Global, format: Format) -> Outcome {
    const COULD: &str = "show the updates";
    let connection = connect::open(global)?;
    let name = name().could(COULD)?;
    let (document, members) = connection
        .run(async {
            let document = connection.api().find::<UpdateDirective>(&name).await?;
            Ok::<_, Public>((document, connection.api().list::<Member>(&Labels::new()).await?.items))
        })
        .could(COULD)?;
    let spec = document.map(|document| document.spec).unwrap_or_default();
    let directive: Option<Directive> = serde_json::from_str(&spec.signed.directive).ok();
    let mut rows: Vec<Row> = members.iter().map(|member| row(member, &spec, directive.as_ref())).collect();
    rows.sort_by(|one, other| one.host.cmp(&other.host));
    if format != Format::Text {
        let list: Vec<_> = rows
            .iter()
            .map(|row| json!({"host": row.host, "version": row.version, "target": row.target, "state": row.state, "why": row.why}))
            .collect();
        let value = json!({"generation": spec.generation, "expires": spec.expires, "targets": spec.targets, "hosts": list});
        return show_value(format, &value).could(COULD).map(|()| ExitCode::SUCCESS);
    }
    let holds = match spec.expires {
        _ if spec.targets.is_empty() => "Nothing is directed: no host is moved.".to_owned(),
        Some(end) if end <= now() => format!("The directive ended at {}: no host is moved.", end.whole_seconds()),
        Some(end) => format!("Directive {} holds until {}.", spec.generation, end.whole_seconds()),
        None => format!("Directive {}.", spec.generation),
    };
    write_out(&format!("{holds}\n\n")).could(COULD)?;
    let mut table = Table::new(&["Host", "Version", "Target", "State", "Why"]);
    rows.into_iter().for_each(|row| table.row([row.host, row.version, row.target, row.state, row.why]));
    show(format, &table, "No members.", &()).could(COULD).map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archives_digest_is_read_with_its_system_and_anything_else_is_refused() {
        let digest = "ab".repeat(32);
        assert_eq!(artifact(&format!("linux/amd64={digest}")).unwrap(), ("linux/amd64".into(), digest.parse().unwrap()));
        for bad in ["linux/amd64", "linux/amd64=", "linux/amd64=xyz", &digest] {
            assert!(artifact(bad).unwrap_err().is(Code::Usage), "{bad}");
        }
    }
}
