//! Members move from one Auth Service to another: spread, sent away, and without beginning anew.

use auth::{Auth, Config, PasswordCost, Storage, World};
use client::{
    api::{Access, Api, Settings, Via},
    cache::{Cache, PROXY_KINDS},
    host::HostCredentials,
    keys::KeyPair,
};
use net::{clock::SystemClock, shutdown::Shutdown, task::Group};
use std::{sync::Arc, time::Duration};
use store::{Handle, Memory};
use tokio::sync::watch;
use types::{Code, HostId, Labels, Metadata, NodeName, Resource, SystemRole, role::Role};

const LONG: Duration = Duration::from_secs(20);

struct One {
    auth: Arc<Auth>,
    shutdown: Shutdown,
    _tasks: Group,
    _dir: tempfile::TempDir,
}

impl One {
    async fn start(store: &Arc<Memory>, number: u128) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            cluster_name: Some("demo".parse().unwrap()),
            listen_addr: "127.0.0.1:0".parse().unwrap(),
            storage: Storage::Open(Arc::new(Handle::on(store.clone()))),
            password_cost: PasswordCost::cheapest(),
            ..Config::new(
                dir.path().to_owned(),
                HostId::from_uuid(uuid::Uuid::from_u128(number)),
                NodeName::new(format!("auth{number}")).unwrap(),
            )
        };
        let world = World {
            clock: SystemClock::shared(),
            version: "1.2.3".parse().unwrap(),
            health: Default::default(),
            listener: None,
            releases: None,
            updater: None,
            walker: None,
        };
        let auth = Arc::new(auth::build(config, world).await.unwrap());
        let (shutdown, tasks) = (Shutdown::new(), Group::new("auth"));
        let (running, stop) = (auth.clone(), shutdown.clone());
        tasks.spawn("auth", async move { running.run(stop).await });
        Self { auth, shutdown, _tasks: tasks, _dir: dir }
    }
    fn watches(&self) -> u64 {
        self.auth.metrics().snapshot().into_iter().find(|(name, ..)| *name == "watches").unwrap().2
    }
    fn requests(&self) -> u64 {
        self.auth.metrics().snapshot().into_iter().find(|(name, ..)| *name == "requests").unwrap().2
    }
}

struct Place {
    one: One,
    two: One,
    credentials: watch::Receiver<Arc<HostCredentials>>,
    _sender: watch::Sender<Arc<HostCredentials>>,
}

impl Place {
    /// Two Auth Services, and a Proxy's credentials.
    async fn new() -> Self {
        let store = Arc::new(Memory::new(Arc::new(store::System)));
        let (one, two) = tokio::join!(Box::pin(One::start(&store, 1)), Box::pin(One::start(&store, 2)));
        let key = KeyPair::generate().unwrap();
        let (id, name) = (HostId::from_uuid(uuid::Uuid::from_u128(100)), NodeName::new("proxy1").unwrap());
        let reply = one
            .auth
            .issue_local(id, name, [SystemRole::Proxy].into(), Vec::new(), key.ssh_public().unwrap(), key.spki_der())
            .await
            .unwrap();
        let (sender, credentials) = watch::channel(Arc::new(HostCredentials::from_reply(key, &reply, None).unwrap()));
        Self { one, two, credentials, _sender: sender }
    }

    fn api(&self) -> Api {
        Api::new(Settings {
            via: Via::auth(&format!("{},{}", self.one.auth.local_addr(), self.two.auth.local_addr())),
            access: Access::Host(self.credentials.clone()),
            role: "proxy".into(),
            version: "1.2.3".parse().unwrap(),
            skip_version_check: false,
            clock: SystemClock::shared(),
        })
    }
}

#[tokio::test]
async fn callers_spread_over_the_auth_services_and_pass_over_one_that_is_gone() {
    let place = Place::new().await;
    for _ in 0..40 {
        place.api().ping().await.unwrap();
    }
    assert!(place.one.requests() >= 5 && place.two.requests() >= 5, "{} {}", place.one.requests(), place.two.requests());
    let gone = place.one.auth.local_addr();
    place.one.shutdown.drain();
    let closed = async {
        while tokio::net::TcpStream::connect(gone).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LONG, closed).await.unwrap();
    let before = place.two.requests();
    for _ in 0..20 {
        place.api().ping().await.unwrap();
    }
    assert_eq!(place.two.requests() - before, 20);
}

#[tokio::test]
async fn a_cache_goes_on_at_another_auth_service_from_its_revision_without_beginning_anew() {
    let place = Place::new().await;
    let (group, shutdown) = (Group::new("proxy"), Shutdown::new());
    let cache = Cache::start("demo".parse().unwrap(), place.api(), PROXY_KINDS, 7, &group, shutdown.clone());
    tokio::time::timeout(LONG, cache.synced()).await.unwrap();
    let (mut from, mut to) = (&place.one, &place.two);
    if from.watches() == 0 {
        std::mem::swap(&mut from, &mut to);
    }
    assert_eq!((from.watches(), to.watches()), (1, 0));
    let (whole, mut feeding) = (cache.changed().borrow().nodes, cache.feeding());
    // It stops: the watch is sent away, and what is asked meanwhile is answered, at the second time at the latest.
    let api = place.api();
    let asking = async {
        for _ in 0..300 {
            match api.list_raw("role", &Labels::new()).await {
                Ok(listed) => assert!(listed.items.len() >= 3),
                // The answer was on its way: whoever asks again is served.
                Err(lost) => {
                    assert!(lost.is(Code::Unavailable), "{lost:?}");
                    assert!(api.list_raw("role", &Labels::new()).await.is_ok());
                }
            }
        }
    };
    let stopping = async {
        tokio::task::yield_now().await;
        from.shutdown.drain();
    };
    tokio::join!(asking, stopping);
    let again = feeding.wait_for(|feeding| feeding.live && to.watches() == 1);
    assert!(tokio::time::timeout(LONG, again).await.unwrap().is_ok());
    // What happens now is told by the other; a whole table put in place would count as a change of the nodes.
    let role = Resource::new(Metadata::named("late".parse::<types::ResourceName>().unwrap()), Role::default());
    let refused = place.api().create(&role).await.unwrap_err();
    assert!(refused.is(Code::AccessDenied), "{refused}");
    assert_eq!(cache.changed().borrow().nodes, whole, "everything was loaded again");
    shutdown.stop();
}
