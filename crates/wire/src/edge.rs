//! Every edge between two Lockgate processes, with its direction (design 3.2). One table: a test fails when an RPC of
//! the API has no row.
//!
//! `ServerFirst` edges are upgraded server first and judged by G4. The others run against the upgrade order: there the
//! caller speaks the older of the two. One edge judges nobody: the rescue of hosts that all others refuse.

use types::version::Direction::{self, AnyVersion, CallerSpeaksOlder, ServerFirst};

/// One kind of call.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Edge {
    /// gRPC method, or connection by ALPN name.
    pub name: &'static str,
    pub callers: &'static str,
    pub server: &'static str,
    pub direction: Direction,
}

const fn edge(name: &'static str, callers: &'static str, server: &'static str, direction: Direction) -> Edge {
    Edge { name, callers, server, direction }
}

pub const EDGES: &[Edge] = &[
    edge("Ping", "anyone", "auth", ServerFirst),
    edge("Get", "tsh, tctl, proxy, agent", "auth", ServerFirst),
    edge("List", "tsh, tctl, proxy, agent", "auth", ServerFirst),
    edge("Create", "tctl", "auth", ServerFirst),
    edge("Update", "tctl", "auth", ServerFirst),
    edge("Delete", "tctl", "auth", ServerFirst),
    edge("Watch", "proxy, agent", "auth", ServerFirst),
    edge("Join", "proxy, agent", "auth", ServerFirst),
    edge("RenewHost", "proxy, agent", "auth", ServerFirst),
    edge("Login", "proxy", "auth", ServerFirst),
    edge("GetInvite", "proxy", "auth", ServerFirst),
    edge("AcceptInvite", "proxy", "auth", ServerFirst),
    edge("Reissue", "tsh", "auth", ServerFirst),
    edge("Sign", "tctl", "auth", ServerFirst),
    edge("CreateInvite", "tctl", "auth", ServerFirst),
    edge("CreateToken", "tctl", "auth", ServerFirst),
    edge("CreateBackup", "tctl", "auth", ServerFirst),
    edge("GetWindows", "tctl", "auth", ServerFirst),
    edge("MoveWindow", "tctl", "auth", ServerFirst),
    edge("EvictMember", "tctl", "auth", ServerFirst),
    edge("WalkMember", "tctl", "auth", ServerFirst),
    edge("ListMigrations", "tctl", "auth", ServerFirst),
    edge("ListBadRows", "tctl", "auth", ServerFirst),
    edge("RepairRow", "tctl", "auth", ServerFirst),
    edge("TurnMigration", "tctl", "auth", ServerFirst),
    edge("PlanUpgrade", "tctl", "auth", ServerFirst),
    edge("SteerUpgrade", "tctl", "auth", ServerFirst),
    edge("ListReleases", "tctl", "auth", ServerFirst),
    edge("Heartbeat", "proxy, agent", "auth", ServerFirst),
    edge("ReportQuarantine", "proxy", "auth", ServerFirst),
    edge("EmitEvents", "proxy, agent", "auth", ServerFirst),
    edge("SearchEvents", "tctl", "auth", ServerFirst),
    edge("VerifyAudit", "tctl", "auth", ServerFirst),
    edge("ExportEvents", "tctl", "auth", ServerFirst),
    edge("UploadRecording", "agent", "auth", ServerFirst),
    edge("ListRecordings", "tsh", "auth", ServerFirst),
    edge("ReadRecording", "tsh", "auth", ServerFirst),
    edge("ListOwnRecordings", "auth", "auth", CallerSpeaksOlder),
    edge("ReadOwnRecording", "auth", "auth", CallerSpeaksOlder),
    // Connections that are not gRPC.
    edge("lockgate-ssh", "tsh", "proxy", ServerFirst),
    edge("lockgate-ssh (direct)", "proxy", "agent", CallerSpeaksOlder),
    edge("lockgate-tunnel", "agent", "proxy", ServerFirst),
    edge("lockgate-tunnel-data", "agent", "proxy", ServerFirst),
    edge("lockgate-rescue", "agent", "proxy", AnyVersion),
    edge("/webapi", "tsh", "proxy", ServerFirst),
];

/// The row of that name.
pub fn find(name: &str) -> Option<&'static Edge> {
    EDGES.iter().find(|edge| edge.name == name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rpc_of_the_api_has_its_row() {
        let proto = include_str!("../proto/lockgate/v1/api.proto");
        let rpcs: Vec<&str> =
            proto.lines().filter_map(|line| line.trim().strip_prefix("rpc ")).filter_map(|rest| rest.split('(').next()).collect();
        assert!(rpcs.len() > 20);
        for rpc in &rpcs {
            assert!(find(rpc).is_some(), "{rpc} has no row in EDGES");
        }
        let stale: Vec<_> =
            EDGES.iter().filter(|edge| edge.name.chars().next().is_some_and(char::is_uppercase) && !rpcs.contains(&edge.name)).collect();
        assert!(stale.is_empty(), "rows without an RPC: {stale:?}");
    }

    #[test]
    fn every_row_names_callers_and_a_server_that_there_are_and_one_edge_alone_judges_nobody() {
        for edge in EDGES {
            let known = |word: &str| ["anyone", "tsh", "tctl", "proxy", "agent", "auth"].contains(&word);
            assert!(edge.callers.split(", ").all(known) && known(edge.server), "{edge:?}");
            // Who calls his own kind, or one that is upgraded after him, goes against the order of an upgrade (rule G8).
            let order = |word: &str| ["auth", "proxy", "agent"].iter().position(|role| *role == word).unwrap_or(usize::MAX);
            let against = edge.callers.split(", ").any(|caller| order(caller) <= order(edge.server) && order(caller) != usize::MAX);
            assert_eq!(edge.direction == CallerSpeaksOlder, against, "{edge:?}");
        }
        let unjudged: Vec<_> = EDGES.iter().filter(|edge| edge.direction == AnyVersion).map(|edge| edge.name.as_bytes()).collect();
        assert_eq!(unjudged, [crate::alpn::RESCUE]);
        for name in [crate::alpn::SSH, crate::alpn::TUNNEL, crate::alpn::TUNNEL_DATA, crate::alpn::RESCUE] {
            assert!(EDGES.iter().any(|edge| edge.name.as_bytes() == name));
        }
    }

    #[test]
    fn rows_are_unique() {
        let mut names: Vec<_> = EDGES.iter().map(|edge| edge.name).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), EDGES.len());
    }
}
