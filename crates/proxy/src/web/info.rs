//! What anyone may know: versions, names, how to log in (rule G1). Answered from what this process has, whether or not the
//! Auth Service can be reached or the cache has ever been filled.

use super::{Failure, page, status};
use crate::Shared;
use axum::{
    Json,
    extract::{Path, State},
    http::{HeaderMap, header},
    response::{Html, IntoResponse, Response},
};
use serde_json::Value;
use std::sync::Arc;
use types::{Code, Extra, Public};
use wire::web::{Addresses, Connector, Doors, Ping, Ways};

/// `GET /webapi/find`: as `ping`, for programs of members and for first contact.
pub(super) async fn find(State(shared): State<Arc<Shared>>) -> Json<Ping> {
    Json(describe(&shared))
}

/// `GET /webapi/ping`.
pub(super) async fn ping(State(shared): State<Arc<Shared>>) -> Json<Ping> {
    Json(describe(&shared))
}

/// `GET /webapi/ping/{connector}`: the same when a login connector is named. There is one, `local`; asked for another, the
/// answer is an error that still tells the versions.
pub(super) async fn ping_connector(State(shared): State<Arc<Shared>>, Path(connector): Path<String>) -> Response {
    let ping = describe(&shared);
    if connector == "local" {
        return Json(ping).into_response();
    }
    let error = Public::new(Code::NotFound, "this cluster has no such login connector").hint("log in without naming one");
    let mut all = serde_json::to_value(ping).unwrap_or_default();
    if let (Some(all), Ok(Value::Object(error))) = (all.as_object_mut(), serde_json::to_value(&error)) {
        all.remove("auth");
        all.extend(error);
    }
    (status(&error), Json(all)).into_response()
}

fn describe(shared: &Shared) -> Ping {
    let credentials = shared.credentials.borrow().clone();
    let preference = shared.cache.auth_preference().spec.clone();
    let first = |list: &[String]| list.first().cloned().unwrap_or_default();
    let ssh = Addresses {
        listen_addr: shared.ssh_addr.map(|addr| addr.to_string()).unwrap_or_default(),
        tunnel_listen_addr: shared.web_addr.to_string(),
        web_listen_addr: shared.web_addr.to_string(),
        public_addr: first(&shared.public_addrs),
        ssh_public_addr: first(&shared.ssh_public_addrs),
    };
    let local = Connector { name: "local".into() };
    Ping {
        server_version: shared.version.to_string(),
        min_client_version: shared.version.oldest_client().to_string(),
        cluster_name: credentials.cluster().to_string(),
        cluster_id: shared.cluster_id().map(|id| id.to_string()).unwrap_or_default(),
        ca_pins: shared.trust().pins().iter().map(ToString::to_string).collect(),
        auth: Ways { auth_type: preference.auth_type, second_factor: preference.second_factor.as_str().into(), local },
        proxy: Doors { ssh, tls_routing_enabled: true },
        extra: Extra::new(),
    }
}

/// `GET /`.
pub(super) async fn home(State(shared): State<Arc<Shared>>, headers: HeaderMap) -> Html<String> {
    let cluster = shared.credentials.borrow().cluster().to_string();
    Html(page::home(&cluster, &proxy_name(&shared, &headers), &shared.version.to_string()))
}

/// `host:port` to type after `--proxy=`: the configured one, or how the reader reached us.
pub(super) fn proxy_name(shared: &Shared, headers: &HeaderMap) -> String {
    let asked = || headers.get(header::HOST).and_then(|host| host.to_str().ok()).filter(|host| host.len() <= 260).map(str::to_owned);
    shared.public_addrs.first().cloned().or_else(asked).unwrap_or_else(|| shared.web_addr.to_string())
}

/// `GET /web/style.css`.
pub(super) async fn style() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "text/css; charset=utf-8")], page::STYLE)
}

impl From<Public> for Failure {
    fn from(error: Public) -> Self {
        Self(error)
    }
}
