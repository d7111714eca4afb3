//! As whom `tctl` speaks, and to whom: the local administrator on the Auth Service's own host; elsewhere an identity file or
//! the `tsh` profile, through the Proxy.

use super::Global;
use crate::{
    connection::{Connection, runtime},
    exit::{Could as _, Failure},
};
use client::{
    api::{Access, Api, Settings, Via},
    host::HostCredentials,
};
use net::clock::SystemClock;
use std::path::{Path, PathBuf};
use types::{Code, Labels, Public};

/// Where Auth keeps the administrator's credentials, below its data directory.
const ADMIN_FILE: &str = "admin/identity.json";

/// Opens a connection with the best credentials at hand.
pub(crate) fn open(global: &Global) -> Result<Connection, Failure> {
    if global.identity.is_some() {
        return crate::tsh::profile::open_for_tctl(global.identity.as_deref(), global.auth_server.as_deref(), global.skip_version_check);
    }
    let (path, named) = admin_file(global).could("find the Auth Service's data directory")?;
    match HostCredentials::load(&path) {
        Ok(credentials) => local(global, credentials).could("connect to the Auth Service"),
        Err(error) if error.is_missing() && !named => {
            crate::tsh::profile::open_for_tctl(None, global.auth_server.as_deref(), global.skip_version_check)
                .map_err(|failure| explain(&path, failure))
        }
        Err(error) => {
            let hint = "run tctl as the user that runs the Auth Service, on its host; elsewhere log in with tsh, or give --identity";
            Err(Failure::new("read the administrator's credentials", error.public().hint(hint)))
        }
    }
}

/// Neither way led anywhere: says both.
fn explain(path: &Path, failure: Failure) -> Failure {
    if failure.cause().is(Code::LoginRequired) {
        let cause =
            Public::new(Code::LoginRequired, format!("there is no administrator's identity at {} and nobody is logged in", path.display()))
                .hint("on the Auth Service's host give its --data-dir; elsewhere log in: tsh login --proxy=…");
        return Failure::new("connect to the Auth Service", cause);
    }
    failure
}

/// The administrator's file, and whether the user named its place.
fn admin_file(global: &Global) -> Result<(PathBuf, bool), Public> {
    if let Some(directory) = &global.data_dir {
        return Ok((directory.join(ADMIN_FILE), true));
    }
    #[cfg(feature = "server")]
    {
        let default = Path::new(crate::config::DEFAULT_PATH);
        let file = global.config.as_deref().or_else(|| default.exists().then_some(default));
        if let Some(directory) = file.map(crate::config::Config::load).transpose()?.and_then(|config| config.lockgate.data_dir) {
            return Ok((directory.join(ADMIN_FILE), global.config.is_some()));
        }
    }
    Ok((Path::new("/var/lib/lockgate").join(ADMIN_FILE), false))
}

fn local(global: &Global, credentials: HostCredentials) -> Result<Connection, Public> {
    let runtime = runtime()?;
    let cluster = credentials.cluster().clone();
    let address = global.auth_server.clone().or_else(|| credentials.auth_addr.clone()).unwrap_or_else(|| "127.0.0.1:3025".into());
    let access = Access::cluster(&credentials.trust, Some(credentials.tls.clone()))
        .map_err(|error| Public::new(Code::Certificate, error.to_string()))?;
    let api = runtime.block_on(async {
        Api::new(Settings {
            via: Via::auth(&address),
            access,
            role: "tctl".into(),
            version: crate::version(),
            skip_version_check: global.skip_version_check,
            clock: SystemClock::shared(),
        })
    });
    Ok(Connection::new(runtime, api, cluster))
}

/// What clients call the Proxy, as a Proxy of the cluster told in its `member` document.
pub(crate) async fn proxy_address(api: &Api) -> Option<String> {
    let members = api.list::<types::kind::Member>(&Labels::new()).await.ok()?;
    members.items.iter().find_map(|member| member.spec.extra.get("proxy_public_addr").and_then(|value| value.as_str()).map(str::to_owned))
}
