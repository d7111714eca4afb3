//! A cluster for one test, and who calls it.

use auth::{Auth, Config, PasswordCost, Storage, World, password::otp_code};
use futures::FutureExt as _;
use net::{
    clock::ManualClock,
    hello::HelloPolicy,
    shutdown::Shutdown,
    swap::Swap,
    task::Group,
    tls::{self, Authorities, KeyAlgorithm, TlsIdentity, Trust, identity::KeyPair},
};
use russh::keys::ssh_key::{Algorithm, PrivateKey};
use std::{path::Path, sync::Arc, time::Duration};
use tonic::transport::Channel;
use types::{
    Document, HostId, NodeName, Public, Resource, SystemRole, Time, Version,
    kind::{AuthPreference, CertAuthority, SecondFactor},
    version::Direction,
};
use wire::{
    api::{self as pb, auth_client::AuthClient},
    credentials::HostFile,
    hello::Hello,
};

pub(crate) type Client = AuthClient<Channel>;

pub(crate) const START: i64 = 1_800_000_000;
pub(crate) const PASSWORD: &str = "correct horse battery";

pub(crate) struct Cluster {
    pub(crate) auth: Arc<Auth>,
    pub(crate) dir: Arc<tempfile::TempDir>,
    pub(crate) clock: ManualClock,
    pub(crate) trust: Swap<Authorities>,
    pub(crate) shutdown: Shutdown,
    pub(crate) tasks: Group,
    /// What its clients say that they are.
    pub(crate) says: Version,
}

/// Keys of one client.
pub(crate) struct Keys {
    pub(crate) tls: KeyPair,
    pub(crate) ssh: PrivateKey,
}

impl Keys {
    pub(crate) fn new() -> Self {
        let ssh = PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap();
        Self { tls: KeyPair::generate(KeyAlgorithm::Ed25519).unwrap(), ssh }
    }
    pub(crate) fn ssh_line(&self) -> String {
        self.ssh.public_key().to_openssh().unwrap()
    }
    pub(crate) fn spki(&self) -> Vec<u8> {
        self.tls.public_der()
    }
    pub(crate) fn identity(&self, pem: &str) -> TlsIdentity {
        self.tls.with_chain(tls::identity::certificates_from_pem(pem.as_bytes()).unwrap()).unwrap()
    }
}

pub(crate) fn host_id(number: u128) -> HostId {
    HostId::from_uuid(uuid::Uuid::from_u128(number))
}

pub(crate) fn config(dir: &Path) -> Config {
    Config {
        cluster_name: Some("demo".parse().unwrap()),
        listen_addr: "127.0.0.1:0".parse().unwrap(),
        storage: Storage::Memory,
        password_cost: PasswordCost::cheapest(),
        ..Config::new(dir.to_owned(), host_id(1), NodeName::new("auth1").unwrap())
    }
}

pub(crate) fn sqlite(dir: &Path) -> Storage {
    std::fs::create_dir_all(dir.join("auth")).unwrap();
    Storage::Sqlite { path: dir.join("auth").join("state.db") }
}

pub(crate) fn world(clock: &ManualClock, version: &str) -> World {
    World {
        clock: clock.shared(),
        version: version.parse().unwrap(),
        health: Default::default(),
        listener: None,
        releases: None,
        updater: None,
        walker: None,
    }
}

impl Cluster {
    /// A cluster in memory, version 8.1.0, one-time codes off.
    pub(crate) async fn start() -> Self {
        Self::with(|config| config.auth_preference = Some(preference(SecondFactor::Off))).await
    }

    pub(crate) async fn with(change: impl FnOnce(&mut Config)) -> Self {
        let dir = Arc::new(tempfile::tempdir().unwrap());
        let mut config = config(dir.path());
        change(&mut config);
        Self::from(dir, config, ManualClock::new(Time::from_unix(START)), "8.1.0").await
    }

    pub(crate) async fn from(dir: Arc<tempfile::TempDir>, config: Config, clock: ManualClock, version: &str) -> Self {
        Self::in_world(dir, config, clock.clone(), world(&clock, version)).await
    }

    /// The same, in a world of the test's own.
    pub(crate) async fn in_world(dir: Arc<tempfile::TempDir>, config: Config, clock: ManualClock, world: World) -> Self {
        let says = if world.version.major() < 8 { world.version.clone() } else { Version::new(8, 1, 0) };
        let auth = Arc::new(auth::build(config, world).await.unwrap());
        let (shutdown, tasks) = (Shutdown::new(), Group::new("test"));
        let (running, stop) = (auth.clone(), shutdown.clone());
        tasks.spawn("auth", async move { running.run(stop).await });
        let file = admin_file(dir.path());
        let roots = |kind: &str| {
            let of_kind = file.authorities.iter().find(|document| document.metadata.name.as_str() == kind).unwrap();
            let authority: Resource<CertAuthority> = Resource::from_document(of_kind.clone()).unwrap();
            authority.spec.keys.iter().flat_map(|key| tls::identity::certificates_from_pem(key.tls.as_bytes()).unwrap()).collect::<Vec<_>>()
        };
        let trust = Swap::new(Authorities::new(file.identity.cluster.clone(), &roots("user"), &roots("host")).unwrap());
        Self { auth, dir, clock, trust, shutdown, tasks, says }
    }

    pub(crate) async fn stop(self) -> Arc<tempfile::TempDir> {
        self.shutdown.stop();
        assert!(self.tasks.join(Duration::from_secs(20)).await);
        self.dir
    }

    pub(crate) fn now(&self) -> Time {
        net::clock::Clock::now(&self.clock)
    }

    /// A client that says `hello` and shows `identity`.
    pub(crate) fn client_saying(&self, identity: Option<&TlsIdentity>, hello: Hello) -> Client {
        self.client_at(&self.auth.local_addr().to_string(), identity, hello)
    }

    /// The same, by another way to the Auth Service.
    pub(crate) fn client_at(&self, addr: &str, identity: Option<&TlsIdentity>, hello: Hello) -> Client {
        let config = tls::client_config(identity, Trust::Cluster(self.trust.clone()), &[wire::alpn::AUTH], &self.clock.shared()).unwrap();
        let server = wire::sni::role_name(&SystemRole::Auth, self.auth.cluster());
        let addr = addr.to_owned();
        let channel = net::grpc::channel(move || {
            let (config, server, hello, addr) = (config.clone(), server.clone(), hello.clone(), addr.clone());
            async move {
                let connected = net::dial::dial(&addr, config, &server, &hello, Direction::ServerFirst, HelloPolicy::default()).await?;
                Ok(Box::new(connected.stream) as net::IoStream)
            }
            .boxed()
        });
        AuthClient::new(channel).max_decoding_message_size(pb::MAX_MESSAGE)
    }

    /// What a Proxy does with connections for the Auth Service; the address where it listens.
    pub(crate) async fn splice(&self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (addr, auth) = (listener.local_addr().unwrap().to_string(), self.auth.local_addr());
        self.tasks.spawn("splice", async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let mut far = tokio::net::TcpStream::connect(auth).await.unwrap();
                tokio::io::AsyncWriteExt::write_all(&mut far, &wire::splice::MARK).await.unwrap();
                let _ended = tokio::io::copy_bidirectional(&mut near, &mut far).await;
            }
        });
        addr
    }

    pub(crate) fn client(&self, identity: Option<&TlsIdentity>, role: &str) -> Client {
        self.client_saying(identity, Hello::ours(&self.says, role))
    }

    pub(crate) fn stranger(&self) -> Client {
        self.client(None, "node")
    }

    pub(crate) fn admin(&self) -> Client {
        let file = admin_file(self.dir.path());
        let identity = TlsIdentity::from_pem(file.tls_certificate.as_bytes(), file.private_key.expose().as_bytes()).unwrap();
        self.client(Some(&identity), "tctl")
    }

    /// A member that joined with a fresh token.
    pub(crate) async fn member(&self, id: u128, role: SystemRole) -> (Client, Keys, TlsIdentity) {
        let keys = Keys::new();
        let reply = self
            .auth
            .issue_local(
                host_id(id),
                NodeName::new(format!("{role}{id}")).unwrap(),
                [role.clone()].into(),
                Vec::new(),
                keys.ssh_line(),
                keys.spki(),
            )
            .await
            .unwrap();
        let identity = keys.identity(&reply.tls_certificate);
        (self.client(Some(&identity), role.as_str()), keys, identity)
    }

    pub(crate) async fn proxy(&self) -> Client {
        self.member(100, SystemRole::Proxy).await.0
    }

    /// A user with these roles and logins who has accepted his invitation. Returns the secret of his second factor.
    pub(crate) async fn user(&self, user: &str, roles: &[&str], logins: &[&str]) -> String {
        let mut admin = self.admin();
        create(&mut admin, &user_document(user, roles, logins)).await.unwrap();
        let invite = admin.create_invite(pb::CreateInviteRequest { user: user.into(), ttl: 0 }).await.unwrap().into_inner();
        let mut proxy = self.proxy().await;
        let shown = proxy.get_invite(pb::GetInviteRequest { secret: invite.secret.clone() }).await.unwrap().into_inner();
        let secret = secret_of(&shown.otp_url);
        let otp = otp_code(&secret, self.now()).unwrap_or_default();
        proxy
            .accept_invite(pb::AcceptInviteRequest { secret: invite.secret, password: PASSWORD.into(), otp, client_addr: String::new() })
            .await
            .unwrap();
        secret
    }

    /// Logs in and returns a client with the certificate.
    pub(crate) async fn logged_in(&self, user: &str, roles: &[&str], logins: &[&str]) -> (Client, pb::UserCredentials, Keys) {
        self.user(user, roles, logins).await;
        let keys = Keys::new();
        let mut proxy = self.proxy().await;
        let reply = proxy.login(login_request(user, PASSWORD, "", &keys)).await.unwrap().into_inner();
        (self.client(Some(&keys.identity(&reply.tls_certificate)), "tsh"), reply, keys)
    }
}

pub(crate) fn admin_file(dir: &Path) -> HostFile {
    HostFile::from_json(&std::fs::read(dir.join("admin").join("identity.json")).unwrap()).unwrap()
}

pub(crate) fn secret_of(url: &str) -> String {
    url.split(['?', '&']).find_map(|part| part.strip_prefix("secret=")).unwrap_or("").to_owned()
}

pub(crate) fn preference(second_factor: SecondFactor) -> AuthPreference {
    AuthPreference { second_factor, ..AuthPreference::default() }
}

pub(crate) fn login_request(user: &str, password: &str, otp: &str, keys: &Keys) -> pb::LoginRequest {
    pb::LoginRequest {
        user: user.into(),
        password: password.into(),
        otp: otp.into(),
        ssh_public_key: keys.ssh_line(),
        tls_public_key: keys.spki().into(),
        ttl: 0,
        client_addr: "192.0.2.7:4321".into(),
        client_version: "8.1.0".into(),
    }
}

pub(crate) fn document(json: serde_json::Value) -> Document {
    serde_json::from_value(json).unwrap()
}

pub(crate) fn user_document(user: &str, roles: &[&str], logins: &[&str]) -> Document {
    document(
        serde_json::json!({"kind": "user", "version": "v1", "metadata": {"name": user}, "spec": {"roles": roles, "traits": {"logins": logins}}}),
    )
}

pub(crate) fn role_document(role: &str, spec: serde_json::Value) -> Document {
    document(serde_json::json!({"kind": "role", "version": "v1", "metadata": {"name": role}, "spec": spec}))
}

pub(crate) fn error<T>(answer: Result<T, tonic::Status>) -> Public {
    match answer {
        Ok(_) => panic!("it was allowed"),
        Err(status) => net::grpc::connect_error(&status).unwrap_or_else(|| pb::from_status(&status)),
    }
}

/// As every client does: what was not done because the windows were moved at that moment is asked for again.
async fn patient<T, F: Future<Output = Result<T, tonic::Status>>>(ask: impl Fn() -> F) -> Result<T, Public> {
    let mut tries = 0;
    loop {
        match ask().await.map_err(|status| pb::from_status(&status)) {
            Err(public) if public.is(types::Code::Unavailable) && tries < 20 => tokio::time::sleep(Duration::from_millis(50)).await,
            done => return done,
        }
        tries += 1;
    }
}

pub(crate) async fn create(client: &mut Client, document: &Document) -> Result<Document, Public> {
    let request = pb::WriteRequest { document: document.to_json().into() };
    let asked = patient(|| {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.create(request).await }
    });
    asked.await.map(|reply| Document::from_json(&reply.into_inner().document).unwrap())
}

pub(crate) async fn update(client: &mut Client, document: &Document) -> Result<Document, Public> {
    let request = pb::WriteRequest { document: document.to_json().into() };
    let asked = patient(|| {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.update(request).await }
    });
    asked.await.map(|reply| Document::from_json(&reply.into_inner().document).unwrap())
}

pub(crate) async fn get(client: &mut Client, kind: &str, name: &str) -> Result<Document, Public> {
    let reply = client.get(pb::GetRequest { kind: kind.into(), name: name.into() }).await;
    reply.map(|reply| Document::from_json(&reply.into_inner().document).unwrap()).map_err(|status| pb::from_status(&status))
}

pub(crate) async fn delete(client: &mut Client, kind: &str, name: &str) -> Result<(), Public> {
    let request = pb::DeleteRequest { kind: kind.into(), name: name.into(), revision: String::new() };
    let asked = patient(|| {
        let (mut client, request) = (client.clone(), request.clone());
        async move { client.delete(request).await }
    });
    asked.await.map(|_| ())
}

pub(crate) async fn names(client: &mut Client, kind: &str) -> Vec<String> {
    let reply = client.list(pb::ListRequest { kind: kind.into(), ..Default::default() }).await.unwrap().into_inner();
    reply.documents.iter().map(|json| Document::from_json(json).unwrap().metadata.name.to_string()).collect()
}

/// Events of that name in the audit log, oldest first.
pub(crate) async fn events(cluster: &Cluster, event: &str) -> Vec<types::Event> {
    let ask = pb::SearchEventsRequest { names: vec![event.into()], oldest_first: true, limit: 1000, ..Default::default() };
    let reply = cluster.admin().search_events(ask).await.unwrap().into_inner();
    reply.events.iter().map(|json| serde_json::from_slice(json).unwrap()).collect()
}

/// The heartbeat of a host with these labels.
pub(crate) fn beat(id: u128, hostname: &str, labels: &[(&str, &str)], port: u32) -> pb::HeartbeatRequest {
    let labels: serde_json::Map<String, serde_json::Value> =
        labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).into())).collect();
    let metadata = serde_json::json!({"name": host_id(id).to_string(), "labels": labels});
    let member = serde_json::json!({"kind": "member", "version": "v1", "metadata": metadata, "spec": {
        "hostname": hostname, "roles": ["node"], "version": "8.1.0", "boot_id": "b", "started": "2027-01-15T08:00:00Z", "last_seen": "2027-01-15T08:00:00Z"}});
    let node = serde_json::json!({"kind": "node", "version": "v1", "metadata": metadata, "spec": {
        "hostname": hostname, "addr": "10.66.66.66:22", "version": "8.1.0"}});
    pb::HeartbeatRequest { member: document(member).to_json().into(), node: document(node).to_json().into(), ssh_port: port }
}

pub(crate) fn member_only(mut beat: pb::HeartbeatRequest) -> pb::HeartbeatRequest {
    beat.node.clear();
    beat
}
