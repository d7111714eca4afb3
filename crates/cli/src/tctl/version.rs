//! `tctl version`: this program's version, and the cluster's when it answers.

use super::{Global, connect};
use crate::{
    exit::{Could as _, Outcome},
    output::{Format, show_value, write_out},
};
use serde_json::json;
use std::process::ExitCode;

pub(crate) fn version(global: &Global, format: Format) -> Outcome {
    let version = crate::version().to_string();
    let cluster = connect::open(global).ok().and_then(|connection| connection.run(connection.api().ping()).ok());
    let done = match (format, cluster) {
        (Format::Text, None) => write_out(&format!("tctl v{version} git:{}\n", crate::GITREF)),
        (Format::Text, Some(ping)) => write_out(&format!(
            "tctl v{version} git:{}\nAuth version: {} (cluster {}, format {})\n",
            crate::GITREF,
            ping.server_version,
            ping.cluster_name,
            ping.cluster_version
        )),
        (_, None) => show_value(format, &json!({"version": version, "gitref": crate::GITREF})),
        (_, Some(ping)) => show_value(
            format,
            &json!({"version": version, "gitref": crate::GITREF, "authVersion": ping.server_version, "cluster": ping.cluster_name, "clusterVersion": ping.cluster_version}),
        ),
    };
    done.could("print the version").map(|()| ExitCode::SUCCESS)
}
