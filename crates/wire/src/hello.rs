//! The handshake with which every connection between two Lockgate processes begins (design 3.2).
//!
//! Inside TLS, before anything else is parsed: the client sends [`Hello`], the server answers [`Answer`] (its own
//! hello and its verdict), the client sends its [`Verdict`] at the head of its first data. Each side decides for itself
//! with [`judge`]; the refused side gets the cure in clear words. Frames are those of `frame.rs`; the payload is the
//! magic `LGH1` and JSON. Services also say the digest of what their build stores and speaks (`content`): where equal versions
//! meet, two digests are two builds, and refused. Envelope and field names are frozen for ever: a golden transcript is a
//! test. Unknown fields and capabilities are ignored. `net::hello` moves the bytes.
//!
//! Over HTTP (`/webapi`) the same JSON travels in the header [`HEADER`], and a refusal is status 426 with a
//! [`Public`] as its body.

use crate::{capability, content};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use types::{Code, Extra, Public, Skew, SystemRole, Version, version::Direction};

/// The first bytes of every handshake payload.
pub const MAGIC: &[u8; 4] = b"LGH1";
/// The HTTP header that carries a [`Hello`] as JSON, both ways.
pub const HEADER: &str = "lockgate-hello";
/// The only API version there is.
pub const API: &str = "auth";

/// What one end says of itself.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// Binary version as text: unreadable text must reach [`judge`] as a refusal, not fail the parser.
    #[serde(default)]
    pub version: String,
    /// `tsh`, `tctl`, `proxy`, `node`, `auth`, …: for messages and the audit log; grants nothing.
    #[serde(default)]
    pub role: String,
    /// API name to the range of versions spoken.
    #[serde(default)]
    pub apis: BTreeMap<String, (u32, u32)>,
    #[serde(default)]
    pub capabilities: BTreeSet<String>,
    /// Set when this process runs with `--skip-version-check` (rule G6): the server writes it to the audit log.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub skips_version_check: bool,
    /// What the build stores and speaks, said by services: `content::digest`. A peer that says none is not judged by it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub content: Option<String>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Hello {
    /// What this build says when it runs as `role` and claims `version`.
    pub fn ours(version: &Version, role: &str) -> Self {
        Self {
            version: version.to_string(),
            role: role.to_owned(),
            content: is_service(role).then(|| content::digest().to_owned()),
            apis: BTreeMap::from([(API.to_owned(), (1, 1))]),
            capabilities: capability::OURS.iter().map(|&c| c.to_owned()).collect(),
            skips_version_check: false,
            extra: Extra::new(),
        }
    }
    /// The version, if it can be read.
    pub fn parsed(&self) -> Option<Version> {
        self.version.parse().ok()
    }
    pub fn can(&self, capability: &str) -> bool {
        self.capabilities.contains(capability)
    }
}

/// One end's decision.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Accept,
    Refuse(Public),
}

/// The server's side of the handshake.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Answer {
    pub hello: Hello,
    pub verdict: Verdict,
}

/// Judges an edge from both hellos; the same function on both ends.
pub fn judge(direction: Direction, client: &Hello, server: &Hello) -> Skew {
    Skew::judge(direction, client.parsed().as_ref(), server.parsed().as_ref())
}

/// The verdict on an edge, the same on both ends: [`judge`], rule G6 for Proxies and resource services, and that services of one
/// version are of one build.
///
/// A host that finds a server one major behind is refused with the cure `--skip-version-check`; when it runs with that
/// flag it is accepted, and [`skipped`] tells the server to write that to the audit log.
pub fn decide(direction: Direction, client: &Hello, server: &Hello) -> Verdict {
    let Skew::Refused(public) = judge(direction, client, server) else {
        return other_build(client, server).map_or(Verdict::Accept, Verdict::Refuse);
    };
    match older_server(client, server) {
        Some(1) if client.skips_version_check => Verdict::Accept,
        Some(ahead) => Verdict::Refuse(server_too_old(client, server, ahead)),
        None => Verdict::Refuse(public),
    }
}

/// Whether the edge is accepted only because the client runs with `--skip-version-check`.
pub fn skipped(direction: Direction, client: &Hello, server: &Hello) -> bool {
    decide(direction, client, server) == Verdict::Accept && judge(direction, client, server).accepted().is_err()
}

fn system_role(role: &str) -> SystemRole {
    role.parse().unwrap_or(SystemRole::Other(String::new()))
}

/// Members refuse another build of their version. `tsh` and `tctl` store nothing: for them it is no more than a curiosity.
fn is_service(role: &str) -> bool {
    match system_role(role) {
        SystemRole::Auth | SystemRole::Proxy | SystemRole::Node | SystemRole::Db => true,
        SystemRole::Admin | SystemRole::Other(_) => false,
    }
}

/// Whether the server is another build of our own version: for a client that says no digest, a hint and no more.
pub fn of_another_build(ours: &Hello, server: &Hello) -> bool {
    ours.content.is_none()
        && ours.parsed().is_some_and(|version| server.parsed() == Some(version))
        && server.content.as_deref().is_some_and(|theirs| theirs != content::digest())
}

/// Why two services of one version may not work together: they are not of one build.
fn other_build(client: &Hello, server: &Hello) -> Option<Public> {
    let (version, same) = (client.parsed()?, client.parsed() == server.parsed());
    let (theirs, ours) = (client.content.as_deref()?, server.content.as_deref()?);
    if !same || theirs == ours || !is_service(&client.role) || !is_service(&server.role) {
        return None;
    }
    let message = format!("you and the server are both {version} and not of one build: content {} and {}", shown(theirs), shown(ours));
    Some(Public::new(Code::VersionBuild, message).hint(format!("install the cluster's build of {version}; compare with: lockgate version")))
}

/// The start of a digest, which is any text when a peer said it.
fn shown(digest: &str) -> String {
    content::short(digest).chars().flat_map(char::escape_default).collect()
}

/// By how many majors the server is behind, when the client is a host, which rule G6 is about.
fn older_server(client: &Hello, server: &Hello) -> Option<u64> {
    let host = match system_role(&client.role) {
        SystemRole::Proxy | SystemRole::Node | SystemRole::Db => true,
        SystemRole::Auth | SystemRole::Admin | SystemRole::Other(_) => false,
    };
    let ahead = client.parsed()?.major().checked_sub(server.parsed()?.major())?;
    (host && ahead > 0).then_some(ahead)
}

fn server_too_old(client: &Hello, server: &Hello, ahead: u64) -> Public {
    let (service, code) = match server.role.as_str() {
        "auth" => ("Auth Service", Code::VersionAuthOlder),
        _ => ("server", Code::VersionTooNew),
    };
    let upgrade = format!("upgrade the {service} first, or use {} here", server.version);
    let flag = if ahead == 1 { "; --skip-version-check turns this refusal into a warning" } else { "" };
    Public::new(code, format!("you {}, {service} {}: newer than the {service}", client.version, server.version)).hint(upgrade + flag)
}

/// Why bytes are not a handshake message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadHello {
    #[error("the peer does not speak Lockgate's handshake")]
    NotLockgate,
    #[error("the peer's handshake cannot be read: {0}")]
    Malformed(String),
}

/// Payload of one handshake frame.
pub fn encode<T: Serialize>(message: &T) -> Vec<u8> {
    let mut out = MAGIC.to_vec();
    // Serialising these types cannot fail; an empty object is refused by every reader.
    out.extend(serde_json::to_vec(message).unwrap_or_default());
    out
}

/// Reads the payload of one handshake frame.
pub fn decode<T: for<'de> Deserialize<'de>>(payload: &[u8]) -> Result<T, BadHello> {
    let json = payload.strip_prefix(MAGIC).ok_or(BadHello::NotLockgate)?;
    serde_json::from_slice(json).map_err(|error| BadHello::Malformed(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_is_frozen_byte_for_byte() {
        let mut hello = Hello::ours(&Version::new(8, 3, 7), "tsh");
        hello.capabilities = BTreeSet::from(["x".to_owned()]);
        assert_eq!(
            String::from_utf8(encode(&hello)).unwrap(),
            r#"LGH1{"version":"8.3.7","role":"tsh","apis":{"auth":[1,1]},"capabilities":["x"]}"#
        );
        let service = Hello { content: Some("sha256:aa".into()), skips_version_check: true, role: "node".into(), ..hello };
        assert_eq!(
            String::from_utf8(encode(&service)).unwrap(),
            r#"LGH1{"version":"8.3.7","role":"node","apis":{"auth":[1,1]},"capabilities":["x"],"skips_version_check":true,"content":"sha256:aa"}"#
        );
        assert_eq!(String::from_utf8(encode(&Verdict::Accept)).unwrap(), r#"LGH1"accept""#);
        let refuse = Verdict::Refuse(Public::new(Code::VersionTooNew, "no"));
        assert_eq!(String::from_utf8(encode(&refuse)).unwrap(), r#"LGH1{"refuse":{"code":"LG-VERSION-002","message":"no"}}"#);
    }

    #[test]
    fn fields_and_capabilities_of_a_newer_release_are_ignored_but_kept() {
        let bytes = br#"LGH1{"version":"9.0.0","role":"tsh","capabilities":["new.thing"],"colour":"blue"}"#;
        let hello: Hello = decode(bytes).unwrap();
        assert_eq!(hello.extra["colour"], "blue");
        assert!(hello.can("new.thing"));
    }

    #[test]
    fn g4_an_unreadable_version_reaches_the_judge_as_a_refusal() {
        let ours = Hello::ours(&Version::new(8, 0, 0), "auth");
        for version in ["", "eight", "8", "8.0"] {
            let peer = Hello { version: version.into(), ..ours.clone() };
            assert!(judge(Direction::ServerFirst, &peer, &ours).accepted().is_err(), "{version:?}");
        }
        assert_eq!(decode::<Hello>(b"SSH-2.0-OpenSSH"), Err(BadHello::NotLockgate));
    }

    fn hello(role: &str, version: &str, skips: bool) -> Hello {
        Hello { version: version.into(), skips_version_check: skips, ..Hello::ours(&Version::new(0, 0, 0), role) }
    }

    const CLIENTS: [&str; 7] = ["tsh", "tctl", "proxy", "node", "db", "auth", "someone-new"];
    const SERVERS: [&str; 4] = ["auth", "proxy", "node", "someone-new"];

    #[test]
    fn g4_g6_every_pair_of_roles_at_every_distance_has_the_verdict_of_the_table() {
        let check = |client: &Hello, server: &Hello, want: Option<Code>| {
            let got = match decide(Direction::ServerFirst, client, server) {
                Verdict::Accept => None,
                Verdict::Refuse(public) => Some(public.known().unwrap()),
            };
            assert_eq!(got, want, "{client:?} to {server:?}");
            let plain = judge(Direction::ServerFirst, client, server).accepted().is_ok();
            assert_eq!(skipped(Direction::ServerFirst, client, server), got.is_none() && !plain);
        };
        for (c, s, skips) in CLIENTS.into_iter().flat_map(|c| SERVERS.into_iter().flat_map(move |s| [(c, s, false), (c, s, true)])) {
            let host = matches!(c, "proxy" | "node" | "db");
            let newer = Some(if host && s == "auth" { Code::VersionAuthOlder } else { Code::VersionTooNew });
            let table = [
                ("8.1.0", None),
                ("8.0.0-rc.1", None),
                ("7.0.0", None),
                ("7.0.0-rc.1", None),
                ("6.9.9", Some(Code::VersionTooOld)),
                ("9.0.0", if host && skips { None } else { newer }),
                ("9.0.0-rc.1", if host && skips { None } else { newer }),
                ("10.0.0", newer),
                ("", Some(Code::VersionUnreadable)),
                ("eight", Some(Code::VersionUnreadable)),
            ];
            for (version, want) in table {
                check(&hello(c, version, skips), &hello(s, "8.3.0", false), want);
            }
            check(&hello(c, "8.0.0", skips), &hello(s, "soon", false), Some(Code::VersionUnreadable));
        }
    }

    #[test]
    fn g6_the_cure_names_the_flag_only_where_it_helps() {
        let check = |client: &str, server: &str, want: &str| match decide(
            Direction::ServerFirst,
            &hello("proxy", client, false),
            &hello(server, "8.3.7", false),
        ) {
            Verdict::Refuse(public) => assert_eq!(format!("{}: {}; {}", public.code, public.message, public.hint.unwrap()), want),
            Verdict::Accept => panic!("accepted"),
        };
        check(
            "9.0.0",
            "auth",
            "LG-VERSION-007: you 9.0.0, Auth Service 8.3.7: newer than the Auth Service; \
             upgrade the Auth Service first, or use 8.3.7 here; --skip-version-check turns this refusal into a warning",
        );
        check(
            "10.0.0",
            "auth",
            "LG-VERSION-007: you 10.0.0, Auth Service 8.3.7: newer than the Auth Service; upgrade the Auth Service first, or use 8.3.7 here",
        );
        check(
            "9.0.0",
            "proxy",
            "LG-VERSION-002: you 9.0.0, server 8.3.7: newer than the server; \
             upgrade the server first, or use 8.3.7 here; --skip-version-check turns this refusal into a warning",
        );
    }

    #[test]
    fn two_builds_of_one_version_do_not_work_in_one_cluster() {
        let said =
            |role: &str, version: &str, content: Option<&str>| Hello { content: content.map(str::to_owned), ..hello(role, version, false) };
        let check = |client: Hello, server: Hello, refused: bool| {
            let got = decide(Direction::ServerFirst, &client, &server);
            let want = matches!(&got, Verdict::Refuse(public) if public.is(Code::VersionBuild) && public.message.contains("8.1.0") && public.hint.is_some());
            assert_eq!(want, refused, "{client:?} to {server:?}: {got:?}");
            assert_eq!(got == Verdict::Accept, !refused);
            assert!(!skipped(Direction::ServerFirst, &client, &server));
        };
        for (client, server) in
            [("node", "auth"), ("proxy", "auth"), ("node", "proxy"), ("auth", "auth"), ("proxy", "node"), ("db", "proxy")]
        {
            check(said(client, "8.1.0", Some("sha256:aa")), said(server, "8.1.0", Some("sha256:bb")), true);
            check(said(client, "8.1.0", Some("sha256:aa")), said(server, "8.1.0", Some("sha256:aa")), false);
            // Other versions differ by right, and a peer of before says nothing.
            check(said(client, "8.1.0", Some("sha256:aa")), said(server, "8.1.1", Some("sha256:bb")), false);
            check(said(client, "7.1.0", Some("sha256:aa")), said(server, "8.1.0", Some("sha256:bb")), false);
            check(said(client, "8.1.0", None), said(server, "8.1.0", Some("sha256:bb")), false);
            check(said(client, "8.1.0", Some("sha256:aa")), said(server, "8.1.0", None), false);
        }
        for client in ["tsh", "tctl", "someone-new"] {
            check(said(client, "8.1.0", Some("sha256:aa")), said("auth", "8.1.0", Some("sha256:bb")), false);
            assert_eq!(Hello::ours(&Version::new(8, 0, 0), client).content, None);
            assert!(of_another_build(&said(client, "8.1.0", None), &said("auth", "8.1.0", Some("sha256:bb"))));
            assert!(!of_another_build(&said(client, "8.1.0", None), &said("auth", "8.2.0", Some("sha256:bb"))));
            assert!(!of_another_build(&said(client, "8.1.0", None), &said("auth", "8.1.0", Some(content::digest()))));
        }
        assert_eq!(Hello::ours(&Version::new(8, 0, 0), "node").content.as_deref(), Some(content::digest()));
    }

    #[test]
    fn a_server_cannot_waive_the_check_for_its_clients() {
        let verdict = decide(Direction::ServerFirst, &hello("node", "9.0.0", false), &hello("auth", "8.0.0", true));
        assert!(matches!(verdict, Verdict::Refuse(_)));
        assert_eq!(decide(Direction::CallerSpeaksOlder, &hello("auth", "9.0.0", false), &hello("node", "8.0.0", false)), Verdict::Accept);
    }
}
