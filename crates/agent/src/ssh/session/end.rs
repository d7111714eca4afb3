//! The end of a session: the last words to the client, what is left of the program, the recording and the events.

use super::{Ended, HANG_UP, Program, REFUSED, about, signals};
use crate::{
    record::Recorder,
    spool::ended_event,
    ssh::{Connection, handler::Granted},
};
use bytes::Bytes;
use russh::{
    ChannelWriteHalf,
    server::{Handle, Msg},
};
use rustix::process::{Pid, Signal, kill_process_group};
use std::{os::unix::process::ExitStatusExt, time::Duration};
use tokio::{process::Child, time::Instant};
use types::{EventKind, kind::Recording};
use wire::recording::End;

/// For the client to take the last messages.
const LAST_WORDS: Duration = Duration::from_secs(10);

/// The last messages on the channel: notice, end of data, exit status or signal, close.
pub(super) async fn tell_end(write: &ChannelWriteHalf<Msg>, handle: &Handle, text: Option<String>, ended: &Ended) {
    let words = async {
        if let Some(text) = &text {
            let _gone = write.extended_data_bytes(1, Bytes::from(text.clone())).await;
        }
        let _gone = write.eof().await;
        match ended {
            Ended::Exited(status) => match (status.code(), status.signal()) {
                (Some(code), _) => {
                    let _gone = write.exit_status(u32::try_from(code).unwrap_or(REFUSED)).await;
                }
                (None, signal) => {
                    let name = signals::of(signal.unwrap_or(0));
                    let _gone = handle.exit_signal_request(write.id(), name, status.core_dumped(), String::new(), String::new()).await;
                }
            },
            Ended::Gone | Ended::Told(_) | Ended::Fault(_) if text.is_some() => {
                let _gone = write.exit_status(REFUSED).await;
            }
            Ended::Gone | Ended::Told(_) | Ended::Fault(_) => {}
        }
        let _gone = write.close().await;
    };
    let _in_time =
        tokio::time::timeout(if matches!(ended, Ended::Gone) && text.is_none() { Duration::ZERO } else { LAST_WORDS }, words).await;
}

/// Ends what is left of the program, unless it ended by itself.
pub(super) async fn stop(child: &mut Child, group: Option<Pid>, ended: &Ended) {
    if matches!(ended, Ended::Exited(_)) {
        return;
    }
    let Some(group) = group else { return };
    let _gone = kill_process_group(group, Signal::HUP);
    // A stopped program must run to hear it.
    let _gone = kill_process_group(group, Signal::CONT);
    if matches!(ended, Ended::Gone) {
        // As when a terminal is hung up: a program that means to go on may.
        let _exited = tokio::time::timeout(HANG_UP, child.wait()).await;
        return;
    }
    let exited = tokio::time::timeout(HANG_UP, child.wait()).await;
    let _gone = kill_process_group(group, Signal::KILL);
    if exited.is_err() {
        let _exited = tokio::time::timeout(HANG_UP, child.wait()).await;
    }
}

/// Completes the recording and reports the end.
pub(super) async fn record_end(
    connection: &Connection,
    granted: &Granted,
    program: &Program,
    mut recording: Recording,
    recorder: Option<(Recorder, Instant, u64)>,
    ended: &Ended,
) {
    let shared = &connection.shared;
    let end = match ended {
        Ended::Exited(status) => End {
            status: status.code().and_then(|code| u32::try_from(code).ok()),
            signal: status.signal().map(|signal| signals::name(&signals::of(signal)).to_owned()),
        },
        Ended::Gone | Ended::Told(_) | Ended::Fault(_) => End { status: None, signal: Some("HUP".into()) },
    };
    recording.ended = Some(shared.clock.now());
    if !matches!(program, Program::Shell) {
        let success = end.status == Some(0);
        let kind = match program {
            Program::Sftp => EventKind::Subsystem,
            Program::Command(_) | Program::Shell | Program::Walk if success => EventKind::Exec,
            Program::Command(_) | Program::Shell | Program::Walk => EventKind::ExecFailed,
        };
        let mut event =
            about(connection, granted, kind).with("sid", recording.session.to_string()).with("command", recording.command.as_str());
        if let Some(status) = end.status {
            event = event.with("exitCode", status);
        }
        if let Some(signal) = &end.signal {
            event = event.with("exit_signal", signal.as_str());
        }
        shared.audit.emit(event.with("success", success)).await;
    }
    let mut event = ended_event(&recording, shared.clock.now(), Some(&end));
    match ended {
        Ended::Told(why) => event = event.with("reason", why.to_string()),
        Ended::Fault(why) => event = event.with("error", why.as_str()),
        Ended::Gone => event = event.with("reason", "the client went away"),
        Ended::Exited(_) => {}
    }
    let mut complete = None;
    if let Some((recorder, began, omitted)) = recorder {
        match recorder.finish(began, omitted, end).await {
            Ok(file) => complete = Some(file),
            Err(error) => event = event.with("recording_error", error.to_string()),
        }
    }
    shared.audit.emit_kept(event).await;
    // A recording that was delivered and deleted before its session's end is on disk could not tell of it after a crash.
    drop(complete);
    shared.spool.finished();
}
