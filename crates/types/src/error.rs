//! What may leave the process when something goes wrong: a stable code, one sentence, a cure.
//!
//! Errors inside are each crate's own enums; at the edge they become a [`Public`] by hand, or else "internal error,
//! reference 7f3a" with the details in the log under that reference. Strangers cannot tell "unknown" from "forbidden".

use serde::{Deserialize, Serialize};

/// Declares the codes once: name, text, meaning. The reference in `docs/` is generated from [`Code::ALL`].
macro_rules! codes {
    ($($name:ident = $text:literal : $meaning:literal),+ $(,)?) => {
        /// A stable error code. Codes are never re-used; a new fault gets a new one.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
        pub enum Code { $(#[doc = $meaning] $name),+ }
        impl Code {
            /// Every code, for the generated reference.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];
            pub const fn as_str(self) -> &'static str { match self { $(Self::$name => $text),+ } }
            pub const fn meaning(self) -> &'static str { match self { $(Self::$name => $meaning),+ } }
        }
    };
}

codes! {
    VersionTooOld = "LG-VERSION-001": "the client is two or more majors behind the server",
    VersionTooNew = "LG-VERSION-002": "the client is on a newer major than the server",
    VersionUnreadable = "LG-VERSION-003": "the peer sent no version, or one that cannot be read",
    VersionPrerelease = "LG-VERSION-004": "a pre-release on a production cluster",
    VersionSkip = "LG-VERSION-005": "the store was last used by a major more than one behind this binary",
    VersionDowngrade = "LG-VERSION-006": "the store is in use by a newer major than this binary",
    VersionAuthOlder = "LG-VERSION-007": "the Auth Service is on an older major than this Proxy or resource service",
    VersionWindow = "LG-VERSION-008": "this major is outside the window that the cluster admits for its role",
    VersionProtocol = "LG-VERSION-009": "the peer does not speak Lockgate's handshake",
    VersionBuild = "LG-VERSION-010": "two builds claim one version and differ in what they store or speak",
    LoginFailed = "LG-LOGIN-001": "wrong user name, password or one-time code",
    LoginLocked = "LG-LOGIN-002": "too many failed logins; the account is locked for a while",
    LoginExpired = "LG-LOGIN-003": "the certificate has expired; log in again",
    LoginRequired = "LG-LOGIN-004": "not logged in",
    InviteInvalid = "LG-LOGIN-005": "the invitation is unknown, used or expired",
    PasswordWeak = "LG-LOGIN-006": "the new password is too short or too long",
    AccessDenied = "LG-ACCESS-001": "no role allows this, or a role denies it",
    AccessIdentity = "LG-ACCESS-002": "the certificate is not one that this cluster accepts",
    AccessLocked = "LG-ACCESS-003": "a lock is in force for this user, role, login or host",
    AccessLimit = "LG-ACCESS-004": "a limit on sessions or connections is reached",
    TokenInvalid = "LG-JOIN-001": "the join token is unknown, expired or not for this role",
    CaPin = "LG-JOIN-002": "the cluster's certificate authority does not match the pin",
    NotFound = "LG-RESOURCE-001": "no such resource",
    AlreadyExists = "LG-RESOURCE-002": "a resource of that kind and name exists",
    Conflict = "LG-RESOURCE-003": "the resource was changed since it was read",
    Malformed = "LG-RESOURCE-004": "the document or request cannot be read",
    TooLarge = "LG-RESOURCE-005": "the document or request is larger than the limit",
    NodeUnknown = "LG-CONNECT-001": "no such host, or no access to it",
    NodeAmbiguous = "LG-CONNECT-002": "several hosts have that name",
    NodeOffline = "LG-CONNECT-003": "the host is registered but not connected",
    Unreachable = "LG-CONNECT-004": "the address does not answer",
    Certificate = "LG-CONNECT-005": "the server's certificate is not trusted",
    Timeout = "LG-CONNECT-006": "no answer before the deadline",
    Unavailable = "LG-CONNECT-007": "the service is starting, stopping or cannot reach the Auth Service",
    Config = "LG-CONFIG-001": "the configuration has faults",
    StoreForeign = "LG-STORE-001": "the store belongs to another program, cluster or newer format",
    StoreBroken = "LG-STORE-002": "the store cannot be read or written",
    StoreFenced = "LG-STORE-003": "this Auth Service may no longer write",
    UpgradeWaits = "LG-UPGRADE-001": "the step cannot be done yet; what it waits for passes by itself",
    UpgradeRefused = "LG-UPGRADE-002": "the step is not the next one, or somebody must do something first",
    UpgradeRunning = "LG-UPGRADE-003": "an upgrade is under way and moves the windows itself",
    AuditBroken = "LG-AUDIT-001": "the audit log's hash chain does not hold",
    RecordingBroken = "LG-AUDIT-002": "a recording cannot be read",
    BackupForeign = "LG-BACKUP-001": "the file is not a backup of Lockgate",
    BackupNewer = "LG-BACKUP-002": "the backup needs a newer release to be read",
    BackupTruncated = "LG-BACKUP-003": "the backup ends too early",
    BackupDamaged = "LG-BACKUP-004": "the backup is damaged, re-ordered or mixed with another one",
    BackupSigner = "LG-BACKUP-005": "the backup is signed by another cluster, or its signature does not hold",
    BackupKey = "LG-BACKUP-006": "the key or passphrase given does not open the backup",
    BackupTooLarge = "LG-BACKUP-007": "a part of the backup is larger than the format allows",
    BackupIo = "LG-BACKUP-008": "the backup could not be read or written",
    MirrorBroken = "LG-RESCUE-001": "a file of the Proxy's mirror is not what its list of digests says",
    RescueUnknown = "LG-RESCUE-002": "the Proxy is of a release that does not know this question of the rescue protocol",
    UpdateUntrusted = "LG-UPDATE-001": "the release's metadata is not signed as it must be, is older than what was seen, or has expired",
    UpdateDirective = "LG-UPDATE-002": "the cluster's directive is not genuine, is older than one obeyed before, or has expired",
    UpdateRefused = "LG-UPDATE-003": "vendor and cluster do not both allow that release on this host",
    UpdateBroken = "LG-UPDATE-004": "a release's files are not what was signed, or cannot be unpacked",
    UpdateFailed = "LG-UPDATE-005": "the new release does not work on this host; the one before runs",
    RateLimited = "LG-LIMIT-001": "too many requests from one source",
    Usage = "LG-USAGE-001": "wrong usage of a command",
    Internal = "LG-INTERNAL-001": "a fault in Lockgate; the log of the service has the reference",
}

impl Code {
    /// Whether another release of this process would not be refused.
    pub const fn is_about_version(self) -> bool {
        matches!(
            self,
            Self::VersionTooOld
                | Self::VersionTooNew
                | Self::VersionUnreadable
                | Self::VersionPrerelease
                | Self::VersionAuthOlder
                | Self::VersionWindow
                | Self::VersionBuild
        )
    }
    /// The code of that text, if this binary knows it.
    pub fn find(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text)
    }
}
impl std::fmt::Display for Code {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error fit for a stranger's eyes. Travels as JSON in gRPC details, handshake refusals and web answers.
///
/// Shape: `{"code": "LG-LOGIN-001", "message": "…", "hint": "…", "reference": "…"}`; the last two may be absent. A code
/// from a newer peer is kept as it is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message} [{code}]")]
pub struct Public {
    pub code: String,
    /// One lower-case sentence fragment that names the thing.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// Finds the details in the service's log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
}

impl Public {
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code: code.as_str().into(), message: message.into(), hint: None, reference: None }
    }
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
    /// A fault of ours: the stranger learns only where the log has the rest.
    pub fn internal(reference: impl Into<String>) -> Self {
        let reference = reference.into();
        Self { reference: Some(reference.clone()), ..Self::new(Code::Internal, format!("internal error, reference {reference}")) }
    }
    /// The code, if this binary knows it.
    pub fn known(&self) -> Option<Code> {
        Code::find(&self.code)
    }
    /// Whether another release of this process would not be refused, as far as can be said of a newer peer's code.
    pub fn is_about_version(&self) -> bool {
        self.known().map_or_else(|| self.code.starts_with("LG-VERSION-"), Code::is_about_version)
    }
    pub fn is(&self, code: Code) -> bool {
        self.code == code.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn codes_are_unique_and_well_formed() {
        let texts: BTreeSet<_> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(texts.len(), Code::ALL.len());
        assert!(texts.iter().all(|text| text.starts_with("LG-") && text.len() <= 18));
        assert!(Code::ALL.iter().all(|code| Code::find(code.as_str()) == Some(*code)));
    }

    #[test]
    fn an_unknown_code_from_a_newer_peer_is_kept() {
        let json = r#"{"code":"LG-FUTURE-123","message":"no"}"#;
        let public: Public = serde_json::from_str(json).unwrap();
        assert_eq!(public.known(), None);
        assert_eq!(serde_json::to_string(&public).unwrap(), json);
    }
}
