//! Starts: what is judged before the first write, two at once, and what a restart keeps.

use crate::fixture::*;
use auth::{AuthError, Storage};
use net::clock::ManualClock;
use std::sync::Arc;
use store::{Key, Memory, Store};
use types::{Code, Public, Time, kind::SecondFactor};
use wire::api as pb;

struct Hands(ManualClock);
impl store::Clock for Hands {
    fn now(&self) -> Time {
        net::clock::Clock::now(&self.0)
    }
}

struct Place {
    dir: Arc<tempfile::TempDir>,
    clock: ManualClock,
    store: Arc<dyn Store>,
}

impl Place {
    fn new() -> Self {
        let clock = ManualClock::new(Time::from_unix(START));
        Self { dir: Arc::new(tempfile::tempdir().unwrap()), store: Arc::new(Memory::new(Arc::new(Hands(clock.clone())))), clock }
    }
    async fn build(&self, version: &str, change: impl FnOnce(&mut auth::Config)) -> Result<auth::Auth, Public> {
        let mut config = config(self.dir.path());
        config.storage = Storage::Open(self.store.clone());
        change(&mut config);
        auth::build(config, world(&self.clock, version)).await.map_err(|error| error.public())
    }
    async fn refused(&self, version: &str, want: Code) {
        let before = self.store.revision().await.unwrap();
        let Err(refused) = self.build(version, |_| {}).await else { panic!("{version} started") };
        assert!(refused.is(want), "{version}: {refused}");
        assert_eq!(self.store.revision().await.unwrap(), before, "{version} wrote before it was refused");
    }
}

#[tokio::test]
async fn g2_a_pre_release_gives_birth_to_no_production_cluster_and_starts_on_none() {
    let place = Place::new();
    place.refused("8.0.0-rc.1", Code::VersionPrerelease).await;
    drop(place.build("8.0.0", |_| {}).await.unwrap());
    place.refused("8.1.0-rc.1", Code::VersionPrerelease).await;
    let trial = Place::new();
    drop(trial.build("8.0.0-rc.1", |config| config.production = false).await.unwrap());
}

#[tokio::test]
async fn g5_skips_and_downgrades_are_refused_before_the_first_write() {
    let place = Place::new();
    drop(place.build("8.0.0", |_| {}).await.unwrap());
    place.refused("10.0.0", Code::VersionSkip).await;
    place.refused("7.9.0", Code::VersionDowngrade).await;
    drop(place.build("8.3.0", |_| {}).await.unwrap());
    // The next major takes over and fences the ones before.
    drop(place.build("9.0.0", |_| {}).await.unwrap());
    place.refused("8.3.0", Code::VersionDowngrade).await;
    place.refused("10.0.0", Code::VersionSkip).await;
    drop(place.build("9.1.0", |_| {}).await.unwrap());
}

#[tokio::test]
async fn g4_taking_over_looks_at_every_member_however_many_there_are() {
    let place = Place::new();
    drop(place.build("8.0.0", |_| {}).await.unwrap());
    let spec = |version: &str| {
        serde_json::json!({"hostname": "web", "roles": ["node"], "version": version, "boot_id": "b", "started": Time::from_unix(START),
            "last_seen": Time::from_unix(START)})
    };
    // The one that lags is behind the first page.
    let count = u128::try_from(store::MAX_PAGE).unwrap() + 1;
    for chunk in (1..=count).collect::<Vec<_>>().chunks(store::MAX_OPS) {
        let mut batch = store::Batch::new(None);
        for number in chunk {
            let version = if *number == count { "7.9.0" } else { "8.0.0" };
            let member = types::Document {
                kind: "member".into(),
                version: "v1".into(),
                metadata: types::Metadata::named(&host_id(*number)),
                spec: spec(version),
                extra: types::Extra::new(),
            };
            batch.ops.push(store::documents::encode(&member).unwrap().1);
        }
        place.store.commit(batch).await.unwrap();
    }
    place.refused("9.0.0", Code::VersionSkip).await;
    place.store.commit(store::Batch::new(None).delete(Key::new(["doc", "member", &host_id(count).to_string()]).unwrap())).await.unwrap();
    drop(place.build("9.0.0", |_| {}).await.unwrap());
}

#[tokio::test]
async fn a_fenced_auth_service_writes_no_more() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let place = Place::new();
    let mut old = config(dir.path());
    old.storage = Storage::Open(place.store.clone());
    let older = Cluster::from(dir, old, place.clock.clone(), "8.1.0").await;
    let mut admin = older.admin();
    create(&mut admin, &role_document("before", serde_json::json!({}))).await.unwrap();
    drop(place.build("9.0.0", |_| {}).await.unwrap());
    let refused = create(&mut admin, &role_document("after", serde_json::json!({}))).await.unwrap_err();
    assert!(refused.is(Code::StoreFenced), "{refused}");
    let key = Key::parse("doc/role/after").unwrap();
    assert_eq!(place.store.get(&key).await.unwrap(), None);
}

#[tokio::test]
async fn two_that_start_at_once_make_one_cluster() {
    let place = Place::new();
    let other = tempfile::tempdir().unwrap();
    let (one, two) = tokio::join!(place.build("8.0.0", |_| {}), place.build("8.0.0", |config| config.data_dir = other.path().to_owned()));
    let (one, two) = (one.unwrap(), two.unwrap());
    assert_eq!(one.ca_pins(), two.ca_pins());
    assert_eq!(one.ca_pins().len(), 1);
}

#[tokio::test]
async fn a_clusters_name_never_changes_and_a_foreign_store_is_left_alone() {
    let place = Place::new();
    drop(place.build("8.0.0", |_| {}).await.unwrap());
    let renamed = place.build("8.0.0", |config| config.cluster_name = Some("other".parse().unwrap())).await;
    let Err(refused) = renamed else { panic!() };
    assert_eq!(refused.message, "this cluster is called \"demo\"; its name cannot be changed to \"other\"");
    let kept = place.build("8.0.0", |config| config.cluster_name = None).await.unwrap();
    assert_eq!(kept.cluster().as_str(), "demo");

    let foreign = Place::new();
    foreign.store.commit(store::Batch::new(None).put(Key::parse("backend/users").unwrap(), "x", None)).await.unwrap();
    foreign.refused("8.0.0", Code::StoreForeign).await;
}

#[tokio::test]
async fn a_restart_keeps_everything_that_was_acknowledged() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let clock = ManualClock::new(Time::from_unix(START));
    let make = |dir: &Arc<tempfile::TempDir>| {
        let mut config = config(dir.path());
        config.storage = sqlite(dir.path());
        config.auth_preference = Some(preference(SecondFactor::Off));
        config
    };
    let cluster = Cluster::from(dir.clone(), make(&dir), clock.clone(), "8.1.0").await;
    let (_, reply, keys) = cluster.logged_in("alice", &["access"], &["app"]).await;
    let pins = cluster.auth.ca_pins();
    let identity = keys.identity(&reply.tls_certificate);
    let before = events(&cluster, "user.login").await;
    cluster.stop().await;

    let cluster = Cluster::from(dir.clone(), make(&dir), clock, "8.1.0").await;
    assert_eq!(cluster.auth.ca_pins(), pins);
    // The certificate of before still opens the door, and so does the password.
    assert_eq!(names(&mut cluster.client(Some(&identity), "tsh"), "user").await, ["alice"]);
    cluster.proxy().await.login(login_request("alice", PASSWORD, "", &Keys::new())).await.unwrap();
    let after = events(&cluster, "user.login").await;
    assert_eq!((after.len(), &after[0]), (2, &before[0]));
    let verdict = cluster.admin().verify_audit(pb::Empty {}).await.unwrap().into_inner();
    assert!(verdict.intact, "{}", verdict.fault);
    let mode =
        |path: &str| std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(dir.path().join(path)).unwrap().permissions()) & 0o777;
    assert_eq!((mode("auth"), mode("admin/identity.json"), mode("auth/state.db")), (0o700, 0o600, 0o600));
}

#[tokio::test]
async fn the_file_overwrites_a_preference_and_a_default_does_not() {
    let place = Place::new();
    drop(place.build("8.0.0", |config| config.auth_preference = Some(preference(SecondFactor::Off))).await.unwrap());
    let read = || async {
        let item = place.store.get(&Key::parse("doc/cluster_auth_preference/cluster-auth-preference").unwrap()).await.unwrap().unwrap();
        let document = types::Document::from_json(&item.value).unwrap();
        (document.spec["second_factor"].as_str().unwrap().to_owned(), document.metadata.labels["lockgate/origin"].clone())
    };
    assert_eq!(read().await, ("off".into(), "config-file".into()));
    drop(place.build("8.0.0", |_| {}).await.unwrap());
    assert_eq!(read().await, ("off".into(), "config-file".into()));
    drop(place.build("8.0.0", |config| config.auth_preference = Some(preference(SecondFactor::Otp))).await.unwrap());
    assert_eq!(read().await, ("otp".into(), "config-file".into()));
}

#[tokio::test]
async fn anyone_may_ask_a_cluster_its_version() {
    let cluster = Cluster::start().await;
    let reply = cluster.stranger().ping(pb::PingRequest {}).await.unwrap().into_inner();
    assert_eq!(
        (reply.server_version.as_str(), reply.min_client_version.as_str(), reply.cluster_version.as_str()),
        ("8.1.0", "7.0.0", "8.0")
    );
    assert_eq!((reply.cluster_name.as_str(), reply.second_factor.as_str(), reply.ca_pins), ("demo", "off", cluster.auth.ca_pins()));
    assert!(matches!(AuthError::Serve(String::new()), AuthError::Serve(_)));
}
