//! Versions and how far apart they may be: rules G3, G4 and G6 of the operators' guide as arithmetic on majors.
//!
//! Nothing here orders versions within a major: what differs inside the accepted range is decided by capabilities,
//! never by comparing versions. Pre-releases count as their major: 11.0.0-rc.1 *is* an 11.
//! The sentences both sides print are made here too, so that they cannot differ. Every handshake calls
//! [`Skew::judge`]; `wire::hello` carries what it says.

use crate::{Code, Public};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};

/// A binary version, Semantic Versioning 2.0.0.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Version(semver::Version);

impl Version {
    pub const fn new(major: u64, minor: u64, patch: u64) -> Self {
        Self(semver::Version::new(major, minor, patch))
    }
    pub fn major(&self) -> u64 {
        self.0.major
    }
    /// Release candidates, betas, development builds (rule G2).
    pub fn is_prerelease(&self) -> bool {
        !self.0.pre.is_empty()
    }
    /// Release order by Semantic Versioning, for lists and filters. Compatibility never asks this.
    pub fn release_order(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp_precedence(&other.0)
    }
    /// The oldest major a server of this version still serves, as a version (`min_client_version` of rule G1).
    pub fn oldest_client(&self) -> Self {
        Self::new(self.major().saturating_sub(1), 0, 0)
    }
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(&self.0.to_string())
    }
}
impl std::str::FromStr for Version {
    type Err = BadVersion;
    /// Accepts `1.2.3`, `1.2.3-rc.1`, with or without a leading `v`; at most 64 bytes.
    fn from_str(text: &str) -> Result<Self, BadVersion> {
        let bad = || BadVersion(text.chars().take(40).flat_map(char::escape_default).collect());
        if text.len() > 64 {
            return Err(bad());
        }
        semver::Version::parse(text.strip_prefix('v').unwrap_or(text)).map(Self).map_err(|_| bad())
    }
}
impl Serialize for Version {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}
impl<'de> Deserialize<'de> for Version {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

/// A text that is not a version.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a version; write it as 1.2.3")]
pub struct BadVersion(String);

/// Which way an edge between two processes is versioned (design 3.2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// The usual edge: the server is upgraded first, clients may be one major behind.
    ServerFirst,
    /// Against the upgrade order (Auth to agent commands, Proxy to Proxy, root Proxy to leaf Auth): one major apart
    /// either way, the caller speaks the older of the two.
    CallerSpeaksOlder,
    /// Any two versions: the rescue of hosts that every other edge refuses. Gives no access.
    AnyVersion,
}

/// What two ends of a connection conclude from their versions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Skew {
    /// Same major.
    Same,
    /// The client is one major behind: accepted, with a hint to upgrade.
    ClientBehind,
    /// The client is one major ahead, on an edge that allows it.
    ClientAhead,
    /// Not allowed; the cure for both to print.
    Refused(Public),
}

impl Skew {
    /// Judges an edge. `client` and `server` are what each end *said*; `None` is a missing or unreadable version and is
    /// a refusal, not a pass (rule G4).
    pub fn judge(direction: Direction, client: Option<&Version>, server: Option<&Version>) -> Self {
        let (Some(client), Some(server)) = (client, server) else {
            return Self::Refused(
                Public::new(Code::VersionUnreadable, "the peer sent no readable version")
                    .hint("check that both ends are Lockgate, of neighbouring majors"),
            );
        };
        let (c, s) = (client.major(), server.major());
        match (direction, c.cmp(&s), c.abs_diff(s)) {
            (_, std::cmp::Ordering::Equal, _) | (Direction::AnyVersion, ..) => Self::Same,
            (_, std::cmp::Ordering::Less, 1) => Self::ClientBehind,
            (Direction::CallerSpeaksOlder, std::cmp::Ordering::Greater, 1) => Self::ClientAhead,
            (_, std::cmp::Ordering::Less, behind) => Self::Refused(too_old(client, server, behind)),
            (_, std::cmp::Ordering::Greater, _) => Self::Refused(too_new(client, server)),
        }
    }

    pub fn accepted(&self) -> Result<(), &Public> {
        match self {
            Self::Same | Self::ClientBehind | Self::ClientAhead => Ok(()),
            Self::Refused(public) => Err(public),
        }
    }
}

fn too_old(client: &Version, server: &Version, behind: u64) -> Public {
    let (c, s) = (client.major(), server.major());
    let steps: Vec<String> = (c.saturating_add(1)..=s).take(12).map(|major| major.to_string()).collect();
    let first = steps.first().cloned().unwrap_or_default();
    let rest = steps.get(1..).unwrap_or_default().iter().map(|major| format!(", then {major}")).collect::<String>();
    Public::new(Code::VersionTooOld, format!("server {server}, you {client}: too old by {}", count(behind)))
        .hint(format!("upgrade to the latest {first}{rest}"))
}

fn too_new(client: &Version, server: &Version) -> Public {
    Public::new(Code::VersionTooNew, format!("you {client}, server {server}: newer than the server"))
        .hint(format!("upgrade the server first, or use {server}"))
}

fn count(number: u64) -> String {
    match number {
        2 => "two".into(),
        3 => "three".into(),
        4 => "four".into(),
        n => n.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn v(text: &str) -> Version {
        text.parse().unwrap()
    }

    #[test]
    fn g4_servers_support_clients_of_their_own_major_or_one_behind_never_newer() {
        let check = |client: &str, server: &str, want: Result<Skew, Code>| {
            let got = Skew::judge(Direction::ServerFirst, Some(&v(client)), Some(&v(server)));
            match want {
                Ok(skew) => assert_eq!(got, skew, "{client} to {server}"),
                Err(code) => assert!(matches!(&got, Skew::Refused(public) if public.is(code)), "{client} to {server}: {got:?}"),
            }
        };
        check("8.0.1", "8.3.0", Ok(Skew::Same));
        check("8.3.0", "8.0.1", Ok(Skew::Same));
        check("7.0.0", "8.3.0", Ok(Skew::ClientBehind));
        check("6.9.9", "8.0.0", Err(Code::VersionTooOld));
        check("9.0.0", "8.3.7", Err(Code::VersionTooNew));
        check("11.0.0-rc.1", "11.2.0", Ok(Skew::Same));
        check("12.0.0-rc.1", "11.2.0", Err(Code::VersionTooNew));
    }

    #[test]
    fn a_missing_version_is_a_refusal() {
        for (client, server) in [(None, Some(v("1.0.0"))), (Some(v("1.0.0")), None), (None, None)] {
            let got = Skew::judge(Direction::ServerFirst, client.as_ref(), server.as_ref());
            assert!(matches!(got, Skew::Refused(public) if public.is(Code::VersionUnreadable)));
        }
    }

    #[test]
    fn g5_the_cure_names_every_major_on_the_way() {
        let Skew::Refused(cure) = Skew::judge(Direction::ServerFirst, Some(&v("8.3.7")), Some(&v("10.2.0"))) else { panic!() };
        assert_eq!(cure.message, "server 10.2.0, you 8.3.7: too old by two");
        assert_eq!(cure.hint.unwrap(), "upgrade to the latest 9, then 10");
        let Skew::Refused(cure) = Skew::judge(Direction::ServerFirst, Some(&v("9.0.0")), Some(&v("8.3.7"))) else { panic!() };
        assert_eq!(
            format!("{}; {}", cure.message, cure.hint.unwrap()),
            "you 9.0.0, server 8.3.7: newer than the server; upgrade the server first, or use 8.3.7"
        );
    }

    #[test]
    fn edges_against_the_upgrade_order_accept_one_major_either_way() {
        let judge = |c: &str, s: &str| Skew::judge(Direction::CallerSpeaksOlder, Some(&v(c)), Some(&v(s)));
        assert_eq!(judge("9.0.0", "8.0.0"), Skew::ClientAhead);
        assert_eq!(judge("8.0.0", "9.0.0"), Skew::ClientBehind);
        assert!(matches!(judge("10.0.0", "8.0.0"), Skew::Refused(_)));
    }

    proptest! {
        #[test]
        fn g3_minor_and_patch_never_matter(major in 1u64..50, a in 0u64..99, b in 0u64..99, c in 0u64..99, d in 0u64..99) {
            let (x, y) = (Version::new(major, a, b), Version::new(major, c, d));
            prop_assert_eq!(Skew::judge(Direction::ServerFirst, Some(&x), Some(&y)), Skew::Same);
        }

        #[test]
        fn any_text_is_a_version_or_a_clear_refusal(text in ".{0,80}") {
            if let Err(error) = text.parse::<Version>() {
                prop_assert!(error.to_string().ends_with("is not a version; write it as 1.2.3"));
            }
        }
    }
}
