//! `tctl status`: the cluster at a glance: name, versions, authorities, pins.

use super::{Global, connect};
use crate::{
    exit::{Could as _, Outcome},
    output::{Format, show_value, write_out},
};
use serde_json::json;
use std::process::ExitCode;
use types::{Labels, kind::CertAuthority};

pub(crate) fn status(global: &Global, format: Format) -> Outcome {
    let connection = connect::open(global)?;
    let (ping, authorities) = connection
        .run(async {
            Ok::<_, types::Public>((connection.api().ping().await?, connection.api().list::<CertAuthority>(&Labels::new()).await?))
        })
        .could("read the cluster's status")?;
    if format != Format::Text {
        let cas: Vec<_> = authorities.items.iter().map(|ca| json!({"type": ca.spec.ca_type, "keys": ca.spec.keys})).collect();
        let value = json!({"cluster": ping.cluster_name, "cluster_id": ping.cluster_id, "version": ping.server_version, "min_client_version": ping.min_client_version,
            "cluster_version": ping.cluster_version, "ca_pins": ping.ca_pins, "authorities": cas});
        return show_value(format, &value).could("print the status").map(|()| ExitCode::SUCCESS);
    }
    let mut text = format!(
        "Cluster          {}\nCluster ID       {}\nVersion          {} (clients from {})\nCluster version  {}\n",
        ping.cluster_name, ping.cluster_id, ping.server_version, ping.min_client_version, ping.cluster_version
    );
    for authority in &authorities.items {
        let keys = authority.spec.keys.iter().map(|key| key.algorithm.as_str()).collect::<Vec<_>>().join(", ");
        text.push_str(&format!("{:<16} {keys}\n", format!("{} CA", authority.spec.ca_type)));
    }
    for pin in &ping.ca_pins {
        text.push_str(&format!("CA pin           {pin}\n"));
    }
    write_out(&text).could("print the status").map(|()| ExitCode::SUCCESS)
}
