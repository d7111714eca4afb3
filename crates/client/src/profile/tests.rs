//! Logins written, read back, shared and removed.

use super::*;
use crate::testing::Cluster;
use std::os::unix::fs::PermissionsExt as _;
use types::Time;

fn now() -> Time {
    Time::from_unix(1_800_000_000)
}

fn profile(proxy: &str, user: &str, cluster: &Cluster) -> Profile {
    Profile {
        web_proxy_addr: proxy.parse().unwrap(),
        user: UserName::new(user).unwrap(),
        cluster: cluster.name.clone(),
        ssh_proxy_addr: Some("proxy.example.com:3023".into()),
        extra: Extra::from_iter([("written_by_a_newer_release".to_owned(), serde_json::json!({"x": [1, 2]}))]),
    }
}

fn modes(directory: &Path, found: &mut Vec<(PathBuf, u32)>) {
    for entry in fs::read_dir(directory).unwrap().flatten() {
        let mode = entry.metadata().unwrap().permissions().mode() & 0o777;
        found.push((entry.path(), mode));
        if entry.path().is_dir() {
            modes(&entry.path(), found);
        }
    }
}

#[test]
fn a_login_survives_writing_and_reading() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path().join("tsh"));
    let demo = Cluster::new("demo", now());
    let (wanted, alice) = (profile("proxy.example.com", "alice", &demo), demo.user("alice", &["root"]));
    home.save(&wanted, &alice).unwrap();
    let (got, credentials) = home.load(None).unwrap();
    assert_eq!(got, wanted);
    assert_eq!(credentials.key, alice.key);
    assert_eq!(credentials.identity, alice.identity);
    assert_eq!((&credentials.trust.host_ssh, &credentials.trust.host_tls), (&alice.trust.host_ssh, &alice.trust.host_tls));
    assert!(home.is_current(&wanted) && home.profiles().unwrap() == [wanted]);
}

#[test]
fn every_file_is_its_owners_alone() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path().join("tsh"));
    let demo = Cluster::new("demo", now());
    home.save(&profile("proxy.example.com", "alice", &demo), &demo.user("alice", &["root"])).unwrap();
    let mut found = Vec::new();
    modes(dir.path(), &mut found);
    assert_eq!(found.iter().filter(|(path, _)| path.is_file()).count(), 8, "{found:?}");
    for (path, mode) in found {
        assert_eq!(mode, if path.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
    }
}

#[test]
fn openssh_can_read_the_authorities() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path());
    let demo = Cluster::new("demo", now());
    let wanted = profile("proxy.example.com", "alice", &demo);
    home.save(&wanted, &demo.user("alice", &["root"])).unwrap();
    let known = fs::read_to_string(home.paths(&wanted).known_hosts).unwrap();
    let key = demo.host_ssh().to_openssh().unwrap();
    assert_eq!(known, format!("@cert-authority proxy.example.com,demo,*.demo {key} type=host\n"));
    assert!(fs::read_to_string(home.paths(&wanted).key).unwrap().starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n"));
    assert!(fs::read_to_string(home.paths(&wanted).ssh_certificate).unwrap().starts_with("ssh-ed25519-cert-v01@openssh.com "));
}

#[test]
fn logging_out_leaves_nothing_of_it_and_everything_of_others() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path());
    let (demo, other) = (Cluster::new("demo", now()), Cluster::new("demo", now()));
    let (one, two) = (profile("one.example.com", "alice", &demo), profile("one.example.com:4080", "alice", &other));
    home.save(&one, &demo.user("alice", &["root"])).unwrap();
    home.save(&two, &other.user("alice", &["root"])).unwrap();
    home.logout(&two).unwrap();
    assert!(matches!(home.profile(None), Err(ProfileError::NotLoggedIn)));
    assert!(matches!(home.load(Some(&two.web_proxy_addr)), Err(ProfileError::NotLoggedIn)));
    assert_eq!(home.load(Some(&one.web_proxy_addr)).unwrap().1.trust.host_ssh, demo.trust().host_ssh);
    home.logout(&one).unwrap();
    home.logout(&one).unwrap();
    let mut left = Vec::new();
    modes(dir.path(), &mut left);
    let files: Vec<_> = left.iter().filter(|(path, _)| path.is_file()).map(|(path, _)| fs::read_to_string(path).unwrap()).collect();
    assert_eq!(files, [""], "only an empty known_hosts is left: {left:?}");
}

#[test]
fn logging_in_again_replaces_keys_and_authorities() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path());
    let (before, after) = (Cluster::new("demo", now()), Cluster::new("demo", now()));
    home.save(&profile("p", "alice", &before), &before.user("alice", &["root"])).unwrap();
    home.save(&profile("p", "bob", &after), &after.user("bob", &["root"])).unwrap();
    let (_, credentials) = home.load(None).unwrap();
    assert_eq!(credentials.user().as_str(), "bob");
    assert_eq!(credentials.trust.host_ssh, after.trust().host_ssh, "an authority that was replaced is not trusted any more");
    assert!(!home.paths(&profile("p", "alice", &before)).key.exists());
}

#[test]
fn addresses_read_as_people_write_them() {
    let check = |text: &str, want: Option<(&str, &str)>| {
        let got = text.parse::<ProxyAddr>().ok().map(|addr| (addr.to_string(), addr.file_name()));
        assert_eq!(got, want.map(|(addr, file)| (addr.to_owned(), file.to_owned())), "{text:?}");
    };
    check("proxy.example.com", Some(("proxy.example.com:3080", "proxy.example.com")));
    check("Proxy.Example.com:443", Some(("proxy.example.com:443", "proxy.example.com")));
    check("https://proxy.example.com/web", Some(("proxy.example.com:443", "proxy.example.com")));
    check("localhost:4080", Some(("localhost:4080", "localhost_4080")));
    check("[::1]:3080", Some(("[::1]:3080", "--1")));
    for bad in ["", ":3080", "a b", "a:0", "a:99999", "../x", "a/b", "-rf", "a:1:2", "ä.example"] {
        check(bad, None);
    }
}

#[test]
fn a_profile_name_cannot_lead_out_of_the_directory() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path().join("tsh"));
    fs::create_dir(home.path()).unwrap();
    fs::write(dir.path().join("evil.yaml"), "web_proxy_addr: evil\nuser: a\ncluster: b\n").unwrap();
    fs::write(home.path().join("current-profile"), "../evil").unwrap();
    assert!(matches!(home.profile(None), Err(ProfileError::NotLoggedIn)));
}

#[test]
fn a_broken_profile_is_an_error_that_names_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let home = Home::at(dir.path());
    fs::write(dir.path().join("p.yaml"), "web_proxy_addr: p\nuser: [").unwrap();
    let error = home.profile(Some(&"p".parse().unwrap())).unwrap_err();
    assert!(error.to_string().contains("p.yaml"), "{error}");
    assert!(home.profiles().unwrap().is_empty());
}

#[test]
fn an_identity_file_holds_all_that_is_needed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("identity");
    let demo = Cluster::new("demo", now());
    let alice = demo.user("alice", &["root"]);
    crate::identity_file::save(&path, &alice).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let read = crate::identity_file::load(&path).unwrap();
    assert_eq!((&read.key, &read.identity, read.expires), (&alice.key, &alice.identity, alice.expires));
    assert_eq!((&read.trust.host_ssh, &read.trust.host_tls), (&alice.trust.host_ssh, &alice.trust.host_tls));
    assert_eq!(read.tls_pem().trim(), alice.tls_pem().trim());
}

#[test]
fn attack_row_12_parts_of_different_origin_do_not_make_credentials() {
    let demo = Cluster::new("demo", now());
    let (alice, bob) = (demo.user("alice", &["root"]), demo.user("bob", &["root"]));
    let text = crate::identity_file::to_text(&alice).unwrap();
    let swap = |from: &str, to: &str| crate::identity_file::from_text(&text.expose().replace(from, to)).unwrap_err();
    assert!(swap(alice.ssh_line(), bob.ssh_line()).to_string().contains("another key"));
    swap(alice.key.pkcs8_pem().expose(), bob.key.pkcs8_pem().expose());
    swap("@cert-authority", "# nothing");
    assert!(crate::identity_file::from_text("").is_err());
}
