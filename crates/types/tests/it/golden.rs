//! Every kind of document with every field set, the control record, events and refusals: what a release wrote is still written
//! under the same names and read as the same. Later releases may add fields and kinds.

use crate::hold::hold;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use types::{
    ClusterName, Code, ControlRecord, Document, Event, EventKind, Extra, HostId, HostIdentity, Identity, Labels, Login, Metadata, NodeName,
    Public, Resource, ResourceName, SystemRole, Time, Ttl, UserIdentity, UserName, Version,
    control::{ClusterVersion, FORMAT, Window},
    document::{Revision, Spec},
    identity::Restrictions,
    kind::{
        AuthPreference, CaKey, CertAuthority, ClusterInfo, KINDS, Lock, LockTarget, Member, Node, Platform, Quarantine, SecondFactor,
        Token, User, singleton,
    },
    name::ClusterId,
    role::{Conditions, OneOrMany, Options, Role, Rule},
    update,
};

/// All that `golden` says, `made` says too, word for word.
fn contains(golden: &Value, made: &Value, at: &str) {
    match (golden, made) {
        (Value::Object(golden), Value::Object(made)) => {
            for (key, value) in golden {
                let found = made.get(key).unwrap_or_else(|| panic!("{at}.{key} is gone"));
                contains(value, found, &format!("{at}.{key}"));
            }
        }
        (Value::Array(golden), Value::Array(made)) if golden.len() == made.len() => {
            golden.iter().zip(made).enumerate().for_each(|(index, (golden, made))| contains(golden, made, &format!("{at}[{index}]")));
        }
        _ => assert_eq!(golden, made, "{at}"),
    }
}

/// `again` reads JSON with the types of now and writes what it read.
fn check(name: &str, made: &Value, again: impl Fn(Value) -> Value) {
    let text = serde_json::to_string_pretty(made).unwrap() + "\n";
    hold(name, text.as_bytes(), |golden, _| {
        let golden: Value = serde_json::from_slice(golden).unwrap();
        contains(&golden, made, "written");
        contains(&golden, &again(golden.clone()), "read");
    });
    assert_eq!(&again(made.clone()), made, "{name} is not read as it was written");
}

fn day(number: i64) -> Time {
    Time::from_unix(1_790_000_000 + number * 86_400)
}

fn host(number: u128) -> HostId {
    HostId::from_uuid(uuid::Uuid::from_u128(number))
}

fn named(name: &str) -> Metadata {
    Metadata {
        name: ResourceName::new(name).unwrap(),
        description: Some("What it is for".into()),
        labels: Labels::from([("env".into(), "prod".into())]),
        expires: Some(day(30)),
        revision: Some(Revision("17".into())),
        extra: Extra::new(),
    }
}

fn names<T: Ord>(make: impl Fn(&str) -> T, texts: &[&str]) -> std::collections::BTreeSet<T> {
    texts.iter().map(|text| make(text)).collect()
}

fn resource(text: &str) -> ResourceName {
    ResourceName::new(text).unwrap()
}

/// Kinds that were checked.
#[derive(Default)]
struct Kinds(Vec<&'static str>);

impl Kinds {
    fn document<S: Spec>(&mut self, name: &str, spec: S) {
        let made = Resource::new(named(name), spec).to_document();
        let again = |value: Value| {
            let document = Document::from_json(value.to_string().as_bytes()).unwrap();
            serde_json::from_slice(&Resource::<S>::from_document(document).unwrap().to_document().to_json()).unwrap()
        };
        check(&format!("document-{}.json", S::KIND), &serde_json::from_slice(&made.to_json()).unwrap(), again);
        self.0.push(S::KIND);
    }
}

fn role() -> Role {
    let rule = Rule { resources: vec!["user".into()], verbs: vec!["list".into(), "read".into()], extra: Extra::new() };
    let allow = Conditions {
        logins: vec!["root".into(), "{{internal.logins}}".into()],
        node_labels: BTreeMap::from([("env".into(), OneOrMany(vec!["prod".into(), "staging".into()]))]),
        rules: vec![rule],
        extra: Extra::new(),
    };
    let deny = Conditions { logins: vec!["guest".into()], ..Conditions::default() };
    let options = Options {
        max_session_ttl: Ttl::hours(8),
        port_forwarding: false,
        forward_agent: true,
        max_sessions: Some(4),
        max_connections: Some(2),
        client_idle_timeout: Some(Ttl::hours(1)),
        disconnect_expired_cert: true,
        extra: Extra::new(),
    };
    Role { options, allow, deny, extra: Extra::new() }
}

fn member() -> Member {
    let quarantine = Quarantine { since: day(2), next: "2.1.0".into(), why: "too old".into(), extra: Extra::new() };
    let extra = json!({"window_gen": 3, "content": "sha256:00", "quarantine": quarantine, "proxy_public_addr": "p:3080"});
    Member {
        hostname: "host1".into(),
        roles: [SystemRole::Node, SystemRole::Proxy].into(),
        version: Version::new(1, 0, 0),
        boot_id: "b".into(),
        started: day(0),
        last_seen: day(1),
        state: Member::QUARANTINED.into(),
        skips_version_check: true,
        labels: Labels::from([("rack".into(), "7".into())]),
        platform: Platform { os: "linux".into(), arch: "amd64".into(), init: "systemd".into(), libc: "gnu".into(), extra: Extra::new() },
        capabilities: vec!["hand-over".into()],
        extra: extra.as_object().unwrap().clone(),
    }
}

fn authority() -> CertAuthority {
    let key = CaKey {
        algorithm: "ed25519".into(),
        ssh: "ssh-ed25519 AAAA".into(),
        tls: "-----BEGIN CERTIFICATE-----".into(),
        pin: "sha256:00".into(),
        active: true,
        extra: Extra::new(),
    };
    CertAuthority { cluster: ClusterName::new("demo").unwrap(), ca_type: "user".into(), keys: vec![key], extra: Extra::new() }
}

#[test]
fn every_kind_of_document_is_written_and_read_as_it_was_released() {
    let mut kinds = Kinds::default();
    let (cluster_name, cluster_id) = (ClusterName::new("demo").unwrap(), ClusterId::from_uuid(uuid::Uuid::from_u128(9)));
    kinds.document(singleton::CLUSTER_NAME, ClusterInfo { cluster_name, cluster_id, extra: Extra::new() });
    let preference = AuthPreference {
        auth_type: "local".into(),
        second_factor: SecondFactor::Off,
        default_session_ttl: Ttl::hours(9),
        extra: Extra::new(),
    };
    kinds.document(singleton::AUTH_PREFERENCE, preference);
    kinds.document("user", authority());
    kinds.document("dev", role());
    let user = User {
        roles: names(resource, &["access", "dev"]),
        traits: BTreeMap::from([("logins".into(), vec!["root".into()])]),
        created_by: Some("root".into()),
        extra: Extra::new(),
    };
    kinds.document("alice", user);
    let token = Token {
        roles: [SystemRole::Node].into(),
        hint: "abcd".into(),
        labels: Labels::from([("env".into(), "prod".into())]),
        extra: Extra::new(),
    };
    kinds.document("0a1b2c", token);
    let target = LockTarget {
        user: Some("alice".into()),
        role: Some("dev".into()),
        login: Some("root".into()),
        node: Some(host(1)),
        extra: Extra::new(),
    };
    kinds.document("lock1", Lock { target, message: "left".into(), extra: Extra::new() });
    let target = update::Target {
        hosts: [host(1)].into(),
        roles: [SystemRole::Node].into(),
        wave: Some(update::Wave { salt: "u1".into(), below: 500 }),
        version: Version::new(1, 1, 0),
        artifacts: BTreeMap::from([("linux/amd64".into(), types::Sha256::new([1; 32]))]),
        retry: true,
        extra: Extra::new(),
    };
    let signed = update::SignedDirective { directive: "{}".into(), signature: "AAAA".into() };
    let directive = update::UpdateDirective { targets: vec![target], expires: Some(day(9)), generation: 7, signed, extra: Extra::new() };
    kinds.document(singleton::UPDATE_DIRECTIVE, directive);
    let managed = types::upgrade::Managed { minors_only: false, days: vec![2, 4], from_hour: 22, to_hour: 4 };
    let policy = types::upgrade::Policy { min_auth: Some(2), min_proxies: Some(1), managed: Some(managed), ..Default::default() };
    kinds.document(singleton::UPGRADE_POLICY, policy);
    let node = Node {
        hostname: NodeName::new("host1").unwrap(),
        addr: "10.0.0.1:3022".into(),
        use_tunnel: true,
        version: Version::new(1, 0, 0),
        extra: Extra::new(),
    };
    kinds.document(&host(1).to_string(), node);
    kinds.document(&host(1).to_string(), member());
    let known: Vec<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds.0, known, "a new kind has its example here");
}

#[test]
fn the_control_record_is_written_and_read_as_it_was_released() {
    let window = |lo, hi| Window { shut: Some(9), ..Window::new(lo, hi) };
    let roles = ["auth", "proxy", "agent", "draining", "leaf"];
    let record = ControlRecord {
        format: FORMAT,
        cluster_id: ClusterId::from_uuid(uuid::Uuid::from_u128(9)),
        epoch: 12,
        min_writer_epoch: 11,
        cluster_version: ClusterVersion { major: 1, step: 2 },
        windows: roles.map(|role| (role.to_owned(), window(0, 1))).into(),
        window_gen: 5,
        production: false,
        upgrade: Some(json!({"id": "u"})),
        migration_lease: Some(json!({"holder": "h", "token": 3})),
        backup: Some(json!({"id": "b"})),
        rollback: Some(json!({"blockers": []})),
        evictions: vec![json!({"member": "m"})],
        written_by: Some("1.0.0".into()),
        written_at: Some(day(0)),
        extra: Extra::new(),
    };
    let again = |value: Value| serde_json::to_value(serde_json::from_value::<ControlRecord>(value).unwrap()).unwrap();
    check("control.json", &serde_json::to_value(record).unwrap(), again);
}

#[test]
fn events_and_refusals_are_written_and_read_as_they_were_released() {
    let event = Event::new(EventKind::Login, day(0), uuid::Uuid::from_u128(5)).with("user", "alice").with("success", true);
    let again = |value: Value| serde_json::to_value(serde_json::from_value::<Event>(value).unwrap()).unwrap();
    check("event.json", &serde_json::to_value(event).unwrap(), again);
    let public = Public { reference: Some("7f3a".into()), ..Public::new(Code::VersionTooNew, "newer").hint("upgrade the server first") };
    let again = |value: Value| serde_json::to_value(serde_json::from_value::<Public>(value).unwrap()).unwrap();
    check("public.json", &serde_json::to_value(public).unwrap(), again);
}

#[test]
fn identities_are_written_and_read_as_they_were_released() {
    let restrictions = Restrictions {
        source_ip: Some("10.0.0.1".parse().unwrap()),
        no_reissue: true,
        host: Some(host(1)),
        second_factor: true,
        extra: Extra::new(),
    };
    let user = UserIdentity {
        cluster: ClusterName::new("demo").unwrap(),
        user: UserName::new("alice").unwrap(),
        roles: names(resource, &["access"]),
        traits: BTreeMap::from([("logins".into(), vec!["root".into()])]),
        logins: names(|text| Login::new(text).unwrap(), &["root"]),
        expires: day(1),
        restrictions,
        extra: Extra::new(),
    };
    let member = HostIdentity {
        cluster: ClusterName::new("demo").unwrap(),
        id: host(1),
        name: NodeName::new("host1").unwrap(),
        roles: [SystemRole::Node, SystemRole::Proxy].into(),
        extra: Extra::new(),
    };
    let again = |value: Value| serde_json::to_value(serde_json::from_value::<Identity>(value).unwrap()).unwrap();
    check("identity-user.json", &serde_json::to_value(Identity::User(user)).unwrap(), again);
    check("identity-host.json", &serde_json::to_value(Identity::Host(member)).unwrap(), again);
}
