//! From what a user typed to one registered host.
//!
//! The caller passes only hosts that the user may see; so an unknown host and a forbidden one give the same answer, and a
//! list of candidates never names a host that he could not list. A target is dialled by the id of a registered host,
//! never by an address that a peer supplied (attack table, row 13): the permit's address is what the Auth Service observed.

use crate::permit::{Denied, Dial, Permit};
use types::{ClusterName, HostId, Resource, kind::Node, label::show_labels};

/// Most candidates named in an ambiguity.
const MAX_CANDIDATES: usize = 10;

/// Finds the host that `asked` means: a host id, a host name, or `name.cluster`.
///
/// Host names compare without regard to ASCII case, as in DNS; an id beats a name.
pub fn resolve<'n>(
    asked: &str,
    cluster: &ClusterName,
    visible: impl IntoIterator<Item = &'n Resource<Node>>,
) -> Result<Permit<Dial>, Denied> {
    let asked_id = asked.parse::<HostId>().ok();
    let short = asked.len().checked_sub(cluster.as_str().len() + 1).and_then(|cut| {
        let (name, rest) = asked.split_at_checked(cut)?;
        (rest.strip_prefix('.')?.eq_ignore_ascii_case(cluster.as_str())).then_some(name)
    });
    let mut found = Vec::new();
    for node in visible {
        let Ok(id) = node.name().as_str().parse::<HostId>() else { continue };
        if asked_id == Some(id) {
            return Ok(dial(id, node));
        }
        let name = node.spec.hostname.as_str();
        if name.eq_ignore_ascii_case(asked) || short.is_some_and(|short| name.eq_ignore_ascii_case(short)) {
            found.push((id, node));
        }
    }
    found.sort_by_key(|(id, _)| *id);
    let asked = asked.chars().take(100).flat_map(char::escape_default).collect::<String>();
    match found.as_slice() {
        [] => Err(Denied::Node { asked }),
        [(id, node)] => Ok(dial(*id, node)),
        several => {
            let shown = several.iter().take(MAX_CANDIDATES).map(|(id, node)| candidate(*id, node)).collect::<Vec<_>>().join("; ");
            let more = several.len().saturating_sub(MAX_CANDIDATES);
            Err(Denied::Ambiguous { asked, candidates: if more > 0 { format!("{shown}; and {more} more") } else { shown } })
        }
    }
}

fn dial(host: HostId, node: &Resource<Node>) -> Permit<Dial> {
    Permit::grant(Dial { host, hostname: node.spec.hostname.clone(), use_tunnel: node.spec.use_tunnel, addr: node.spec.addr.clone() })
}

fn candidate(id: HostId, node: &Resource<Node>) -> String {
    let labels = show_labels(&node.metadata.labels);
    if labels.is_empty() { id.to_string() } else { format!("{id} ({labels})") }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::{Code, Extra, Metadata, NodeName, Version};

    fn node(id: u128, name: &str, env: &str) -> Resource<Node> {
        let mut metadata = Metadata::named(&HostId::from_uuid(uuid::Uuid::from_u128(id)));
        metadata.labels = types::label::parse_labels(env).unwrap();
        let spec = Node {
            hostname: NodeName::new(name).unwrap(),
            addr: String::new(),
            use_tunnel: true,
            version: Version::new(1, 0, 0),
            extra: Extra::new(),
        };
        Resource::new(metadata, spec)
    }
    fn find(asked: &str) -> Result<u128, Denied> {
        let nodes = [node(1, "node1", ""), node(2, "db", "env=prod"), node(3, "db", "env=dev"), node(4, "a.b", "")];
        let cluster = ClusterName::new("example").unwrap();
        resolve(asked, &cluster, &nodes).map(|permit| permit.host.as_uuid().as_u128())
    }

    #[test]
    fn a_host_is_found_by_name_by_id_and_by_full_name() {
        let check = |asked: &str, want: u128| assert_eq!(find(asked), Ok(want), "{asked}");
        check("node1", 1);
        check("NODE1", 1);
        check("node1.example", 1);
        check("a.b", 4);
        check("a.b.example", 4);
        check("00000000-0000-0000-0000-000000000003", 3);
    }

    #[test]
    fn an_ambiguous_name_lists_its_candidates() {
        let public = find("db").unwrap_err().public();
        assert!(public.is(Code::NodeAmbiguous));
        let want = "name one by its id: 00000000-0000-0000-0000-000000000002 (env=prod); 00000000-0000-0000-0000-000000000003 (env=dev)";
        assert_eq!(public.hint.as_deref(), Some(want));
    }

    #[test]
    fn attack_row_13_addresses_and_unknown_names_reach_nothing() {
        for asked in
            ["", ".example", "node2", "127.0.0.1", "169.254.169.254", "localhost", "node1:22", "[::1]", "node1.other", "nöde.example"]
        {
            assert!(find(asked).unwrap_err().public().is(Code::NodeUnknown), "{asked}");
        }
    }
}
