//! What a process and its successor say to each other during a live restart: JSON, one message in one packet (`net::hand`).
//!
//! The two may be of different releases, either way round, so this is frozen as the tunnel is: fields are only added, unknown
//! messages are ignored. The order: [`ToNew::Inherit`] with the descriptors → [`ToOld::WantAuth`] and [`ToNew::Auth`] when the
//! new one runs an Auth Service → [`ToOld::AuthServes`] → [`ToOld::Prepared`] → [`ToNew::Serve`], a connection for each door, by which the
//! old one judges → [`ToNew::Lead`] → [`ToOld::Leading`] → [`ToNew::Leads`]. Before the last word either may end it by hanging up. Afterwards the old one only
//! waits for its sessions, and hears when it shall do so or stop. Why so: `cli::server::restart`.

use serde::{Deserialize, Serialize};
use types::{Public, Version};

/// The environment variable that tells a new process that its standard input leads to the one before it.
pub const VARIABLE: &str = "LOCKGATE_HANDOVER";
/// Its value.
pub const ON_STDIN: &str = "stdin";

/// What a descriptor of [`ToNew::Inherit`] is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Inherited {
    /// `lock`, or the name of a door: `auth`, `proxy`, `jump`, `ssh`, `diag`.
    pub name: String,
    /// Where it was told to listen; empty for what does not listen.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub addr: String,
}

/// From the process that serves to its successor.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToNew {
    /// First: what the descriptors are that come with it, in their order.
    Inherit { version: Version, descriptors: Vec<Inherited> },
    /// The store, the audit log and the seat of the Auth Service are free.
    Auth,
    /// Serve the connection that comes with this, as if it had been accepted at that door.
    Serve { door: String },
    /// Take new work from now on; the old one takes none.
    Lead,
    /// It is done: the new one is the service.
    Leads,
    #[serde(other)]
    Unknown,
}

/// From the successor.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToOld {
    /// It will open the store.
    WantAuth,
    /// The Auth Service accepts requests.
    AuthServes { version: Version },
    /// Everything is ready to take work, at these doors.
    Prepared {
        version: Version,
        #[serde(default)]
        doors: Vec<String>,
    },
    /// It takes work, and hosts are reached through it.
    Leading,
    /// It cannot.
    Failed { error: Public },
    /// Afterwards: let sessions run out, and come back no more.
    Drain,
    /// Afterwards: end now.
    Stop,
    #[serde(other)]
    Unknown,
}

/// A message as bytes.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).unwrap_or_default()
}

/// Reads a message; none when the bytes are not one.
pub fn decode<T: for<'de> Deserialize<'de>>(bytes: &[u8]) -> Option<T> {
    serde_json::from_slice(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Code;

    #[test]
    fn the_messages_are_frozen_byte_for_byte() {
        let check = |got: Vec<u8>, want: &str| assert_eq!(String::from_utf8(got).unwrap(), want);
        let descriptors =
            vec![Inherited { name: "lock".into(), addr: String::new() }, Inherited { name: "proxy".into(), addr: "0.0.0.0:3080".into() }];
        check(
            encode(&ToNew::Inherit { version: Version::new(1, 2, 3), descriptors }),
            r#"{"type":"inherit","version":"1.2.3","descriptors":[{"name":"lock"},{"name":"proxy","addr":"0.0.0.0:3080"}]}"#,
        );
        check(encode(&ToNew::Auth), r#"{"type":"auth"}"#);
        check(encode(&ToNew::Serve { door: "proxy".into() }), r#"{"type":"serve","door":"proxy"}"#);
        check(encode(&ToNew::Lead), r#"{"type":"lead"}"#);
        check(encode(&ToNew::Leads), r#"{"type":"leads"}"#);
        check(encode(&ToOld::WantAuth), r#"{"type":"want_auth"}"#);
        check(encode(&ToOld::AuthServes { version: Version::new(1, 2, 3) }), r#"{"type":"auth_serves","version":"1.2.3"}"#);
        let prepared = ToOld::Prepared { version: Version::new(1, 2, 3), doors: vec!["proxy".into()] };
        check(encode(&prepared), r#"{"type":"prepared","version":"1.2.3","doors":["proxy"]}"#);
        check(encode(&ToOld::Leading), r#"{"type":"leading"}"#);
        let error = Public::new(Code::Config, "no");
        check(encode(&ToOld::Failed { error }), r#"{"type":"failed","error":{"code":"LG-CONFIG-001","message":"no"}}"#);
        check(encode(&ToOld::Drain), r#"{"type":"drain"}"#);
        check(encode(&ToOld::Stop), r#"{"type":"stop"}"#);
    }

    #[test]
    fn messages_of_another_release_are_recognised_as_unknown_and_nonsense_as_none() {
        assert_eq!(decode::<ToNew>(br#"{"type":"sing","x":1}"#), Some(ToNew::Unknown));
        assert_eq!(decode::<ToOld>(br#"{"type":"leading","song":true}"#), Some(ToOld::Leading));
        assert_eq!(decode::<ToOld>(b"ready!"), None);
    }
}
