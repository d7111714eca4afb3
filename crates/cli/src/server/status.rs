//! `lockgate status`: inside a session, which one; and how the services on this host are, by their diagnostic address.

use crate::{
    exit::{Could as _, Failure, Outcome},
    output::{Format, show_value, write_out},
};
use serde::Serialize;
use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    process::ExitCode,
    time::Duration,
};
use types::{Code, Public};

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

/// `check`: for a container's health and for scripts; what is not ready makes it fail.
pub(super) fn status(diag: SocketAddr, check: bool, format: Format) -> Outcome {
    let env = |name: &str| std::env::var(name).unwrap_or_default();
    let session = (!env("LOCKGATE_SESSION").is_empty()).then(|| Session {
        user: env("LOCKGATE_USER"),
        cluster: env("LOCKGATE_CLUSTER"),
        host_id: env("LOCKGATE_HOST_ID"),
        session_id: env("LOCKGATE_SESSION"),
    });
    let answer = ready(diag);
    let well = answer.as_ref().is_some_and(|answer| answer.get("status").is_some_and(|word| word == "ready"));
    let status = Status { session, services: answer.as_ref().and_then(|answer| answer.get("components")).cloned() };
    let ended = if check && !well { Err(not_ready(diag, answer.is_some())) } else { Ok(ExitCode::SUCCESS) };
    if format != Format::Text {
        return show_value(format, &status).could("print the status").and(ended);
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
    write_out(&text).could("print the status").and(ended)
}

fn not_ready(diag: SocketAddr, answered: bool) -> Failure {
    let why = if answered { format!("the services at {diag} are not ready") } else { format!("no services answer at {diag}") };
    Failure::new("find all services ready", Public::new(Code::Unavailable, why))
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
    serde_json::from_str(body.trim()).ok()
}
