//! The names by which connections to the one TLS port are told apart (RFC 7301). Names are never re-used.

/// gRPC to the Auth Service. The Proxy splices these bytes to an Auth Service without opening the TLS session.
pub const AUTH: &[u8] = b"lockgate-auth";
/// A client that wants an SSH session: [`crate::route`], then SSH end to end.
pub const SSH: &[u8] = b"lockgate-ssh";
/// An agent's control connection: [`crate::tunnel`].
pub const TUNNEL: &[u8] = b"lockgate-tunnel";
/// An agent dialling back to carry one session: [`crate::tunnel`].
pub const TUNNEL_DATA: &[u8] = b"lockgate-tunnel-data";
/// Hosts that every other door refuses for their version: [`crate::rescue`], frozen with its protocol (design 3.2).
pub const RESCUE: &[u8] = b"lockgate-rescue";
/// Browsers, `tsh login`, `/webapi`.
pub const HTTP: &[u8] = b"http/1.1";
