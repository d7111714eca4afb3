//! `tctl users …`: people and machines that may log in. A user is a document; the password is set through an invitation.

use super::{Global, connect};
use crate::{
    exit::{Could as _, Failure, Outcome},
    output::{Format, Style, Table, show, show_value, write_out},
};
use client::api::Api;
use serde_json::json;
use std::{collections::BTreeSet, process::ExitCode};
use types::{Code, Labels, Metadata, Public, Resource, ResourceName, Ttl, UserName, kind::User};

/// The Auth Service's limit.
const MAX_INVITE: std::time::Duration = std::time::Duration::from_secs(48 * 3600);

/// `tctl users add`
pub(crate) fn add(global: &Global, name: &str, roles: &[String], logins: &[String], ttl: Ttl, format: Format) -> Outcome {
    let name = UserName::new(name).could("add the user")?;
    let what = || format!("add user \"{name}\"");
    // Before anything is written: a user without an invitation is half a thing.
    if ttl.0 > MAX_INVITE {
        return Err(Failure::new(what(), crate::exit::usage("an invitation lives 48 hours at most").hint("give --ttl=48h or less")));
    }
    let mut spec = User { roles: parse_roles(roles)?, ..User::default() };
    if !logins.is_empty() {
        spec.traits.insert("logins".into(), parse_logins(logins)?);
    }
    let connection = connect::open(global)?;
    let invite = connection.run(async {
        for role in &spec.roles {
            connection.api().get::<types::role::Role>(role).await.map_err(|error| no_such_role(role, error))?;
        }
        let exists = |error: Public| match error.is(Code::AlreadyExists) {
            true => error.hint(format!("change it: tctl users update {name}; a new invitation: tctl users reset {name}")),
            false => error,
        };
        connection.api().create(&Resource::new(Metadata::named(name.clone()), spec)).await.map_err(exists)?;
        let again = |error: Public| error.hint(format!("the user is there; make an invitation: tctl users reset {name}"));
        invite(connection.api(), &name, ttl).await.map_err(again)
    });
    let invite = invite.could(what())?;
    print_invite(&invite, &format!("User \"{name}\" has been created but requires a password."), format)
}

/// `tctl users reset`
pub(crate) fn reset(global: &Global, name: &str, ttl: Ttl, format: Format) -> Outcome {
    let name = UserName::new(name).could("reset the user")?;
    let connection = connect::open(global)?;
    let invite = connection.run(invite(connection.api(), &name, ttl)).could(format!("reset user \"{name}\""))?;
    print_invite(&invite, &format!("User \"{name}\" keeps its password until this link is used."), format)
}

/// `tctl users ls`
pub(crate) fn ls(global: &Global, format: Format) -> Outcome {
    let connection = connect::open(global)?;
    let users = connection.run(connection.api().list::<User>(&Labels::new())).could("list the users")?;
    let mut table = Table::new(&["User", "Roles"]);
    for user in &users.items {
        table.row([user.name().to_string(), join(&user.spec.roles)]);
    }
    let documents: Vec<_> = users.items.iter().map(Resource::to_document).collect();
    show(format, &table, "No users. Add one: tctl users add NAME --roles=access --logins=LOGIN", &documents).could("print the users")?;
    Ok(ExitCode::SUCCESS)
}

/// `tctl users update`
pub(crate) fn update(global: &Global, name: &str, roles: Option<&[String]>, logins: Option<&[String]>) -> Outcome {
    let name = UserName::new(name).could("update the user")?;
    let (roles, logins) = (roles.map(parse_roles).transpose()?, logins.map(parse_logins).transpose()?);
    if roles.is_none() && logins.is_none() {
        return Err(Failure::new("update the user", crate::exit::usage("nothing to change: give --set-roles or --set-logins")));
    }
    let connection = connect::open(global)?;
    let updated = connection.run(async {
        for role in roles.iter().flatten() {
            connection.api().get::<types::role::Role>(role).await.map_err(|error| no_such_role(role, error))?;
        }
        let mut user = connection.api().get::<User>(&ResourceName::from(&name)).await?;
        if let Some(roles) = roles {
            user.spec.roles = roles;
        }
        if let Some(logins) = logins {
            user.spec.traits.insert("logins".into(), logins);
        }
        connection.api().update(&user).await
    });
    updated.could(format!("update user \"{name}\""))?;
    write_out(&format!(
        "User \"{name}\" has been updated. Certificates that exist keep their logins until they expire; roles count at once.\n"
    ))
    .could("print")?;
    Ok(ExitCode::SUCCESS)
}

/// `tctl users rm`
pub(crate) fn rm(global: &Global, name: &str) -> Outcome {
    let name = UserName::new(name).could("remove the user")?;
    let connection = connect::open(global)?;
    connection.run(connection.api().delete("user", name.as_str(), None)).could(format!("remove user \"{name}\""))?;
    write_out(&format!("User \"{name}\" has been deleted.\n")).could("print")?;
    Ok(ExitCode::SUCCESS)
}

struct Invite {
    user: UserName,
    secret: String,
    expires: String,
    proxy: Option<String>,
    pins: Vec<String>,
}

async fn invite(api: &Api, user: &UserName, ttl: Ttl) -> Result<Invite, Public> {
    let reply = api.create_invite(wire::api::CreateInviteRequest { user: user.to_string(), ttl: ttl.0.as_secs() }).await?;
    let ping = api.ping().await?;
    Ok(Invite {
        user: user.clone(),
        secret: reply.secret,
        expires: crate::output::seconds(&reply.expires),
        proxy: connect::proxy_address(api).await,
        pins: ping.ca_pins,
    })
}

fn print_invite(invite: &Invite, first: &str, format: Format) -> Outcome {
    let link = format!("https://{}/web/invite/{}", invite.proxy.as_deref().unwrap_or("<proxy>:3080"), invite.secret);
    let pins = invite.pins.iter().map(|pin| format!(" --ca-pin={pin}")).collect::<String>();
    let done = match format {
        Format::Text => write_out(&format!(
            "{first}\nShare this link with the user; it works once and until {}:\n\n{}\n\nor this command:\n\ntsh login --invite={link}{pins}\n",
            invite.expires,
            Style::of_stdout().bold(&link)
        )),
        Format::Json | Format::Yaml => {
            show_value(format, &json!({"user": invite.user, "invite": link, "expires": invite.expires, "ca_pins": invite.pins}))
        }
    };
    done.could("print the invitation").map(|()| ExitCode::SUCCESS)
}

fn parse_roles(roles: &[String]) -> Result<BTreeSet<ResourceName>, Failure> {
    roles.iter().map(|role| ResourceName::new(role.trim())).collect::<Result<_, _>>().could("read the roles")
}

fn parse_logins(logins: &[String]) -> Result<Vec<String>, Failure> {
    let parse = |login: &String| types::Login::new(login.trim()).map(|login| login.to_string());
    logins.iter().map(parse).collect::<Result<_, _>>().could("read the logins")
}

fn no_such_role(role: &ResourceName, error: Public) -> Public {
    if error.is(Code::NotFound) {
        Public::new(Code::NotFound, format!("there is no role \"{role}\"")).hint("tctl get roles")
    } else {
        error
    }
}

fn join(names: &BTreeSet<ResourceName>) -> String {
    names.iter().map(ResourceName::as_str).collect::<Vec<_>>().join(",")
}
