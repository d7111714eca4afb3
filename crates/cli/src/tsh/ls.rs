//! `tsh ls` and `tsh clusters`.
//!
//! Hosts are taken as documents: what a script reads is what the cluster stores, fields of newer releases included, and a
//! table of 10,000 hosts is made without a second copy of each.

use super::{Global, profile};
use crate::{
    exit::{Could as _, Outcome},
    output::{Format, TUNNEL, Table, show, show_value, write_out},
};
use serde_json::{Value, json};
use std::process::ExitCode;
use types::{
    Document,
    document::Spec as _,
    kind::Node,
    label::{parse_labels, show_labels},
};

/// `tsh ls`
pub(crate) fn hosts(global: &Global, labels: Option<&str>, format: Format, verbose: bool) -> Outcome {
    let wanted = parse_labels(labels.unwrap_or_default()).could("read the labels")?;
    let session = profile::open(global)?;
    let mut listed = session.run(session.api().list_raw(Node::KIND, &wanted)).could("list the hosts")?;
    sort(&mut listed.items);
    let table = if format == Format::Text { table(&listed.items, verbose) } else { Table::new(&[]) };
    let none = if wanted.is_empty() { "No hosts that you may reach." } else { "No hosts with these labels that you may reach." };
    show(format, &table, none, &listed.items).could("print the hosts")?;
    if listed.skipped > 0 {
        eprintln!("{} hosts could not be read by this version and are not shown.", listed.skipped);
    }
    Ok(ExitCode::SUCCESS)
}

fn text<'a>(document: &'a Document, field: &str) -> &'a str {
    document.spec.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// By name, then by id, as people look for them.
fn sort(documents: &mut [Document]) {
    documents.sort_by(|a, b| (text(a, "hostname"), a.metadata.name.as_str()).cmp(&(text(b, "hostname"), b.metadata.name.as_str())));
}

fn table(documents: &[Document], verbose: bool) -> Table {
    let mut table = Table::new(if verbose { &["Node Name", "Node ID", "Address", "Labels"] } else { &["Node Name", "Address", "Labels"] });
    for document in documents {
        let address = match text(document, "addr") {
            "" => TUNNEL,
            address => address,
        };
        let labels = show_labels(&document.metadata.labels);
        match verbose {
            true => table.row([text(document, "hostname"), document.metadata.name.as_str(), address, &labels]),
            false => table.row([text(document, "hostname"), address, &labels]),
        }
    }
    table
}

/// The hosts of one name, for a user who must choose.
pub(super) fn candidates(documents: &mut Vec<Document>, hostname: &str) -> String {
    documents.retain(|document| text(document, "hostname") == hostname);
    sort(documents);
    table(documents, true).render(None)
}

/// `tsh clusters`
pub(crate) fn clusters(global: &Global, format: Format, quiet: bool) -> Outcome {
    let session = profile::open(global)?;
    let status = if session.run(session.api().ping()).is_ok() { "online" } else { "offline" };
    let cluster = session.cluster.as_str();
    if format != Format::Text {
        let value = json!([{"cluster_name": cluster, "status": status, "cluster_type": "root", "labels": {}, "selected": true}]);
        return show_value(format, &value).could("print the clusters").map(|()| ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["Cluster Name", "Status", "Cluster Type", "Labels", "Selected"]);
    table.row([cluster, status, "root", "", "*"]);
    let text = table.render(None);
    let text = if quiet { text.lines().skip(2).map(|line| format!("{line}\n")).collect() } else { text };
    write_out(&text).could("print the clusters").map(|()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    fn node(number: u32, name: &str, addr: &str) -> Document {
        let json = json!({
            "kind": "node", "version": "v1",
            "metadata": {"name": format!("00000000-0000-4000-8000-{number:012}"), "labels": {"env": "prod", "team": "db"}},
            "spec": {"hostname": name, "addr": addr, "use_tunnel": addr.is_empty(), "version": "1.0.0", "future": {"x": 1}},
        });
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn hosts_are_listed_by_name_with_how_they_are_reached() {
        let mut documents = vec![node(1, "web", "10.0.0.2:3022"), node(2, "db-7", "")];
        sort(&mut documents);
        assert_eq!(
            table(&documents, false).render(None),
            "Node Name Address       Labels\n--------- ------------- ----------------\ndb-7      ⟵ Tunnel      env=prod,team=db\nweb       10.0.0.2:3022 env=prod,team=db\n"
        );
        assert!(table(&documents, true).render(None).contains("00000000-0000-4000-8000-000000000002"));
    }

    #[test]
    fn candidates_are_the_hosts_of_that_name_only() {
        let mut documents = vec![node(1, "web", ""), node(2, "db", ""), node(3, "web", "")];
        let text = candidates(&mut documents, "web");
        assert_eq!(text.lines().count(), 4);
        assert!(!text.contains("db "), "{text}");
    }

    #[test]
    fn ten_thousand_hosts_become_a_table_in_no_time() {
        let mut documents: Vec<Document> =
            (0..10_000).map(|number| node(number, &format!("host-{}", number * 7919 % 10_000), "")).collect();
        let began = Instant::now();
        sort(&mut documents);
        let text = table(&documents, false).render(None);
        assert_eq!(text.lines().count(), 10_002);
        // Unoptimised and beside other tests; optimised it is a tenth of that.
        assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
    }
}
