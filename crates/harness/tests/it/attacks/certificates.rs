//! Rows 1 to 9: certificates, keys and logins that are not what they seem.
//!
//! Keys of users that sign, principals that are nobody's, names with delimiters, keys that are offered and not proven, and
//! renewals that ask for more than there was.

use super::*;

#[test]
fn attack_row_1_a_users_key_signs_certificates_for_nobody() {
    let field = &field();
    let stem = signed(&field.cluster, "forger", &[me()]);
    let certificate = PathBuf::from(format!("{}-cert.pub", stem.display()));
    for jump in [false, true] {
        let proper = until_ok(Duration::from_secs(20), || ssh_with(field, &stem, &certificate, jump, me()));
        assert_eq!(proper.ok().trim(), me(), "positive control");
    }
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    keygen(&["-t", "ed25519", "-N", "", "-f", "evil"], dir.path());
    keygen(&["-t", "ed25519", "-N", "", "-f", "own-ca"], dir.path());
    let identity = Run::new("ssh-keygen").args(["-L", "-f"]).arg(&certificate).go().ok();
    assert!(identity.contains("user certificate"), "{identity}");
    for ca in [stem.as_path(), &at("own-ca")] {
        let ca = ca.to_str().unwrap();
        for (kind, name) in [(&["-n"][..], "user"), (&["-h", "-n"], "host")] {
            let words = [&["-s", ca, "-I", "forger", "-V", "-1m:+1h"], kind, &[me(), "evil.pub"]].concat();
            keygen(&words, dir.path());
            for jump in [false, true] {
                let ran = ssh_with(field, &at("evil"), &at("evil-cert.pub"), jump, me()).go();
                assert_eq!(ran.status, 255, "{name} certificate by {ca}: {ran}");
            }
        }
    }
    // The stolen certificate without its key.
    ssh_with(field, &at("evil"), &certificate, false, me()).go().refused();
    // A bare key, without any certificate.
    ssh_with(field, &stem, Path::new("/dev/null"), false, me()).go().refused();
}

#[test]
fn attack_row_2_who_has_no_login_is_not_everybody() {
    let field = &field();
    field.cluster.tctl(["users", "add", "wild", "--roles=access", "--logins=*"]).go().refused();
    field
        .cluster
        .tctl(["create"])
        .input("kind: user\nversion: v1\nmetadata: {name: wild}\nspec: {roles: [access], traits: {logins: ['*']}}\n")
        .go();
    let nobody = field.cluster.person("loginless", &["access"], &[]);
    let file = field.cluster.home.join("loginless.pem");
    field.cluster.tctl(["auth", "sign", "--user=loginless", "--out"]).arg(&file).go().ok();
    let shown = std::fs::read_to_string(&file).unwrap();
    let line = shown.lines().find(|line| line.contains("-cert-v01@openssh.com")).unwrap();
    let certificate = wire::identity::parse_ssh_certificate(line).unwrap();
    assert!(!certificate.valid_principals().is_empty(), "no principals means everybody to OpenSSH");
    assert!(!certificate.valid_principals().iter().any(|name| name.contains('*') || name == me()), "{:?}", certificate.valid_principals());
    for login in [me(), "nobody", "root"] {
        nobody.ssh(&format!("{login}@node1"), "true").go().refused();
    }
}

#[test]
fn attack_row_3_delimiters_and_look_alikes_are_in_no_name() {
    let cluster = field().cluster;
    const BAD: [&str; 13] =
        ["a,root", "a root", "a\nroot", "a\troot", "a\"root", "a'root", "a;root", "-oProxyCommand=x", "rооt", "a*", "../root", "a/b", ""];
    for bad in BAD {
        let logins = cluster
            .tctl(["users", "add", "delimited", "--roles=access"])
            .arg(format!("--logins={}", if bad == "a,root" { "a b" } else { bad }))
            .go();
        assert!(bad.is_empty() || logins.status != 0, "{bad:?}: {logins}");
        cluster.tctl(["users", "rm", "delimited"]).go();
        cluster.tctl(["users", "add", "--roles=access", "--", bad]).go().refused();
        cluster.tctl(["auth", "sign", "--out=/nonexistent/x", &format!("--user={bad}")]).go().refused();
        cluster.tctl(["auth", "sign", "--format=openssh", "--out=/nonexistent/x", &format!("--host={bad}")]).go().refused();
    }
    // Written into a role they are refused; in a user's traits they have no effect: no certificate carries one.
    let role = |login: &str| serde_json::json!({"kind": "role", "version": "v1", "metadata": {"name": "delimited"}, "spec": {"allow": {"logins": [login, "{{internal.logins}}"], "node_labels": {"*": "*"}}}});
    for bad in BAD {
        for login in [bad.to_owned(), format!("{bad}{{{{internal.logins}}}}")].iter().filter(|login| !login.starts_with("{{")) {
            cluster.tctl(["create", "-f"]).input(role(login).to_string()).go().refused();
        }
        let role = role("fine");
        let user = serde_json::json!({"kind": "user", "version": "v1", "metadata": {"name": "delimited"}, "spec": {"roles": ["access", "delimited"], "traits": {"logins": [bad, "fine"]}}});
        cluster.tctl(["create", "-f"]).input(role.to_string()).go().ok();
        cluster.tctl(["create", "-f"]).input(user.to_string()).go().ok();
        let stem = cluster.home.join("delimited");
        let ran = cluster.tctl(["auth", "sign", "--user=delimited", "--format=openssh", "--out"]).arg(&stem).go();
        if ran.status == 0 {
            let certificate = Certificate::read_file(&PathBuf::from(format!("{}-cert.pub", stem.display()))).unwrap();
            let names = certificate.valid_principals();
            let strange: Vec<_> = names.iter().filter(|name| types::Login::new(name).is_err() && !name.starts_with('-')).collect();
            assert!(strange.is_empty() && !names.iter().any(|name| name == bad), "{bad:?} became {names:?}");
            std::fs::remove_file(&stem).unwrap();
        }
        cluster.tctl(["rm", "user/delimited"]).go();
        cluster.tctl(["rm", "role/delimited"]).go();
    }
}

/// Signs with some key something that is perhaps not what was to be signed.
struct Signer {
    key: PrivateKey,
    change: Change,
}

type Change = fn(&mut Vec<u8>);

/// No signature, or nobody to send it to.
#[derive(Debug)]
struct NotSigned;
impl From<russh::SendError> for NotSigned {
    fn from(_: russh::SendError) -> NotSigned {
        NotSigned
    }
}

impl russh::Signer for Signer {
    type Error = NotSigned;
    async fn auth_sign(&mut self, _key: &AgentIdentity, _hash: Option<HashAlg>, to_sign: Vec<u8>) -> Result<Vec<u8>, NotSigned> {
        use russh::keys::signature::Signer as _;
        let mut signed = to_sign.clone();
        (self.change)(&mut signed);
        let signature = self.key.try_sign(&signed).map_err(|_| NotSigned)?;
        let blob: Vec<u8> = signature.try_into().map_err(|_| NotSigned)?;
        Ok([to_sign, string(&blob)].concat())
    }
}

#[test]
fn attack_row_4_a_key_that_is_offered_but_not_proven_opens_nothing() {
    let field = &field();
    let (key, certificate) = load(&signed(&field.cluster, "offered", &[me()]));
    let other = load(&signed(&field.cluster, "offered-other", &[me()])).0;
    let changes: [(&str, Change); 3] = [
        // The session's id comes first: string of 32 bytes.
        ("another session", |signed| signed[10] ^= 1),
        // Then the message number and the user's name.
        ("another user", |signed| signed[36 + 1 + 4] ^= 1),
        ("other last bytes", |signed| *signed.last_mut().unwrap() ^= 1),
    ];
    block_on(async {
        for port in [field.direct.ssh_port, field.cluster.jump_port] {
            let attempt = async |signer: Signer| {
                let mut handle = connect(port).await;
                let mut signer = signer;
                // A server that hangs up on a bad signature is as good as one that says no.
                let result = handle.authenticate_certificate_with(me(), certificate.clone(), None, &mut signer).await;
                matches!(result, Ok(AuthResult::Success))
            };
            assert!(attempt(Signer { key: key.clone(), change: |_| {} }).await, "positive control on port {port}");
            assert!(!attempt(Signer { key: other.clone(), change: |_| {} }).await, "signed by another key");
            for (what, change) in changes {
                assert!(!attempt(Signer { key: key.clone(), change }).await, "{what}");
            }
            let mut handle = connect(port).await;
            for _ in 0..2 {
                let none = handle.authenticate_none(me()).await;
                assert!(!matches!(none, Ok(AuthResult::Success)));
            }
            let mut handle = connect(port).await;
            let password = handle.authenticate_password(me(), "correct horse offered").await;
            assert!(!matches!(password, Ok(AuthResult::Success)), "sessions are opened by certificates alone");
        }
    });
}

#[test]
fn attack_row_5_the_identity_is_that_of_the_proven_key_whatever_was_offered_before() {
    let field = &field();
    let people: Vec<_> = ["row5-a", "row5-b", "row5-c"].map(|name| (name, load(&signed(&field.cluster, name, &[me()])))).into();
    block_on(async {
        for (at, (name, (key, certificate))) in people.iter().enumerate() {
            let mut handle = connect(field.direct.ssh_port).await;
            for (_, (_, offered)) in people.iter().enumerate().filter(|(other, _)| *other != at).map(|(_, person)| person) {
                let mut liar = Signer { key: key.clone(), change: |_| {} };
                let result = handle.authenticate_certificate_with(me(), offered.clone(), None, &mut liar).await;
                assert!(matches!(result, Ok(AuthResult::Failure { .. })), "{result:?}");
            }
            let entered = handle.authenticate_openssh_cert(me(), Arc::new(key.clone()), certificate.clone()).await.unwrap();
            assert!(matches!(entered, AuthResult::Success));
            assert_eq!(exec(&handle, "echo $LOCKGATE_USER").await, format!("{name}\n"));
        }
    });
}

#[test]
fn attack_row_9_a_renewed_certificate_has_no_more_than_the_one_before() {
    let cluster = field().cluster;
    let alice = cluster.person("renewer", &["access"], &[me()]);
    let file = cluster.home.join("renewer.pem");
    alice.login().arg("--ttl=5m").arg("--out").arg(&file).go().ok();
    let before = identity_file::load(&file).unwrap();
    block_on(async {
        let api = Api::new(Settings {
            via: Via::Proxy(cluster.proxy_addr()),
            access: before.access().unwrap(),
            role: "tsh".into(),
            version: current_version(),
            skip_version_check: false,
            clock: SystemClock::shared(),
        });
        let key = KeyPair::generate().unwrap();
        let ask = |ttl: u64| wire::api::ReissueRequest {
            ssh_public_key: key.ssh_public().unwrap(),
            tls_public_key: key.spki_der().into(),
            ttl,
            ..Default::default()
        };
        for ttl in [0, 60, 30 * 3600, u64::MAX] {
            let reply = api.reissue(ask(ttl)).await.unwrap();
            let expires: types::Time = reply.expires.parse().unwrap();
            assert!(expires.unix() <= before.expires.unix(), "asked for {ttl} s: {expires} is after {}", before.expires);
            let old = wire::identity::parse_ssh_certificate(before.ssh_line()).unwrap();
            let new = wire::identity::parse_ssh_certificate(&reply.ssh_certificate).unwrap();
            assert!(new.valid_principals().iter().all(|name| old.valid_principals().contains(name)));
            assert!(new.extensions().iter().all(|(name, _)| old.extensions().iter().any(|(known, _)| known == name)));
            assert!(new.valid_before() <= old.valid_before());
        }
        // More roles since then are not in a renewal of the old certificate.
        cluster.tctl(["users", "update", "renewer", "--set-roles=access,editor"]).go().ok();
        let reply = api.reissue(ask(60)).await.unwrap();
        let leaf = crate::talk::chain(&reply.tls_certificate).remove(0);
        let roles = serde_json::to_string(&wire::identity::from_x509_der(&leaf).unwrap()).unwrap();
        assert!(!roles.contains("editor"), "{roles}");
    });
}
