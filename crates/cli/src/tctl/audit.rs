//! `tctl audit …`: the log of what happened, and the proof that nobody changed it.

use super::{Global, connect};
use crate::{
    exit::{Could as _, Failure, Outcome},
    output::{Format, Style, Table, show, show_value, write_out},
};
use serde_json::json;
use std::process::ExitCode;
use types::{Code, Event, Public, Time, Ttl};

/// Which events `ls` shows.
pub(crate) struct Filter {
    pub(crate) last: Ttl,
    pub(crate) events: Vec<String>,
    pub(crate) user: Option<String>,
    pub(crate) limit: u32,
}

/// `tctl audit ls`
pub(crate) fn ls(global: &Global, filter: &Filter, format: Format) -> Outcome {
    let now = Time::from(std::time::SystemTime::now());
    let request = wire::api::SearchEventsRequest {
        from: now.minus(filter.last.0).to_string(),
        names: filter.events.clone(),
        user: filter.user.clone().unwrap_or_default(),
        limit: filter.limit,
        ..wire::api::SearchEventsRequest::default()
    };
    let connection = connect::open(global)?;
    let reply = connection.run(connection.api().search_events(request)).could("list the events")?;
    let events: Vec<serde_json::Value> = reply.events.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok()).collect();
    let mut table = Table::new(&["Time (UTC)", "Code", "Event", "User", "Details"]);
    for event in &events {
        match serde_json::from_value::<Event>(event.clone()) {
            Ok(event) => table.row([
                event.time.whole_seconds().to_string(),
                event.code.clone(),
                event.event.clone(),
                event.text("user").to_owned(),
                details(&event),
            ]),
            Err(_) => table.row(["", "", "", "", "an event that cannot be read here"]),
        }
    }
    show(format, &table, "No events.", &events).could("print the events")?;
    Ok(ExitCode::SUCCESS)
}

/// The fields that tell most, in a fixed order.
fn details(event: &Event) -> String {
    const FIELDS: [&str; 10] =
        ["login", "server_hostname", "command", "kind", "name", "version", "addr.remote", "error", "sid", "exit_status"];
    let show = |field: &&str| {
        let value = event.fields.get(*field)?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        (!text.is_empty()).then(|| format!("{field}={text}"))
    };
    FIELDS.iter().filter_map(show).collect::<Vec<_>>().join(" ")
}

/// `tctl audit verify`
pub(crate) fn verify(global: &Global, format: Format) -> Outcome {
    let connection = connect::open(global)?;
    let reply = connection.run(connection.api().verify_audit()).could("verify the audit log")?;
    if format != Format::Text {
        show_value(
            format,
            &json!({"intact": reply.intact, "events": reply.events, "head": reply.head, "fault": reply.fault, "note": reply.note}),
        )
        .could("print the result")?;
    }
    if !reply.intact {
        let cause = Public::new(Code::AuditBroken, reply.fault)
            .hint("compare with a copy of the log made elsewhere; the events before the fault still hold");
        return Err(Failure::new("verify the audit log", cause));
    }
    if format == Format::Text {
        write_out(&format!("{}: {} events, head {}\n", Style::of_stdout().green("The audit log is intact"), reply.events, reply.head))
            .could("print the result")?;
        if !reply.note.is_empty() {
            write_out(&format!("Note: {}\n", reply.note)).could("print the result")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
