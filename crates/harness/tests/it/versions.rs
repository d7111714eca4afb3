//! Versions: every pair of roles at every distance, by the handshake itself and with real programs of four majors.
//!
//! The servers are two majors ahead of this checkout, whatever its major is. Programs are this checkout's (two behind), and builds
//! that claim one major ahead of it, two, and a pre-release of the third. What a message says is decided in `types::version` and
//! `wire::hello`; here is what a user gets to see.

use crate::talk::{block_on, claiming, hello, http, name_of, refusal, tls, web_get};
use client::{host::HostCredentials, identity_file};
use harness::{
    Cluster, Run, Setup,
    binary::{MAJOR, ONE_AHEAD as BEFORE, THREE_AHEAD as NEXT, TWO_AHEAD as NOW, claiming as built, current},
    cluster::{Shared, Way, free_port, until_ok},
    eventually,
    person::me,
};
use net::tls::TlsIdentity;
use nix::sys::signal::Signal;
use sha2::{Digest as _, Sha256};
use std::{collections::BTreeMap, fs, path::Path, sync::OnceLock, time::Duration};
use types::{Code, SystemRole};
use wire::hello::Hello;

const SOON: Duration = Duration::from_secs(30);

fn setup() -> Setup {
    let program = built(NOW);
    Setup { split: true, auth: program.clone(), proxy: program.clone(), node: program, ..Setup::default() }
}

/// A cluster of the servers' major that takes pre-releases.
fn two() -> Shared {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    Shared::of(CLUSTER.get_or_init(|| Cluster::with(Setup { allow_prerelease: true, ..setup() })))
}

/// Who calls whom.
struct Edge {
    name: &'static str,
    role: &'static str,
    port: u16,
    alpn: &'static [u8],
    server: SystemRole,
    identity: TlsIdentity,
}

impl Edge {
    /// Rule G6 is about Proxies and hosts.
    fn is_host(&self) -> bool {
        self.role == "proxy" || self.role == "node"
    }
}

fn edges(cluster: &Cluster) -> Vec<Edge> {
    let alice = cluster.person("versions-edges", &["access"], &[me()]);
    let file = cluster.home.join("edges.pem");
    alice.login().arg("--out").arg(&file).go().ok();
    let user = identity_file::load(&file).unwrap();
    let host = |directory: &Path, file: &str| HostCredentials::load(&directory.join(file)).unwrap().tls;
    let admin = host(&cluster.auth().data_dir, "admin/identity.json");
    let (proxy, node) = (host(&cluster.proxy().data_dir, "host/identity.json"), host(&cluster.node().data_dir, "host/identity.json"));
    let edge = |name, role, port, alpn, server, identity: &TlsIdentity| Edge { name, role, port, alpn, server, identity: identity.clone() };
    let (auth_port, web_port) = (cluster.auth_port, cluster.web_port);
    vec![
        edge("tsh to proxy", "tsh", web_port, b"lockgate-ssh", SystemRole::Proxy, &user.tls),
        edge("tsh to auth, through the proxy", "tsh", web_port, b"lockgate-auth", SystemRole::Auth, &user.tls),
        edge("tctl to auth", "tctl", auth_port, b"lockgate-auth", SystemRole::Auth, &admin),
        edge("proxy to auth", "proxy", auth_port, b"lockgate-auth", SystemRole::Auth, &proxy),
        edge("node to auth", "node", auth_port, b"lockgate-auth", SystemRole::Auth, &node),
        edge("node to auth, through the proxy", "node", web_port, b"lockgate-auth", SystemRole::Auth, &node),
        edge("node to proxy", "node", web_port, b"lockgate-tunnel", SystemRole::Proxy, &node),
        edge("node to proxy, one session", "node", web_port, b"lockgate-tunnel-data", SystemRole::Proxy, &node),
    ]
}

/// A version so many majors away from the servers'.
fn away(distance: i64, rest: &str) -> String {
    format!("{}.{rest}", MAJOR as i64 + 2 + distance)
}

/// The table: what a client of that major hears, by its distance from the servers'; `None` is a version that cannot be read.
fn verdict(distance: Option<i64>, host_to_auth: bool, host: bool, skips: bool) -> Option<Code> {
    match distance {
        None => Some(Code::VersionUnreadable),
        Some(-1 | 0) => None,
        Some(..-1) => Some(Code::VersionTooOld),
        Some(1) if host && skips => None,
        Some(1..) if host_to_auth => Some(Code::VersionAuthOlder),
        Some(1..) => Some(Code::VersionTooNew),
    }
}

/// What clients claim, with the distance of its major from the servers'.
fn claims() -> Vec<(String, Option<i64>)> {
    let majors = [
        (0, "1.0"),
        (0, "0.0"),
        (0, "99.7"),
        (0, "2.0-rc.1"),
        (-1, "4.0"),
        (-1, "0.0-rc.1"),
        (-2, "9.0"),
        (-2, "0.1"),
        (1, "0.0"),
        (1, "0.0-rc.1"),
        (2, "0.0"),
    ];
    let unreadable = ["", "two", "2", "2.1"].map(|text| (text.to_owned(), None));
    majors.map(|(distance, rest)| (away(distance, rest), Some(distance))).into_iter().chain(unreadable).collect()
}

#[test]
fn g3_g4_g6_every_pair_of_roles_at_every_distance_gets_the_verdict_of_the_table() {
    // Its own: claims under the certificates of the Proxy and the host have those listed as quarantined until they report again.
    let cluster = Cluster::with(Setup { allow_prerelease: true, ..setup() });
    let (edges, claims) = (edges(&cluster), claims());
    let mut checked = 0;
    block_on(async {
        for edge in &edges {
            for ((version, distance), skips) in claims.iter().flat_map(|claim| [(claim, false), (claim, true)]) {
                let name = name_of(edge.server.clone(), &cluster);
                let mut stream =
                    tls(edge.port, edge.alpn, &name, Some(&edge.identity)).await.unwrap_or_else(|error| panic!("{}: {error}", edge.name));
                let ours = Hello { skips_version_check: skips, ..claiming(edge.role, version) };
                let answer = hello(&mut stream, &ours).await.unwrap_or_else(|error| panic!("{} {version:?}: {error}", edge.name));
                assert_eq!(answer.hello.version, NOW, "{}", edge.name);
                let want = verdict(*distance, edge.is_host() && edge.server == SystemRole::Auth, edge.is_host(), skips);
                let refused = refusal(&answer);
                assert_eq!(refused.map(|public| public.known().unwrap()), want, "{} {version:?} {skips}: {refused:?}", edge.name);
                if let Some(public) = refused.filter(|public| !public.is(Code::VersionUnreadable)) {
                    assert!(public.message.contains(NOW) && public.message.contains(version), "both versions: {public}");
                    assert!(public.hint.is_some(), "the cure: {public}");
                }
                checked += 1;
            }
        }
    });
    assert_eq!(checked, edges.len() * claims.len() * 2);
}

#[test]
fn g4_the_web_api_judges_versions_before_it_reads_a_password() {
    let cluster = two();
    block_on(async {
        for (version, distance) in claims() {
            let header = serde_json::to_string(&claiming("tsh", &version)).unwrap();
            let (status, _, body) = http(&cluster, "POST", "/webapi/login", &[("lockgate-hello", &header)], "{").await;
            let code = serde_json::from_str::<serde_json::Value>(&body).unwrap()["code"].as_str().unwrap().to_owned();
            match verdict(distance, false, false, false) {
                None => assert_ne!(status, 426, "{version:?}: {body}"),
                Some(want) => assert_eq!((status, code.as_str()), (426, want.as_str()), "{version:?}: {body}"),
            }
        }
        let (status, _, body) = http(&cluster, "POST", "/webapi/login", &[], "{}").await;
        assert_eq!(status, 426, "no version is a refusal: {body}");
        assert!(body.contains("LG-VERSION-003"), "{body}");
        let (status, _, body) = http(&cluster, "POST", "/webapi/login", &[("lockgate-hello", "not json")], "{}").await;
        assert!(status == 426 && body.contains("LG-VERSION-003"), "{status} {body}");
    });
    cluster.event("version.refused", "LV001W", &[]);
}

#[test]
fn g1_anyone_can_ask_for_the_version_with_or_without_a_connector_and_when_auth_is_away() {
    let cluster = Cluster::with(setup());
    let check = |path: &str| {
        let (status, body) = web_get(&cluster, path);
        let body: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(
            (body["server_version"].as_str(), body["min_client_version"].as_str()),
            (Some(NOW), Some(away(-1, "0.0").as_str())),
            "{path}: {status} {body}"
        );
        (status, body)
    };
    let (status, body) = check("/webapi/ping");
    assert_eq!((status, body["cluster_name"].as_str()), (200, Some(cluster.name.as_str())), "{body}");
    assert_eq!(check("/webapi/ping/local").0, 200);
    check("/webapi/ping/no-such-connector");
    assert_eq!(check("/webapi/find").0, 200);
    cluster.auth().kill();
    assert_eq!(check("/webapi/ping").0, 200);
    // A Proxy that starts while there is no Auth Service is half-started; it still says what it is.
    cluster.proxy().kill();
    cluster.proxy().start();
    eventually(SOON, "the Proxy listens", || std::net::TcpStream::connect(("127.0.0.1", cluster.web_port)).ok());
    assert_eq!(check("/webapi/ping").0, 200);
    check("/webapi/ping/local");
    assert_ne!(cluster.proxy().readyz().unwrap().0, 200, "and does not claim to be ready");
}

#[test]
fn g4_real_clients_of_four_majors() {
    let cluster = two();
    let alice = cluster.person("versions-clients", &["access"], &[me()]);
    let target = format!("{}@node1", me());
    let check = |program: &Path, version: &str, want: Option<&str>| {
        let other = alice.elsewhere(version);
        let login =
            other.tsh_of(program, ["login"]).args(other.where_to()).env("LOCKGATE_PASSWORD_FILE", other.password_file(&other.password));
        let runs = [
            ("login", login.go()),
            ("ls", alice.tsh_of(program, ["ls"]).go()),
            ("ssh", alice.tsh_of(program, ["ssh", &target, "true"]).go()),
            ("tctl", cluster.tctl_of(program, ["status"]).go()),
            ("tctl from elsewhere", Run::new(program).args(["tctl", "get", "roles"]).env("LOCKGATE_HOME", &alice.home).go()),
        ];
        for (what, ran) in runs {
            match want {
                // The last is refused for its roles, which is an answer; a version would be another.
                None => assert!(
                    ran.status == 0 || (what == "tctl from elsewhere" && ran.code() == Some("LG-ACCESS-001")),
                    "{version} {what}: {ran}"
                ),
                Some(code) => {
                    assert!(ran.status != 0 && ran.code() == Some(code), "{version} {what} wants {code}: {ran}");
                    assert!(ran.err.contains(NOW) && ran.err.contains(version), "both versions: {ran}");
                    assert!(ran.err.contains("hint:"), "the cure: {ran}");
                }
            }
        }
    };
    let ours = Run::new(current()).args(["version", "--format=json"]).go().json()["version"].as_str().unwrap().to_owned();
    check(current(), &ours, Some("LG-VERSION-001"));
    check(&built(BEFORE), BEFORE, None);
    check(&built(NOW), NOW, None);
    check(&built(NEXT), NEXT, Some("LG-VERSION-002"));
}

#[test]
fn g4_g6_real_members_of_four_majors() {
    let cluster = two();
    let alice = cluster.person("versions-members", &["access"], &[me()]);
    let refused = |program: &Path, code: &str, name: &str| {
        for way in [Way::Direct, Way::Tunnel] {
            let node = cluster.new_node(&format!("{name}-{way:?}").to_lowercase(), way, &[], program);
            let ran = node.command().go();
            assert!(ran.status == 1 && ran.code() == Some(code), "{name} {way:?} wants {code}: {ran}");
            assert!(ran.err.contains(NOW), "{ran}");
        }
        let proxy = cluster.new_proxy(&format!("{name}-proxy"), program);
        let ran = proxy.command().go();
        assert!(ran.status == 1 && ran.code() == Some(code), "{name} proxy wants {code}: {ran}");
    };
    refused(current(), "LG-VERSION-001", "two-behind");
    refused(&built(NEXT), "LG-VERSION-007", "one-ahead");
    for way in [Way::Tunnel, Way::Direct] {
        let name = format!("one-behind-{way:?}").to_lowercase();
        let node = cluster.watch(cluster.new_node(&name, way, &[], &built(BEFORE)));
        node.start();
        node.wait_ready();
        cluster.wait_node(&name);
        until_ok(SOON, || alice.ssh(&format!("{}@{name}", me()), "true"));
    }
    let shown = cluster.tctl(["inventory", "ls"]).go().ok();
    let line = shown.lines().find(|line| line.contains("one-behind-tunnel")).unwrap_or_else(|| panic!("{shown}"));
    assert!(line.contains(BEFORE) && line.contains("behind"), "{line}");
}

#[test]
fn g6_the_flag_turns_the_refusal_into_a_warning_that_is_written_down() {
    let cluster = two();
    let alice = cluster.person("versions-skip", &["access"], &[me()]);
    let node = cluster.watch(cluster.new_node("skipper", Way::Direct, &[], &built(NEXT)));
    let token = format!("--token={}", cluster.token("node"));
    node.set_args([token.clone(), "--skip-version-check".into()]);
    node.start();
    node.wait_ready();
    cluster.wait_node("skipper");
    assert!(node.log().contains("WARN") && node.log().contains("--skip-version-check"), "{}", node.log());
    until_ok(SOON, || alice.ssh(&format!("{}@skipper", me()), "true"));
    cluster.event("version.check_skipped", "LV002W", &[]);
    let shown = cluster.tctl(["inventory", "ls", "--format=json"]).go().json();
    let row = shown["members"].as_array().unwrap().iter().find(|row| row["hostname"] == "skipper").unwrap_or_else(|| panic!("{shown}"));
    assert_eq!((&row["skips_version_check"], row["version"].as_str()), (&true.into(), Some(NEXT)), "{row}");
    // Every member says what a file of a release must fit, Auth Services too.
    for row in shown["members"].as_array().unwrap() {
        let (platform, (os, arch)) = (&row["platform"], wire::rescue::system());
        assert_eq!((platform["os"].as_str(), platform["arch"].as_str()), (Some(os), Some(arch)), "{row}");
        assert!(platform["init"] != "" && platform["libc"] != "" && row["capabilities"].is_array(), "{row}");
    }
    let proxy = cluster.watch(cluster.new_proxy("skipping-proxy", &built(NEXT)));
    let yaml = fs::read_to_string(&proxy.config).unwrap();
    fs::write(
        &proxy.config,
        yaml.replace(&cluster.web_port.to_string(), &free_port().to_string())
            .replace(&cluster.jump_port.to_string(), &free_port().to_string()),
    )
    .unwrap();
    proxy.set_args([format!("--token={}", cluster.token("proxy")), "--skip-version-check".into()]);
    proxy.start();
    proxy.wait_ready();
    // The flag helps where one major is between them, and where the server is the older one.
    let old = cluster.new_node("too-old-skipper", Way::Direct, &[], current());
    old.set_args([format!("--token={}", cluster.token("node")), "--skip-version-check".into()]);
    assert_eq!(old.command().go().code(), Some("LG-VERSION-001"));
}

#[test]
fn g2_a_pre_release_does_not_start_a_production_cluster_nor_join_one() {
    let dir = tempfile::tempdir().unwrap();
    let start = |program: &Path, words: &[&str]| {
        let listen = [free_port(), free_port(), free_port()];
        let yaml = format!(
            "lockgate: {{nodename: a, data_dir: {}}}\nauth_service: {{listen_addr: '127.0.0.1:{}'}}\nproxy_service: {{web_listen_addr: '127.0.0.1:{}', listen_addr: '127.0.0.1:{}'}}\n",
            dir.path().join("data").display(),
            listen[0],
            listen[1],
            listen[2]
        );
        let path = dir.path().join("a.yaml");
        fs::write(&path, yaml).unwrap();
        Run::new(program).args(["start", "--config"]).arg(path).args(words)
    };
    let ran = start(&built(NEXT), &[]).go();
    ran.fails(1, "LG-VERSION-004");
    assert!(ran.err.contains("--allow-prerelease") && ran.err.contains(NEXT), "{ran}");
    // A member that the handshake lets in, here by the flag, and that is a pre-release: refused for that, by its own code.
    let cluster = Cluster::with(Setup { with_node: false, ..setup() });
    let refused = |name: &str, member: &harness::cluster::Member| {
        let ran = member.command().go();
        assert_eq!((ran.status, ran.code()), (1, Some("LG-VERSION-004")), "{name}: {ran}");
        assert!(ran.err.contains(NEXT), "{name}: {ran}");
    };
    for way in [Way::Direct, Way::Tunnel] {
        let node = cluster.new_node(&format!("rc-{way:?}").to_lowercase(), way, &[], &built(NEXT));
        node.set_args([format!("--token={}", cluster.token("node")), "--skip-version-check".into()]);
        refused("node", &node);
    }
    let proxy = cluster.new_proxy("rc-proxy", &built(NEXT));
    proxy.set_args([format!("--token={}", cluster.token("proxy")), "--skip-version-check".into()]);
    refused("proxy", &proxy);
    assert!(cluster.nodes().is_empty(), "none of them is listed");
}

/// What a stopped Auth Service has stored: every file beside its store and of the audit log, byte for byte, as digests.
fn stored(auth_dir: &Path) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir(auth_dir).unwrap().chain(fs::read_dir(auth_dir.join("audit")).unwrap()) {
        let path = entry.unwrap().path();
        if path.is_file() {
            let digest = data_encoding::HEXLOWER.encode(&Sha256::digest(fs::read(&path).unwrap()));
            all.insert(path.file_name().unwrap().to_string_lossy().into_owned(), digest);
        }
    }
    assert!(all.contains_key("state.db"), "{all:?}");
    all
}

#[test]
fn g5_majors_are_taken_one_at_a_time_and_a_refused_start_changes_nothing() {
    let ours = Run::new(current()).args(["version", "--format=json"]).go().json()["version"].as_str().unwrap().to_owned();
    let cluster = Cluster::with(Setup { split: true, with_node: false, ..Setup::default() });
    let alice = cluster.person("alice", &["access"], &[me()]);
    let auth = cluster.auth();
    let stop = || {
        auth.signal(Signal::SIGTERM);
        assert_eq!(auth.wait(SOON), 0);
    };
    let refuses = |version: &str, program: &Path, code: &str, words: &[&str]| {
        let before = stored(&auth.data_dir.join("auth"));
        auth.set_program(program);
        let ran = auth.command().go();
        ran.fails(1, code);
        for word in words.iter().chain(&[version]) {
            assert!(ran.err.contains(word), "no {word} in {ran}");
        }
        assert_eq!(stored(&auth.data_dir.join("auth")), before, "the store was touched");
    };
    // Killed, so that much of what it wrote is in the write-ahead log only.
    auth.kill();
    let log = auth.data_dir.join("auth/state.db-wal");
    assert!(fs::metadata(&log).is_ok_and(|log| log.len() > 0), "no write-ahead log to leave alone");
    let next = format!("latest {}", MAJOR + 1);
    // Two at once: skipped; the message names the next legal step.
    refuses(NOW, &built(NOW), "LG-VERSION-005", &[&next]);
    auth.set_program(&built(BEFORE));
    auth.start();
    auth.wait_ready();
    // Clients and the Proxy stay behind; the guide has Auth go first.
    until_ok(SOON, || alice.login());
    stop();
    // The next has taken over: ours may not come back.
    refuses(&ours, current(), "LG-VERSION-006", &[&next]);
    auth.set_program(&built(BEFORE));
    auth.start();
    auth.wait_ready();
    assert!(cluster.tctl_of(&built(BEFORE), ["get", "users"]).go().ok().contains("alice"), "nothing was lost on the way");
    cluster.tctl_of(&built(BEFORE), ["audit", "verify"]).go().ok();
}

#[test]
fn g12_the_inventory_lists_every_member_with_its_version() {
    let cluster = two();
    let shown = cluster.tctl(["inventory", "ls", "--format=json"]).go().json();
    let members = shown["members"].as_array().unwrap();
    for (name, service) in [("auth", "auth"), ("proxy1", "proxy"), ("node1", "node")] {
        let row = members.iter().find(|row| row["hostname"] == name).unwrap_or_else(|| panic!("no {name} in {shown}"));
        assert_eq!((row["version"].as_str(), row["online"].as_bool()), (Some(NOW), Some(true)), "{row}");
        assert!(row["services"].as_array().unwrap().iter().any(|one| one == service), "{row}");
    }
    let older = cluster.tctl(["inventory", "ls", &format!("--older-than={}", away(0, "0.0")), "--format=json"]).go().json();
    assert!(older["members"].as_array().unwrap().iter().all(|row| row["version"] != NOW), "{older}");
    let nodes = cluster.tctl(["inventory", "ls", "--services=node"]).go().ok();
    assert!(nodes.contains("node1") && !nodes.contains("proxy1"), "{nodes}");
}
