//! Audit events: what happened, to whom, by whom, with a stable name and code.
//!
//! Names follow the field's best-known system; codes are `L` and its number, `I` for success, `W` for a refusal or failure.
//! The Auth Service gives each event its index and hash (`auth::audit`); here is only the content.

use crate::{Extra, SessionId, Time};
use serde::{Deserialize, Serialize};

macro_rules! events {
    ($($name:ident = $text:literal, $code:literal : $meaning:literal),+ $(,)?) => {
        /// The kinds of events this release writes. Events of other releases are kept as they are.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum EventKind { $(#[doc = $meaning] $name),+ }
        impl EventKind {
            /// Every kind, for the generated reference.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];
            /// `session.start`
            pub const fn name(self) -> &'static str { match self { $(Self::$name => $text),+ } }
            /// `L2000I`
            pub const fn code(self) -> &'static str { match self { $(Self::$name => $code),+ } }
            pub const fn meaning(self) -> &'static str { match self { $(Self::$name => $meaning),+ } }
        }
    };
}

events! {
    Login = "user.login", "L1000I": "a user logged in",
    LoginFailed = "user.login", "L1000W": "a login was refused",
    UserLocked = "user.lock", "L1008W": "an account was locked after repeated failures",
    PasswordChange = "user.password_change", "L1005I": "a password was set through an invitation",
    InviteCreate = "user.invite.create", "L6000I": "an invitation link was made",
    CertCreate = "cert.create", "LC000I": "a certificate was issued",
    CertRefused = "cert.create", "LC000W": "a certificate was refused",
    SessionStart = "session.start", "L2000I": "a session began",
    SessionEnd = "session.end", "L2004I": "a session ended",
    SessionUpload = "session.upload", "L2005I": "a recording reached the sink",
    SessionRejected = "session.rejected", "L1006W": "a session was refused",
    SessionRecordingAccess = "session.recording.access", "L2012I": "a recording was read",
    Exec = "exec", "L3002I": "a command ran and ended with status 0",
    ExecFailed = "exec", "L3002E": "a command ended with another status or a signal",
    Subsystem = "subsystem", "L3001I": "a subsystem was started",
    PortForward = "port", "L3003I": "a port was forwarded",
    RequestDenied = "ssh.request", "L3007W": "a channel or request was refused by policy",
    Join = "instance.join", "LJ002I": "a member joined with a token",
    JoinFailed = "instance.join", "LJ002W": "a join was refused",
    ResourceCreate = "resource.create", "L9000I": "a document was created",
    ResourceUpdate = "resource.update", "L9001I": "a document was updated",
    ResourceDelete = "resource.delete", "L9002I": "a document was deleted",
    AccessDenied = "access.denied", "L9003W": "a request was refused by the caller's roles",
    VersionRefused = "version.refused", "LV001W": "a connection was refused because of its version",
    VersionSkipped = "version.check_skipped", "LV002W": "a process runs with --skip-version-check",
    Restart = "member.restart", "LM001I": "a new process took over from the one before it, whose sessions run on",
    RestartFailed = "member.restart", "LM001E": "a new process was not fit to take over; the one before it serves on",
    MemberWalk = "member.walk", "LM002I": "somebody had a user's path walked through a member, and it led to its end",
    MemberWalkFailed = "member.walk", "LM002E": "a user's path through a member did not lead to its end",
    AuthStart = "auth.start", "LA001I": "an Auth Service began to serve",
    AuditTrim = "audit.trim", "LA002I": "old events were removed from the audit log by its retention",
    AuditExport = "audit.export", "LA003I": "the audit log was exported",
    WindowMove = "upgrade.window", "LU001I": "the window of majors admitted in a role was moved",
    WindowRefused = "upgrade.window", "LU001W": "a window was not moved: the move was not legal then",
    MemberEvict = "upgrade.evict", "LU002I": "a silent member was evicted: no window waits for it",
    MigrationMove = "upgrade.migration", "LU003I": "a migration reached another state",
    MigrationTurn = "upgrade.migration.turn", "LU004I": "somebody turned a migration back, or forward again",
    MigrationRepair = "upgrade.migration.repair", "LU005I": "a row that could not be migrated was repaired with somebody's consent",
    Finalize = "upgrade.finalize", "LU006I": "an upgrade was finalized: there is no way back but a backup",
    UpgradeBegin = "upgrade.begin", "LU010I": "somebody accepted a plan: an upgrade began",
    UpgradeSteer = "upgrade.steer", "LU011I": "somebody paused, resumed, turned or finalized an upgrade, or waived a check",
    UpgradeSteerRefused = "upgrade.steer", "LU011W": "what somebody said about an upgrade was refused",
    UpgradeStep = "upgrade.step", "LU012I": "the executor of an upgrade did a step",
    UpgradePause = "upgrade.pause", "LU013W": "an upgrade paused itself: members that were moved are not well",
    UpgradeEnd = "upgrade.end", "LU014I": "an upgrade, or the way back from it, came to its end",
    UpdateDirective = "update.directive", "LU020I": "a directive was signed: who runs which release",
    UpdateDone = "update.host", "LU021I": "a host runs another release, and the cluster has seen it",
    UpdateReverted = "update.host", "LU021W": "a host went back to the release before, or kept it: the new one does not work there",
    UpdateRefused = "update.refused", "LU022W": "a host refused a release, its metadata or a directive",
    BackupCreate = "backup.create", "LB001I": "a backup of the cluster's state was begun",
    BackupFailed = "backup.create", "LB001E": "a backup broke off",
    BackupRestore = "backup.restore", "LB002I": "the cluster goes on from a backup that was restored",
}

impl EventKind {
    /// The uid of an event that a session has once: every report of it bears this one, whoever makes it and however often.
    pub fn once(self, session: SessionId) -> uuid::Uuid {
        let name = self.name().bytes().fold(0, |mark: u128, byte| mark.rotate_left(8) ^ u128::from(byte));
        uuid::Uuid::from_u128(session.as_uuid().as_u128() ^ name)
    }
}

/// One event. On disk and on the wire: one JSON object with these names.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Event {
    pub event: String,
    pub code: String,
    pub time: Time,
    /// Unique id, given by whoever saw it happen; with the name and the reporter it tells a repeated upload.
    pub uid: uuid::Uuid,
    /// Details: `user`, `login`, `sid`, `server_id`, `server_hostname`, `addr.remote`, `success`, `error`, `command`, …
    #[serde(flatten)]
    pub fields: Extra,
}

impl Event {
    pub fn new(kind: EventKind, time: Time, uid: uuid::Uuid) -> Self {
        Self { event: kind.name().into(), code: kind.code().into(), time, uid, fields: Extra::new() }
    }
    /// Adds a detail. Never a secret.
    #[must_use]
    pub fn with(mut self, field: &str, value: impl Into<serde_json::Value>) -> Self {
        self.fields.insert(field.to_owned(), value.into());
        self
    }
    pub fn is(&self, kind: EventKind) -> bool {
        self.event == kind.name() && self.code == kind.code()
    }
    /// A detail as text; empty when absent or of another type.
    pub fn text(&self, field: &str) -> &str {
        self.fields.get(field).and_then(serde_json::Value::as_str).unwrap_or("")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn event_codes_are_unique() {
        let codes: BTreeSet<_> = EventKind::ALL.iter().map(|kind| kind.code()).collect();
        assert_eq!(codes.len(), EventKind::ALL.len());
    }

    #[test]
    fn what_a_session_has_once_bears_one_uid() {
        let uid = |kind: EventKind, session| kind.once(SessionId::from_uuid(uuid::Uuid::from_u128(session)));
        assert_eq!(uid(EventKind::SessionEnd, 1), uid(EventKind::SessionEnd, 1));
        assert_ne!(uid(EventKind::SessionEnd, 1), uid(EventKind::SessionEnd, 2));
        assert_ne!(uid(EventKind::SessionEnd, 1), uid(EventKind::SessionUpload, 1));
    }

    #[test]
    fn an_event_is_one_flat_object() {
        let event = Event::new(EventKind::Login, Time::EPOCH, uuid::Uuid::nil()).with("user", "alice").with("success", true);
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(
            json,
            r#"{"event":"user.login","code":"L1000I","time":"1970-01-01T00:00:00Z","uid":"00000000-0000-0000-0000-000000000000","user":"alice","success":true}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    }
}
