//! `tctl tokens …`: what hosts and Proxies join with. A token is shown once; the cluster keeps only its hash.

use super::{Global, connect};
use crate::{
    exit::{Could as _, Outcome},
    output::{Format, Table, show, show_value, write_out},
};
use serde_json::json;
use std::{collections::BTreeSet, process::ExitCode};
use types::{Code, Labels, Public, Resource, SystemRole, Time, Ttl, kind::Token};

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
            Ok::<_, Public>((reply, connection.api().ping().await?, connect::proxy_address(connection.api()).await))
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
    let tokens = connection.run(connection.api().list::<Token>(&Labels::new())).could("list the tokens")?;
    let known = tokens.items.iter().map(|token| (token.name().as_str(), token.spec.hint.as_str()));
    let full = named(known, name).could("remove the token")?;
    connection.run(connection.api().delete("token", &full, None)).could(format!("remove token \"{name}\""))?;
    write_out(&format!("Token {name} has been deleted.\n")).could("print")?;
    Ok(ExitCode::SUCCESS)
}

/// The one token that is meant: by its name, its beginning as `ls` shows it, or the token itself.
fn named<'a>(known: impl Iterator<Item = (&'a str, &'a str)>, wanted: &str) -> Result<String, Public> {
    let wanted = wanted.trim_end_matches('…');
    let is_meant = |(name, hint): &(&str, &str)| *name == wanted || (!hint.is_empty() && wanted.starts_with(hint));
    let found: Vec<&str> = known.filter(is_meant).map(|(name, _)| name).collect();
    match found.as_slice() {
        [one] => Ok((*one).to_owned()),
        [] => {
            Err(Public::new(Code::NotFound, format!("there is no token \"{}\"", wanted.escape_debug())).hint("list them: tctl tokens ls"))
        }
        several => {
            Err(Public::new(Code::Usage, format!("{} tokens begin so", several.len())).hint("give its whole name from: tctl tokens ls"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_removed_by_its_name_its_beginning_or_itself() {
        let known = [("045fcc86", "d2ad97"), ("51396155", "4a325b"), ("c9e9809f", "aa"), ("d0000000", "aab"), ("eeeeeeee", "")];
        let check = |wanted: &str, want: Option<&str>| assert_eq!(named(known.into_iter(), wanted).ok().as_deref(), want, "{wanted}");
        check("045fcc86", Some("045fcc86"));
        check("d2ad97…", Some("045fcc86"));
        check("4a325b076eaa6167b1e0ceb2bf10731f", Some("51396155"));
        check("aabcdef", None);
        check("aa", Some("c9e9809f"));
        check("4a32", None);
        check("", None);
    }
}
