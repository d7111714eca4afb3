//! The diagnostic address: `/healthz` (the process lives), `/readyz` (each component, honestly), `/metrics` (Prometheus text).
//!
//! `/readyz`: 200 when every component works (also when somebody should look at one), 400 while one starts, 503 when one is
//! degraded; the body is JSON with the reason of each. Build information by role is in the metrics (rule G12).

use axum::{Json, Router, extract::State, http::StatusCode, response::IntoResponse, routing::get};
use net::{
    health::{Board, Health},
    listen::Port,
};
use std::{net::SocketAddr, sync::Arc, time::Duration};
use tokio::net::TcpStream;

/// The diagnostic address, which another process may serve too.
pub(crate) struct Listener(pub(crate) Port);

impl axum::serve::Listener for Listener {
    type Io = TcpStream;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (TcpStream, SocketAddr) {
        loop {
            match self.0.accept().await {
                Ok(accepted) => return accepted,
                Err(error) => {
                    tracing::debug!(%error, "no connection for diagnostics");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
    }
    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Everything the endpoint shows.
pub(crate) struct Diagnostics {
    pub(crate) board: Board,
    pub(crate) version: types::Version,
    pub(crate) roles: Vec<&'static str>,
    /// Renders the services' counters in Prometheus text format.
    pub(crate) metrics: Box<dyn Fn() -> String + Send + Sync>,
}

pub(crate) fn router(diagnostics: Arc<Diagnostics>) -> Router {
    Router::new()
        .route("/healthz", get(|| async { Json(serde_json::json!({"status": "ok"})) }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .with_state(diagnostics)
}

async fn ready(State(diagnostics): State<Arc<Diagnostics>>) -> impl IntoResponse {
    let components = diagnostics.board.snapshot();
    let mut status = StatusCode::OK;
    let mut shown = serde_json::Map::new();
    for (name, health) in &components {
        let text = match health {
            Health::Ready => "ready".to_owned(),
            Health::Starting => {
                if status == StatusCode::OK {
                    status = StatusCode::BAD_REQUEST;
                }
                "starting".into()
            }
            Health::Attention(why) => format!("attention: {why}"),
            Health::Degraded(why) => {
                status = StatusCode::SERVICE_UNAVAILABLE;
                format!("degraded: {why}")
            }
        };
        shown.insert((*name).to_owned(), text.into());
    }
    let word = if status == StatusCode::OK { "ready" } else { "not ready" };
    (status, Json(serde_json::json!({"status": word, "components": shown})))
}

async fn metrics(State(diagnostics): State<Arc<Diagnostics>>) -> impl IntoResponse {
    let mut text = String::from("# HELP lockgate_build_info What this process is; always 1.\n# TYPE lockgate_build_info gauge\n");
    for role in &diagnostics.roles {
        text.push_str(&format!(
            "lockgate_build_info{{role=\"{role}\",version=\"{}\",gitref=\"{}\"}} 1\n",
            diagnostics.version,
            crate::GITREF
        ));
    }
    text.push_str("# HELP lockgate_component_ready Whether a component is ready.\n# TYPE lockgate_component_ready gauge\n");
    for (name, health) in diagnostics.board.snapshot() {
        text.push_str(&format!("lockgate_component_ready{{component=\"{name}\"}} {}\n", u8::from(health == Health::Ready)));
    }
    text.push_str(&(diagnostics.metrics)());
    ([("content-type", "text/plain; version=0.0.4; charset=utf-8")], text)
}
