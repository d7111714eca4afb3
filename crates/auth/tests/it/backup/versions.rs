//! Backups of other releases: every older one is restored, and who may start on it is told and kept to (rule G5).
//!
//! `tests/golden/backup-1.0.0.*` is a whole cluster as 1.0.0 wrote it, with its key and what is known of it: every later build proves,
//! restores and serves it. It is never written again; `BACKUP_GOLDEN=write` makes it where it does not exist.

use super::{cluster_on, fetch, file, items, memory, plain, terms};
use crate::fixture::*;
use auth::{
    Storage,
    backup::{Restored, restore},
    password::otp_code,
};
use backup::{PrivateKey, Trust, Unlock};
use net::clock::ManualClock;
use serde_json::{Value, json};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};
use store::Store;
use types::{Code, Public, Secret, Time};
use wire::api as pb;

fn clock() -> ManualClock {
    ManualClock::new(Time::from_unix(START))
}

/// Restored by a release, or refused by it.
async fn by(version: &str, bytes: &[u8], unlock: Unlock, trust: Trust) -> (Arc<dyn Store>, Result<Restored, Public>) {
    let store = memory(&clock());
    let terms = auth::backup::Terms { version: version.parse().unwrap(), ..terms(unlock, trust) };
    let restored = restore(store.clone(), file(bytes), terms, Arc::default()).await;
    (store, restored.map_err(|error| error.public()))
}

/// Whether a release starts on a store.
async fn starts(store: &Arc<dyn Store>, version: &str) -> Result<(), Public> {
    let dir = tempfile::tempdir().unwrap();
    let config = auth::Config { storage: Storage::Open(store.clone()), ..config(dir.path()) };
    auth::build(config, world(&clock(), version)).await.map(drop).map_err(|error| error.public())
}

#[tokio::test]
async fn g5_a_backup_of_any_older_major_is_restored_and_the_next_legal_release_is_told() {
    let cluster = Cluster::start().await;
    let (bytes, _) = fetch(&mut cluster.admin(), plain()).await.unwrap();
    cluster.stop().await;
    let check = async |version: &str, way: Option<&str>| {
        let (store, restored) = by(version, &bytes, Unlock::Unencrypted, Trust::Any).await;
        let first = restored.unwrap().first;
        assert_eq!(first.as_ref().and_then(|first| first.hint.as_deref()), way, "{version}");
        let started = starts(&store, version).await;
        // What was told is what happens; the release that was named first does start.
        assert_eq!(started.as_ref().err().map(|public| &public.message), first.as_ref().map(|first| &first.message), "{version}");
        if let Err(public) = started {
            assert!(public.is(Code::VersionSkip));
            assert_eq!(starts(&store, "9.0.0").await, Ok(()), "{version}");
        }
    };
    check("8.0.0", None).await;
    check("8.9.9", None).await;
    check("9.0.0", None).await;
    check("10.0.0", Some("back up, then upgrade to the latest 9, then 10")).await;
    check("12.3.4", Some("back up, then upgrade to the latest 9, then 10, then 11, then 12")).await;
    let (store, refused) = by("7.9.0", &bytes, Unlock::Unencrypted, Trust::Any).await;
    assert!(refused.unwrap_err().is(Code::VersionDowngrade));
    assert_eq!(store.revision().await, Ok(0), "nothing was written");
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("backup-1.0.0.{name}"))
}

/// A small cluster with something of everything that people would miss.
async fn write_golden() {
    let dir = Arc::new(tempfile::tempdir().unwrap());
    let mut config = config(dir.path());
    config.auth_preference = Some(preference(types::kind::SecondFactor::Otp));
    let cluster = Cluster::from(dir, config, clock(), "1.0.0").await;
    let otp = cluster.user("alice", &["access", "editor"], &["root"]).await;
    let mut admin = cluster.admin();
    create(&mut admin, &role_document("dev", json!({"allow": {"logins": ["app"]}, "of_the_future": [1, 2]}))).await.unwrap();
    admin.create_token(pb::CreateTokenRequest { roles: vec!["node".into()], ttl: 600, ..Default::default() }).await.unwrap();
    let lock = json!({"kind": "lock", "version": "v1", "metadata": {"name": "l"}, "spec": {"target": {"user": "eve"}}});
    create(&mut admin, &document(lock)).await.unwrap();
    cluster.member(7, types::SystemRole::Node).await;
    let key = super::schedule::private_key();
    let ask = pb::CreateBackupRequest { recipients: vec![key.recipient().unwrap().to_string()], ..Default::default() };
    let (bytes, written) = fetch(&mut admin, ask).await.unwrap();
    let known = json!({"otp": otp, "pins": cluster.auth.ca_pins(), "signer": written["signer"], "summary": written["summary"]});
    fs::create_dir_all(golden("x").parent().unwrap()).unwrap();
    fs::write(golden("lgbackup"), bytes).unwrap();
    fs::write(golden("key"), key.to_text().expose()).unwrap();
    fs::write(golden("json"), format!("{known:#}\n")).unwrap();
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_backup_of_1_0_0_is_proven_restored_and_served_by_every_later_release() {
    if !golden("lgbackup").exists() && std::env::var("BACKUP_GOLDEN").is_ok_and(|value| value == "write") {
        write_golden().await;
    }
    let bytes = fs::read(golden("lgbackup")).unwrap();
    let known: Value = serde_json::from_slice(&fs::read(golden("json")).unwrap()).unwrap();
    let keys = PrivateKey::read_all(&Secret::new(fs::read_to_string(golden("key")).unwrap())).unwrap();
    let (unlock, trust) = (Unlock::Keys(keys), Trust::Pinned(vec![known["signer"].as_str().unwrap().parse().unwrap()]));
    let head = backup::inspect(bytes.as_slice()).unwrap();
    assert_eq!((head.format, head.product.to_string().as_str(), head.cluster.as_str()), (1, "1.0.0", "demo"));
    backup::check(bytes.as_slice(), &trust).unwrap();

    let mut dumps = Vec::new();
    for (version, starts_on_it) in [("1.0.0", true), ("1.7.2", true), ("2.0.0", true), ("3.0.0", false), ("40.0.0", false)] {
        let (store, restored) = by(version, &bytes, unlock.clone(), trust.clone()).await;
        let restored = restored.unwrap();
        assert_eq!(serde_json::to_value(&restored.summary).unwrap(), known["summary"], "{version}");
        assert_eq!((json!(restored.pins), restored.first.is_none()), (known["pins"].clone(), starts_on_it), "{version}");
        let mut dump = items(store.as_ref()).await;
        dump.remove("control");
        dumps.push(dump);
        assert_eq!(starts(&store, version).await.is_ok(), starts_on_it, "{version}");
    }
    assert!(dumps.windows(2).all(|two| two[0] == two[1]), "all releases restore the same");

    let (store, restored) = by("1.0.0", &bytes, unlock, trust).await;
    restored.unwrap();
    let cluster = cluster_on(store, &clock(), "1.0.0").await;
    cluster.clock.advance(std::time::Duration::from_secs(90));
    let code = otp_code(known["otp"].as_str().unwrap(), cluster.now()).unwrap();
    cluster.proxy().await.login(login_request("alice", PASSWORD, &code, &Keys::new())).await.unwrap();
    let dev = get(&mut cluster.admin(), "role", "dev").await.unwrap();
    assert_eq!(serde_json::to_value(&dev).unwrap()["spec"]["of_the_future"], json!([1, 2]), "unknown fields survive");
    assert_eq!(names(&mut cluster.admin(), "lock").await, ["l"]);
    cluster.stop().await;
}
