//! `tctl inventory ls|status` and `tctl nodes ls`: who is in the cluster, which version each runs, and who should move (rule G12).

use super::{Global, connect};
use crate::{
    exit::{Could as _, Failure, Outcome, Status},
    output::{Format, Style, Table, show, show_value, write_out},
};
use serde_json::json;
use std::{collections::BTreeMap, process::ExitCode, time::Duration};
use types::{
    Code, ControlRecord, Labels, Public, Resource, Time, Version,
    kind::{Member, Node},
};
use upgrade::inventory::{Alert, Inventory, Row, summarise};
use wire::api::{WalkMemberReply, WalkMemberRequest};

/// Which members `ls` shows.
pub(crate) struct Filter {
    pub(crate) older_than: Option<String>,
    pub(crate) newer_than: Option<String>,
    pub(crate) services: Vec<String>,
}

/// A member that was silent for so long is offline: three missed heartbeats.
const OFFLINE_AFTER: Duration = Duration::from_secs(180);

/// `tctl inventory ls`
pub(crate) fn ls(global: &Global, filter: &Filter, format: Format) -> Outcome {
    let older = parse(filter.older_than.as_deref())?;
    let newer = parse(filter.newer_than.as_deref())?;
    let Inventory { rows, by_version, alerts } = read(global)?;
    let wanted = |row: &&Row| {
        let serves = |service: &String| row.services.split(',').any(|one| one == service || (service == "ssh" && one == "node"));
        older.as_ref().is_none_or(|limit| before(&row.version, limit))
            && newer.as_ref().is_none_or(|limit| before(limit, &row.version))
            && (filter.services.is_empty() || filter.services.iter().any(serves))
    };
    let rows: Vec<&Row> = rows.iter().filter(wanted).collect();
    if format != Format::Text {
        let list: Vec<_> = rows.iter().map(|row| row_value(row)).collect();
        return show_value(format, &json!({"members": list, "counts": counts(&by_version), "alerts": alert_values(&alerts)}))
            .could("print the members")
            .map(|()| ExitCode::SUCCESS);
    }
    let mut table = Table::new(&Row::HEADINGS);
    rows.iter().for_each(|row| table.row(row.cells()));
    show(format, &table, "No members.", &()).could("print the members")?;
    say(&alerts)
}

/// `tctl inventory status`
pub(crate) fn status(global: &Global, format: Format) -> Outcome {
    let Inventory { rows, by_version, alerts } = read(global)?;
    let mut states: BTreeMap<&str, usize> = BTreeMap::new();
    for row in &rows {
        let count = states.entry(row.state.as_str()).or_default();
        *count = count.saturating_add(1);
    }
    if format != Format::Text {
        let quarantined = rows.iter().filter(|row| row.quarantine.is_some()).count();
        let value = json!({"members": rows.len(), "states": states, "quarantined": quarantined, "counts": counts(&by_version), "alerts": alert_values(&alerts)});
        return show_value(format, &value).could("print the counts").map(|()| ExitCode::SUCCESS);
    }
    let all: Vec<String> = states.iter().map(|(state, count)| format!("{count} {state}")).collect();
    write_out(&format!("{} members: {}\n\n", rows.len(), all.join(", "))).could("print the counts")?;
    let mut table = Table::new(&["Service", "Version", "Members"]);
    for ((service, version), count) in &by_version {
        table.row([service.clone(), version.clone(), count.to_string()]);
    }
    show(format, &table, "No members.", &()).could("print the counts")?;
    say(&alerts)
}

/// `tctl inventory walk`
pub(crate) fn walk(global: &Global, member: &str, format: Format) -> Outcome {
    let connection = connect::open(global)?;
    let could = || format!("walk through {member}");
    let members = connection.run(connection.api().list::<Member>(&Labels::new())).could(could())?.items;
    let found = called(&members, member).could(could())?;
    let request = WalkMemberRequest { host_id: found.name().to_string() };
    let WalkMemberReply { error, millis } = connection.run(connection.api().walk_member(request)).could(could())?;
    let passed = error.is_empty();
    let mut table = Table::new(&["Hostname", "Version", "Walk", "Took"]);
    let (hostname, version) = (found.spec.hostname.clone(), found.spec.version.to_string());
    table.row([hostname.clone(), version.clone(), if passed { "passed".into() } else { error.clone() }, format!("{millis} ms")]);
    let value =
        json!({"hostname": hostname, "host_id": found.name(), "version": version, "passed": passed, "error": error, "took_ms": millis});
    show(format, &table, "", &value).could("print the walk")?;
    Ok(if passed { ExitCode::SUCCESS } else { Status::Paused.into() })
}

/// The one member with that name or id.
pub(super) fn called<'m>(members: &'m [Resource<Member>], asked: &str) -> Result<&'m Resource<Member>, Public> {
    let meant: Vec<_> = members.iter().filter(|known| known.name().as_str() == asked || known.spec.hostname == asked).collect();
    match meant.as_slice() {
        [one] => Ok(*one),
        [] => Err(Public::new(Code::NotFound, format!("no member is called \"{asked}\"")).hint("see: tctl inventory ls")),
        [..] => Err(crate::exit::usage(format!("{} members are called \"{asked}\": give the id", meant.len()))),
    }
}

/// Members and control record, read together.
fn read(global: &Global) -> Result<Inventory, Failure> {
    let connection = connect::open(global)?;
    let (members, control) = connection
        .run(async {
            let members = connection.api().list::<Member>(&Labels::new()).await?.items;
            let control = connection.api().get_raw("control", "control").await?;
            let control: ControlRecord = serde_json::from_value(control.spec)
                .map_err(|error| Public::new(Code::Malformed, format!("the control record cannot be read: {error}")))?;
            Ok::<_, Public>((members, control))
        })
        .could("list the members")?;
    Ok(summarise(&members, &control, Time::from(std::time::SystemTime::now()), OFFLINE_AFTER))
}

fn row_value(row: &Row) -> serde_json::Value {
    let mut value = json!({"hostname": row.hostname, "host_id": row.host_id, "services": row.services.split(',').collect::<Vec<_>>(), "version": row.version,
        "state": row.state, "started": row.started, "last_seen": row.last_seen, "online": row.online, "skips_version_check": row.skips_version_check,
        "upgrade": row.standing.as_str(), "content": row.content,
        "platform": row.platform, "capabilities": row.capabilities});
    if let (Some(told), Some(object)) = (&row.quarantine, value.as_object_mut()) {
        object.insert("quarantine".into(), json!({"since": told.since, "next": told.next, "why": told.why}));
    }
    value
}

fn counts(by_version: &BTreeMap<(String, String), usize>) -> Vec<serde_json::Value> {
    by_version.iter().map(|((service, version), count)| json!({"service": service, "version": version, "count": count})).collect()
}

fn alert_values(alerts: &[Alert]) -> Vec<serde_json::Value> {
    alerts
        .iter()
        .map(|alert| json!({"severity": format!("{:?}", alert.severity).to_lowercase(), "text": alert.text, "cure": alert.cure}))
        .collect()
}

fn say(alerts: &[Alert]) -> Outcome {
    let style = Style::of_stdout();
    for alert in alerts {
        write_out(&format!("\n{} {}\n  {}\n", style.bold("!"), alert.text, alert.cure)).could("print the alerts")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn parse(text: Option<&str>) -> Result<Option<Version>, Failure> {
    text.map(str::parse::<Version>).transpose().map_err(|error| Failure::new("read the version", crate::exit::usage(error.to_string())))
}

/// Release order, for filtering what people see; compatibility never asks this.
fn before(one: &Version, other: &Version) -> bool {
    one.release_order(other).is_lt()
}

/// `tctl nodes ls`
pub(crate) fn nodes(global: &Global, labels: Option<&str>, verbose: bool, format: Format) -> Outcome {
    let labels = labels.map(types::label::parse_labels).transpose().could("read the labels")?.unwrap_or_default();
    let connection = connect::open(global)?;
    let nodes = connection.run(connection.api().list::<Node>(&labels)).could("list the hosts")?;
    let mut table = Table::new(if verbose {
        &["Host", "UUID", "Public Address", "Version", "Expires", "Labels"]
    } else {
        &["Host", "UUID", "Public Address", "Version", "Labels"]
    });
    for node in &nodes.items {
        let address = if node.spec.use_tunnel { crate::output::TUNNEL.to_owned() } else { node.spec.addr.clone() };
        let mut cells = vec![node.spec.hostname.to_string(), node.name().to_string(), address, node.spec.version.to_string()];
        if verbose {
            cells.push(node.metadata.expires.map_or_else(String::new, |at| at.whole_seconds().to_string()));
        }
        cells.push(types::label::show_labels(&node.metadata.labels));
        table.row(cells);
    }
    let documents: Vec<_> = nodes.items.iter().map(Resource::to_document).collect();
    show(format, &table, "No hosts. Add one: tctl nodes add", &documents).could("print the hosts")?;
    Ok(ExitCode::SUCCESS)
}
