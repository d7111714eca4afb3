//! `lockgate status`: inside a session, which one; and how the services on this host are, by their diagnostic address.

use crate::{
    exit::{Could as _, Outcome},
    output::{Format, show_value, write_out},
};
use serde::Serialize;
use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};

#[derive(Serialize)]
struct Status {
    #[serde(skip_serializing_if = "Option::is_none")]
    session: Option<Session>,
    /// What `/readyz` answered; absent when nothing answers there.
    #[serde(skip_serializing_if = "Option::is_none")]
    services: Option<serde_json::Value>,
}

#[derive(Serialize)]
struct Session {
    user: String,
    cluster: String,
    host_id: String,
    session_id: String,
}

pub(super) fn status(diag: SocketAddr, format: Format) -> Outcome {
    let env = |name: &str| std::env::var(name).unwrap_or_default();
    let session = (!env("LOCKGATE_SESSION").is_empty()).then(|| Session {
        user: env("LOCKGATE_USER"),
        cluster: env("LOCKGATE_CLUSTER"),
        host_id: env("LOCKGATE_HOST_ID"),
        session_id: env("LOCKGATE_SESSION"),
    });
    let status = Status { session, services: ready(diag) };
    if format != Format::Text {
        return show_value(format, &status).could("print the status").map(|()| ExitCode::SUCCESS);
    }
    let mut text = match &status.session {
        Some(session) => format!(
            "User ID:      {}\nCluster Name: {}\nHost UUID:    {}\nSession ID:   {}\n",
            session.user, session.cluster, session.host_id, session.session_id
        ),
        None => "This shell is not a Lockgate session.\n".into(),
    };
    match status.services.as_ref().and_then(|value| value.as_object()) {
        Some(components) => {
            for (name, state) in components {
                text.push_str(&format!("{name:<13} {}\n", state.as_str().unwrap_or("?")));
            }
        }
        None => text.push_str(&format!("No services answer on {diag} (start them with --diag-addr={diag} to see them here).\n")),
    }
    write_out(&text).could("print the status").map(|()| ExitCode::SUCCESS)
}

/// One small HTTP request, without a runtime: the answer's body, if there is one.
fn ready(diag: SocketAddr) -> Option<serde_json::Value> {
    let mut stream = TcpStream::connect_timeout(&diag, Duration::from_secs(1)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(2))).ok()?;
    stream.set_write_timeout(Some(Duration::from_secs(2))).ok()?;
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {diag}\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer).ok()?;
    let (_, body) = answer.split_once("\r\n\r\n")?;
    let value: serde_json::Value = serde_json::from_str(body.trim()).ok()?;
    value.get("components").cloned()
}
