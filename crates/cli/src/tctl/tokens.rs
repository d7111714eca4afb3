//! `tctl tokens …`: what hosts and Proxies join with. A token is shown once; the cluster keeps only its hash.

use super::{Global, connect};
use crate::{
    exit::{Could as _, Outcome},
    output::{Format, Table, show, show_value, write_out},
};
use serde_json::json;
use std::{collections::BTreeSet, process::ExitCode};
use types::{Labels, Resource, SystemRole, Time, Ttl, kind::Token};

/// `tctl tokens add`, `tctl nodes add`
pub(crate) fn add(global: &Global, roles: &[String], value: Option<String>, labels: Option<&str>, ttl: Ttl, format: Format) -> Outcome {
    let labels = labels.map(types::label::parse_labels).transpose().could("read the labels")?.unwrap_or_default();
    let roles: BTreeSet<String> =
        roles.iter().map(|role| if role == "ssh" { "node".to_owned() } else { role.trim().to_lowercase() }).collect();
    let connection = connect::open(global)?;
    let request = wire::api::CreateTokenRequest {
        roles: roles.iter().cloned().collect(),
        ttl: ttl.0.as_secs(),
        value: value.unwrap_or_default(),
        labels: labels.into_iter().collect(),
    };
    let (reply, ping, proxy) = connection
        .run(async {
            let reply = connection.api().create_token(request).await?;
            Ok::<_, types::Public>((reply, connection.api().ping().await?, connect::proxy_address(connection.api()).await))
        })
        .could("make a token")?;
    if format != Format::Text {
        let value = json!({"token": reply.token, "roles": roles, "expires": crate::output::seconds(&reply.expires), "ca_pins": ping.ca_pins, "proxy": proxy});
        return show_value(format, &value).could("print the token").map(|()| ExitCode::SUCCESS);
    }
    let list = roles.iter().cloned().collect::<Vec<_>>().join(",");
    let pins = ping.ca_pins.iter().map(|pin| format!(" \\\n    --ca-pin={pin}")).collect::<String>();
    let server = match (&proxy, roles.contains("proxy")) {
        (Some(proxy), false) => format!("--proxy-server={proxy}"),
        (None, false) => "--proxy-server=<proxy>:3080".into(),
        (_, true) => "--auth-server=<auth>:3025".into(),
    };
    write_out(&format!(
        "The token: {}\nIt is valid until {} and shown only now. On the new host run:\n\nlockgate start --roles={list} \\\n    --token={}{pins} \\\n    {server}\n",
        reply.token, crate::output::seconds(&reply.expires), reply.token
    ))
    .could("print the token")?;
    Ok(ExitCode::SUCCESS)
}

/// `tctl tokens ls`
pub(crate) fn ls(global: &Global, format: Format) -> Outcome {
    let connection = connect::open(global)?;
    let tokens = connection.run(connection.api().list::<Token>(&Labels::new())).could("list the tokens")?;
    let now = Time::from(std::time::SystemTime::now());
    let mut table = Table::new(&["Token", "Type", "Labels", "Expiry Time (UTC)", "Name"]);
    for token in &tokens.items {
        let roles = token.spec.roles.iter().map(SystemRole::to_string).collect::<Vec<_>>().join(",");
        let expires = token.metadata.expires.map_or_else(
            || "never".into(),
            |at| format!("{} ({} left)", at.whole_seconds(), Ttl(std::time::Duration::from_secs(at.since(now).as_secs()))),
        );
        table.row([
            format!("{}…", token.spec.hint),
            roles,
            types::label::show_labels(&token.spec.labels),
            expires,
            token.name().to_string(),
        ]);
    }
    let documents: Vec<_> = tokens.items.iter().map(Resource::to_document).collect();
    show(format, &table, "No tokens. Make one: tctl tokens add --type=node", &documents).could("print the tokens")?;
    Ok(ExitCode::SUCCESS)
}

/// `tctl tokens rm`
pub(crate) fn rm(global: &Global, name: &str) -> Outcome {
    let connection = connect::open(global)?;
    connection.run(connection.api().delete("token", name, None)).could(format!("remove token \"{name}\""))?;
    write_out(&format!("Token {name} has been deleted.\n")).could("print")?;
    Ok(ExitCode::SUCCESS)
}
