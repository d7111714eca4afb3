//! A host, its cluster's authority and a client for the tests. Everything is made afresh for each test.

use agent::{
    events::Audit,
    spool::Spool,
    ssh::{self, Arrival, Guard, Present, Refusals, Settings, Shared},
    world::{HostKeys, Upstream},
};
use bytes::Bytes;
use client::{cache::Cache, trust::ClusterTrust};
use futures::future::BoxFuture;
use net::{clock::SystemClock, shutdown::Shutdown, task::Group};
use russh::{
    ChannelMsg,
    client::{self as ssh_client, AuthResult},
    keys::{
        Algorithm, Certificate, PrivateKey, PublicKeyOrCertificate,
        ssh_key::certificate::{Builder, CertType},
    },
};
use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex},
    time::Duration,
};
use tokio::sync::watch;
use types::{
    ClusterName, Event, Extra, HostId, HostIdentity, Identity, Labels, Login, Metadata, NodeName, Public, Resource, ResourceName,
    SystemRole, Time, UserIdentity, UserName,
    identity::Restrictions,
    kind::{CaKey, CertAuthority, Recording, User},
    role::{Conditions, OneOrMany, Options, Role},
};
use wire::api::RefusedEvent;

pub(crate) const SOON: Duration = Duration::from_secs(60);

pub(crate) fn key() -> PrivateKey {
    PrivateKey::random(&mut rand::rng(), Algorithm::Ed25519).unwrap()
}

pub(crate) fn name(text: &str) -> ResourceName {
    ResourceName::new(text).unwrap()
}

/// The account the tests run as: the only one that needs no root.
pub(crate) fn own_login() -> Login {
    Login::new(nix::unistd::User::from_uid(nix::unistd::geteuid()).unwrap().unwrap().name).unwrap()
}

/// What reached the cluster.
#[derive(Default)]
pub(crate) struct Reports {
    pub(crate) events: Mutex<Vec<Event>>,
    pub(crate) recordings: Mutex<Vec<(Recording, Vec<u8>)>>,
}
impl Upstream for Reports {
    fn events(&self, events: Vec<Event>) -> BoxFuture<'_, Result<Vec<RefusedEvent>, Public>> {
        self.events.lock().unwrap().extend(events);
        Box::pin(async { Ok(Vec::new()) })
    }
    fn recording(&self, about: Recording, file: PathBuf) -> BoxFuture<'_, Result<(), Public>> {
        let bytes = std::fs::read(file).unwrap();
        self.recordings.lock().unwrap().push((about, bytes));
        Box::pin(async { Ok(()) })
    }
}

/// A private key and a certificate over it.
#[derive(Clone)]
pub(crate) struct Badge {
    pub(crate) key: Arc<PrivateKey>,
    pub(crate) certificate: Certificate,
}

pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) cluster: ClusterName,
    pub(crate) user_ca: PrivateKey,
    pub(crate) cache: Cache,
    pub(crate) shared: Arc<Shared>,
    pub(crate) shutdown: Shutdown,
    pub(crate) tasks: Group,
    host_ca: PrivateKey,
    events: tokio::sync::Mutex<agent::events::Reports>,
    keep_keys: watch::Sender<Arc<HostKeys>>,
    keep_trust: watch::Sender<Arc<ClusterTrust>>,
}

/// A role that allows the tests' own account everywhere.
pub(crate) fn role() -> Role {
    let allow = Conditions {
        logins: vec![own_login().to_string(), "no-such-account".into(), "nobody".into()],
        node_labels: [("*".to_owned(), OneOrMany(vec!["*".into()]))].into(),
        ..Conditions::default()
    };
    Role { allow, options: Options { forward_agent: true, ..Options::default() }, ..Role::default() }
}

impl World {
    pub(crate) fn new() -> Self {
        Self::with(Settings::default())
    }

    pub(crate) fn with(settings: Settings) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let cluster = ClusterName::new("example").unwrap();
        let (user_ca, host_ca, host_key) = (key(), key(), key());
        let cache = Cache::empty(cluster.clone());
        let ca_key = CaKey {
            algorithm: "ed25519".into(),
            ssh: user_ca.public_key().to_openssh().unwrap(),
            tls: String::new(),
            pin: String::new(),
            active: true,
            extra: Extra::new(),
        };
        let authority = CertAuthority { cluster: cluster.clone(), ca_type: "user".into(), keys: vec![ca_key], extra: Extra::new() };
        cache.put([Resource::new(Metadata::named(name("user")), authority).to_document()]);
        let id = HostId::from_uuid(uuid::Uuid::new_v4());
        let identity = HostIdentity {
            cluster: cluster.clone(),
            id,
            name: NodeName::new("node1").unwrap(),
            roles: BTreeSet::from([SystemRole::Node]),
            extra: Extra::new(),
        };
        let now = Time::from(std::time::SystemTime::now()).unix_u64();
        let mut builder =
            Builder::new_with_random_nonce(&mut rand::rng(), host_key.public_key().key_data().clone(), now - 60, now + 3600).unwrap();
        builder.cert_type(CertType::Host).unwrap().valid_principal("node1").unwrap();
        let ssh_certificate = builder.sign(&host_ca).unwrap();
        let keys = HostKeys { identity, labels: Labels::new(), ssh_key: Arc::new(host_key), ssh_certificate };
        let (keep_keys, keys) = watch::channel(Arc::new(keys));
        let (keep_trust, joined_with) = watch::channel(Arc::new(ClusterTrust::empty(cluster.clone())));
        let (audit, events) = Audit::new();
        let (tasks, shutdown) = (Group::new("test"), Shutdown::new());
        let shared = Arc::new(Shared {
            cache: cache.clone(),
            joined_with,
            keys,
            clock: SystemClock::shared(),
            audit,
            spool: Spool::open(dir.path()).unwrap(),
            tasks: tasks.clone(),
            shutdown: shutdown.clone(),
            settings,
            present: Present::default(),
            refusals: Refusals::default(),
            guard: Guard::default(),
        });
        let world = Self { dir, cluster, host_ca, user_ca, cache, shared, shutdown, tasks, events: events.into(), keep_keys, keep_trust };
        world.put_role("dev", role());
        world.put_user("alice", &["dev"]);
        world
    }

    pub(crate) fn put_role(&self, role: &str, spec: Role) {
        self.cache.put([Resource::new(Metadata::named(name(role)), spec).to_document()]);
    }

    pub(crate) fn put_user(&self, user: &str, roles: &[&str]) {
        let spec = User { roles: roles.iter().map(|role| name(role)).collect(), ..User::default() };
        self.cache.put([Resource::new(Metadata::named(name(user)), spec).to_document()]);
    }

    /// The key that signs hosts, as it stands in `known_hosts`.
    pub(crate) fn host_authority(&self) -> String {
        self.host_ca.public_key().to_openssh().unwrap()
    }

    pub(crate) fn host_id(&self) -> HostId {
        self.keep_keys.borrow().identity.id
    }

    pub(crate) fn identity(&self, user: &str) -> UserIdentity {
        UserIdentity {
            cluster: self.cluster.clone(),
            user: UserName::new(user).unwrap(),
            roles: BTreeSet::from([name("dev")]),
            traits: Default::default(),
            logins: [own_login(), Login::new("no-such-account").unwrap(), Login::new("nobody").unwrap()].into(),
            expires: Time::from(std::time::SystemTime::now()).plus(Duration::from_secs(3600)),
            restrictions: Restrictions::default(),
            extra: Extra::new(),
        }
    }

    /// A certificate as the Auth Service makes it, signed by any key.
    pub(crate) fn sign(&self, key: &PrivateKey, identity: &UserIdentity, by: &PrivateKey) -> Certificate {
        let now = Time::from(std::time::SystemTime::now()).unix_u64();
        let mut builder =
            Builder::new_with_random_nonce(&mut rand::rng(), key.public_key().key_data().clone(), now - 60, identity.expires.unix_u64())
                .unwrap();
        builder.cert_type(CertType::User).unwrap().key_id(identity.user.as_str()).unwrap();
        for login in &identity.logins {
            builder.valid_principal(login.as_str()).unwrap();
        }
        let json = wire::identity::to_json(&Identity::User(identity.clone()));
        builder.extension(wire::identity::SSH_EXTENSION, json).unwrap();
        builder.sign(by).unwrap()
    }

    pub(crate) fn badge(&self, user: &str) -> Badge {
        self.badge_of(&self.identity(user))
    }

    pub(crate) fn badge_of(&self, identity: &UserIdentity) -> Badge {
        let key = key();
        let certificate = self.sign(&key, identity, &self.user_ca);
        Badge { key: Arc::new(key), certificate }
    }

    /// What the rules say of alice now.
    pub(crate) fn permit(&self) -> rules::Permit<rules::permit::OpenSession> {
        let (identity, login) = (self.identity("alice"), own_login());
        let user = self.cache.user(&name("alice")).unwrap();
        let roles = rules::RoleSet::resolve(&identity, self.cache.roles(), rules::CurrentUser::Known(&user));
        let request = rules::access::SessionRequest {
            cluster: &self.cluster,
            identity: &identity,
            roles: &roles,
            host: self.host_id(),
            hostname: "node1",
            labels: &Labels::new(),
            login: &login,
            peer: None,
            locks: &[],
            now: Time::EPOCH,
        };
        rules::access::decide_session(&request).unwrap()
    }

    /// A stream whose other end the service serves.
    pub(crate) fn stream(&self) -> tokio::io::DuplexStream {
        self.stream_of(256 * 1024)
    }

    pub(crate) fn stream_of(&self, size: usize) -> tokio::io::DuplexStream {
        self.stream_from("192.0.2.7:4711", size)
    }

    /// The same, from that address.
    pub(crate) fn stream_from(&self, client: &str, size: usize) -> tokio::io::DuplexStream {
        let (near, far) = tokio::io::duplex(size);
        let arrival = Arrival { client: Some(client.parse().unwrap()), local: Some("192.0.2.1:22".parse().unwrap()) };
        let serving = ssh::serve(self.shared.clone(), far, arrival, || ());
        self.tasks.spawn("serve", serving);
        near
    }

    /// A client that has shown nothing yet.
    pub(crate) async fn stranger(&self) -> ssh_client::Handle<Anyone> {
        let config = ssh_client::Config { window_size: 512 * 1024, ..ssh_client::Config::default() };
        ssh_client::connect_stream(Arc::new(config), self.stream(), Anyone).await.unwrap()
    }

    /// A client that is in.
    pub(crate) async fn enter(&self, login: &str, badge: &Badge) -> ssh_client::Handle<Anyone> {
        let mut client = self.stranger().await;
        let result = client.authenticate_openssh_cert(login, badge.key.clone(), badge.certificate.clone()).await.unwrap();
        assert!(matches!(result, AuthResult::Success), "{result:?}");
        client
    }

    /// The usual client: alice, as the tests' own account.
    pub(crate) async fn alice(&self) -> ssh_client::Handle<Anyone> {
        self.enter(own_login().as_str(), &self.badge("alice")).await
    }

    /// Waits for an event of that name.
    pub(crate) async fn event(&self, name: &str) -> Event {
        let mut events = self.events.lock().await;
        let wanted = async {
            loop {
                let event = events.recv().await.unwrap();
                if event.event == name {
                    return event;
                }
            }
        };
        tokio::time::timeout(SOON, wanted).await.unwrap_or_else(|_| panic!("no event {name}"))
    }

    /// Every event that was reported so far.
    pub(crate) async fn events(&self) -> Vec<Event> {
        let (mut events, mut all) = (self.events.lock().await, Vec::new());
        while let Some(event) = events.try_recv() {
            all.push(event);
        }
        all
    }

    /// Every entry of the only recording in the spool, once its session has ended.
    pub(crate) async fn recording(&self) -> Vec<wire::recording::Entry> {
        self.event("session.end").await;
        let path = std::fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .find(|path| path.extension().is_some_and(|s| s == "rec"));
        read_recording(&std::fs::read(path.unwrap()).unwrap())
    }

    pub(crate) fn trust_later(&self, trust: ClusterTrust) {
        self.keep_trust.send_replace(Arc::new(trust));
    }
}

pub(crate) fn read_recording(bytes: &[u8]) -> Vec<wire::recording::Entry> {
    let mut reader = wire::recording::Reader::new();
    reader.push(bytes);
    let mut entries = Vec::new();
    while let Some(entry) = reader.next().unwrap() {
        entries.push(entry);
    }
    entries
}

/// Trusts any host: what is tested is the other end.
pub(crate) struct Anyone;
impl ssh_client::Handler for Anyone {
    type Error = russh::Error;
    async fn check_server_key(&mut self, _key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        Ok(true)
    }
}

/// What a command left behind.
#[derive(Debug, Default)]
pub(crate) struct Output {
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) status: Option<u32>,
    pub(crate) signal: Option<String>,
    pub(crate) refused: bool,
    pub(crate) closed: bool,
}

impl Output {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
    pub(crate) fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

/// Collects until the channel is closed.
pub(crate) async fn collect(channel: &mut russh::ChannelReadHalf) -> Output {
    let mut output = Output::default();
    let all = async {
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::Data { data } => output.stdout.extend_from_slice(&data),
                ChannelMsg::ExtendedData { data, .. } => output.stderr.extend_from_slice(&data),
                ChannelMsg::ExitStatus { exit_status } => output.status = Some(exit_status),
                ChannelMsg::ExitSignal { signal_name, .. } => output.signal = Some(format!("{signal_name:?}")),
                ChannelMsg::Failure => output.refused = true,
                ChannelMsg::Close => {
                    output.closed = true;
                    break;
                }
                _ => {}
            }
        }
    };
    tokio::time::timeout(SOON, all).await.unwrap_or_else(|_| panic!("the channel does not end: {output:?}"));
    output
}

/// Runs a command with that input.
pub(crate) async fn exec(client: &ssh_client::Handle<Anyone>, command: &str, input: impl Into<Bytes>) -> Output {
    let channel = client.channel_open_session().await.unwrap();
    channel.exec(true, command).await.unwrap();
    let (mut read, write) = channel.split();
    let input = input.into();
    let feeding = async {
        let _stopped_reading = write.data_bytes(input).await;
        let _gone = write.eof().await;
    };
    let (output, ()) = tokio::join!(collect(&mut read), feeding);
    output
}
