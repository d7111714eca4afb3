//! `tctl inventory ls` and `tctl nodes ls`: who is in the cluster, which version each runs, and who should move (rule G12).

use super::{Global, connect};
use crate::{
    exit::{Could as _, Failure, Outcome},
    output::{Format, Style, Table, show, show_value, write_out},
};
use serde_json::json;
use std::{process::ExitCode, time::Duration};
use types::{
    Code, ControlRecord, Labels, Public, Resource, Time, Version,
    kind::{Member, Node},
};
use upgrade::inventory::{Inventory, Row, summarise};

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
    let Inventory { rows, by_version, alerts } = summarise(&members, &control, Time::from(std::time::SystemTime::now()), OFFLINE_AFTER);
    let wanted = |row: &&Row| {
        let serves = |service: &String| row.services.split(',').any(|one| one == service || (service == "ssh" && one == "node"));
        older.as_ref().is_none_or(|limit| before(&row.version, limit))
            && newer.as_ref().is_none_or(|limit| before(limit, &row.version))
            && (filter.services.is_empty() || filter.services.iter().any(serves))
    };
    let rows: Vec<&Row> = rows.iter().filter(wanted).collect();
    if format != Format::Text {
        let list: Vec<_> = rows.iter().map(|row| json!({"hostname": row.hostname, "host_id": row.host_id, "services": row.services.split(',').collect::<Vec<_>>(), "version": row.version,
            "state": row.state, "started": row.started, "last_seen": row.last_seen, "online": row.online, "skips_version_check": row.skips_version_check, "upgrade": row.standing.as_str()})).collect();
        let alerts: Vec<_> = alerts
            .iter()
            .map(|alert| json!({"severity": format!("{:?}", alert.severity).to_lowercase(), "text": alert.text, "cure": alert.cure}))
            .collect();
        let counts: Vec<_> =
            by_version.iter().map(|((service, version), count)| json!({"service": service, "version": version, "count": count})).collect();
        return show_value(format, &json!({"members": list, "counts": counts, "alerts": alerts}))
            .could("print the members")
            .map(|()| ExitCode::SUCCESS);
    }
    let mut table = Table::new(&Row::HEADINGS);
    rows.iter().for_each(|row| table.row(row.cells()));
    show(format, &table, "No members.", &()).could("print the members")?;
    let style = Style::of_stdout();
    for alert in &alerts {
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
