//! The reverse tunnel between an agent and one Proxy (design 2.3).
//!
//! The agent keeps one *control* connection per Proxy (ALPN `lockgate-tunnel`); messages are JSON in the frames of
//! `frame.rs`. For each session the Proxy sends [`ToAgent::Open`] and the agent dials a fresh TLS connection (ALPN
//! `lockgate-tunnel-data`), says the ticket, and from then on the bytes are the session's. With the capability
//! `tunnel.warm-spare` the agent keeps one such connection dialled ahead: it says [`DataHello::Spare`] and waits for
//! [`Start`]. Frozen contract: fields are only added; unknown messages are ignored.

use serde::{Deserialize, Serialize};
use types::{Extra, HostId, Public};

/// Seconds between [`ToAgent::Ping`]s; a side that hears nothing for three of them hangs up.
pub const PING_SECONDS: u64 = 15;

/// From the Proxy to the agent on the control connection.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToAgent {
    /// The agent is registered. `proxy_id` names this Proxy, `peers` the others of the cluster.
    Welcome {
        proxy_id: HostId,
        #[serde(default)]
        peers: Vec<Peer>,
        /// Where this Proxy alone is reached, when the address that the agent dialled may lead to several.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        addr: Option<String>,
    },
    /// The other Proxies of the cluster are now these.
    Peers {
        peers: Vec<Peer>,
    },
    /// Dial back with this ticket: a session waits. `client_addr` is for the audit log.
    Open {
        ticket: String,
        #[serde(default)]
        client_addr: String,
    },
    /// Keep one spare connection ready from now on (or stop doing so).
    Spare {
        keep: bool,
    },
    Ping {
        seq: u64,
    },
    /// This Proxy stops accepting: make another tunnel before this one is cut.
    Drain,
    Refused {
        error: Public,
    },
    #[serde(other)]
    Unknown,
}

/// A Proxy that an agent may hold a tunnel to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Peer {
    pub id: HostId,
    /// `host:port`, best first.
    pub addrs: Vec<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

/// In [`ToProxy::Register`]: the id of the Proxy that the agent means. Another that answers at that address refuses.
pub const WANTED: &str = "wanted";

/// From the agent to the Proxy on the control connection.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToProxy {
    /// First message: which host speaks; must equal the certificate's id.
    Register {
        host_id: HostId,
        boot_id: String,
        #[serde(flatten)]
        extra: Extra,
    },
    Pong {
        seq: u64,
    },
    /// The agent cannot take the session of that ticket.
    Failed {
        ticket: String,
        error: Public,
    },
    #[serde(other)]
    Unknown,
}

/// First frame of a data connection, from the agent.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum DataHello {
    /// For the session of that ticket. A ticket works once, for the host it was sent to.
    Ticket { ticket: String },
    /// Wait here for [`Start`]. Of the process that registered with that boot id.
    Spare {
        #[serde(default, skip_serializing_if = "Option::is_none")]
        boot_id: Option<String>,
    },
}

/// Sent by the Proxy on a data connection when a session takes it; then the bytes are the session's.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Start {
    #[serde(default)]
    pub client_addr: String,
    #[serde(flatten)]
    pub extra: Extra,
}

/// Why a payload is not a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a tunnel message cannot be read: {0}")]
pub struct BadMessage(String);

/// JSON payload of a message.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    serde_json::to_vec(message).unwrap_or_default()
}

/// Reads a message from a frame's payload.
pub fn decode<T: for<'de> Deserialize<'de>>(payload: &[u8]) -> Result<T, BadMessage> {
    serde_json::from_slice(payload).map_err(|error| BadMessage(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_a_newer_release_are_recognised_as_unknown() {
        assert_eq!(decode::<ToAgent>(br#"{"type":"teleport_everything","x":1}"#).unwrap(), ToAgent::Unknown);
        assert_eq!(decode::<ToProxy>(br#"{"type":"sing"}"#).unwrap(), ToProxy::Unknown);
    }

    #[test]
    fn the_messages_are_frozen_byte_for_byte() {
        let check = |got: Vec<u8>, want: &str| assert_eq!(String::from_utf8(got).unwrap(), want);
        check(encode(&ToAgent::Ping { seq: 7 }), r#"{"type":"ping","seq":7}"#);
        check(encode(&ToAgent::Open { ticket: "t".into(), client_addr: "a".into() }), r#"{"type":"open","ticket":"t","client_addr":"a"}"#);
        let id = HostId::from_uuid(uuid::Uuid::from_u128(7));
        let peer = Peer { id, addrs: vec!["b:3080".into()], extra: Extra::new() };
        let named = r#"{"id":"00000000-0000-0000-0000-000000000007","addrs":["b:3080"]}"#;
        let welcome = format!(r#"{{"type":"welcome","proxy_id":"{id}","peers":[{named}]}}"#);
        check(encode(&ToAgent::Welcome { proxy_id: id, peers: vec![peer.clone()], addr: None }), &welcome);
        check(encode(&ToAgent::Peers { peers: vec![peer] }), &format!(r#"{{"type":"peers","peers":[{named}]}}"#));
        check(encode(&ToProxy::Pong { seq: 7 }), r#"{"type":"pong","seq":7}"#);
        check(encode(&DataHello::Spare { boot_id: None }), r#"{"type":"spare"}"#);
        check(encode(&DataHello::Spare { boot_id: Some("b".into()) }), r#"{"type":"spare","boot_id":"b"}"#);
        assert_eq!(decode::<DataHello>(br#"{"type":"spare"}"#).unwrap(), DataHello::Spare { boot_id: None });
        check(encode(&DataHello::Ticket { ticket: "t".into() }), r#"{"type":"ticket","ticket":"t"}"#);
    }
}
