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
use serde_json::{Value, json};
use std::sync::Arc;
use types::{Code, Public};

/// `GET /webapi/find`: as `ping`, for programs of members and for first contact.
pub(super) async fn find(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(describe(&shared))
}

/// `GET /webapi/ping`.
pub(super) async fn ping(State(shared): State<Arc<Shared>>) -> Json<Value> {
    Json(describe(&shared))
}

/// `GET /webapi/ping/{connector}`: the same when a login connector is named. There is one, `local`; asked for another, the
/// answer is an error that still tells the versions.
pub(super) async fn ping_connector(State(shared): State<Arc<Shared>>, Path(connector): Path<String>) -> Response {
    let mut all = describe(&shared);
    if connector == "local" {
        return Json(all).into_response();
    }
    let error = Public::new(Code::NotFound, "this cluster has no such login connector").hint("log in without naming one");
    if let (Some(all), Ok(Value::Object(error))) = (all.as_object_mut(), serde_json::to_value(&error)) {
        all.remove("auth");
        all.extend(error);
    }
    (status(&error), Json(all)).into_response()
}

fn describe(shared: &Shared) -> Value {
    let credentials = shared.credentials.borrow().clone();
    let preference = shared.cache.auth_preference().spec.clone();
    let first = |list: &[String]| list.first().cloned().unwrap_or_default();
    let mut all = json!({
        "auth": { "type": preference.auth_type, "second_factor": preference.second_factor.as_str(), "local": { "name": "local" } },
        "proxy": {
            "ssh": {
                "listen_addr": shared.ssh_addr.map(|addr| addr.to_string()).unwrap_or_default(),
                "tunnel_listen_addr": shared.web_addr.to_string(),
                "web_listen_addr": shared.web_addr.to_string(),
                "public_addr": first(&shared.public_addrs),
                "ssh_public_addr": first(&shared.ssh_public_addrs),
            },
            "tls_routing_enabled": true,
        },
        "server_version": shared.version,
        "min_client_version": shared.version.oldest_client(),
        "cluster_name": credentials.cluster(),
        "ca_pins": shared.trust().pins().iter().map(ToString::to_string).collect::<Vec<_>>(),
    });
    if let (Some(all), Some(id)) = (all.as_object_mut(), shared.cluster_id()) {
        all.insert("cluster_id".to_owned(), json!(id));
    }
    all
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
