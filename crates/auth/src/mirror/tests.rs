//! The mirror over a store in memory: who is woken, what is told, what happens when the store is read again.

use super::{follow::News, *};
use net::{clock::SystemClock, task::Group};
use store::{Documents, Memory, System, WriterEpoch};
use types::Metadata;

fn document(kind: &str, name: &str) -> Document {
    let metadata = Metadata::named(ResourceName::new(name).unwrap());
    Document { kind: kind.into(), version: "v1".into(), metadata, spec: serde_json::json!({}), extra: types::Extra::new() }
}

struct World {
    mirror: Mirror,
    documents: Documents,
    store: Arc<dyn Store>,
    _group: Group,
}

impl World {
    async fn new() -> Self {
        let (store, group): (Arc<dyn Store>, _) = (Arc::new(Memory::new(Arc::new(System))), Group::new("test"));
        let mirror = Mirror::start(store.clone(), SystemClock::shared(), &group, Arc::default()).await.unwrap();
        Self { mirror, documents: Documents::new(store.clone(), WriterEpoch(1)), store, _group: group }
    }
    async fn seen(&self) -> u64 {
        let revision = self.store.revision().await.unwrap();
        self.mirror.reached(revision).await;
        revision
    }
}

fn kinds(all: &[&str]) -> BTreeSet<String> {
    all.iter().map(|kind| (*kind).to_owned()).collect()
}

#[tokio::test]
async fn a_watcher_is_woken_by_its_own_kinds_only() {
    let world = World::new().await;
    let (mut agent, proxy) = (world.mirror.follow(kinds(&["role", "lock"])), world.mirror.follow(kinds(&["node", "role"])));
    world.documents.create(&document("node", "n")).await.unwrap();
    world.seen().await;
    assert!(!agent.has_changed().unwrap() && proxy.has_changed().unwrap());
    world.documents.create(&document("role", "r")).await.unwrap();
    tokio::time::timeout(Duration::from_secs(10), agent.changed()).await.unwrap().unwrap();
}

#[tokio::test]
async fn all_watchers_are_given_the_same_bytes() {
    let world = World::new().await;
    let start = world.mirror.begin(&BTreeMap::new()).at;
    world.documents.create(&document("node", "n")).await.unwrap();
    world.seen().await;
    let told = || {
        let kinds = ["node".to_owned()];
        let (news, _) = world.mirror.news(kinds.iter(), start).unwrap();
        match &news[..] {
            [(_, "node", Change::Put(entry))] => entry.clone(),
            _ => panic!("one change"),
        }
    };
    assert!(Arc::ptr_eq(&told(), &told()));
}

#[tokio::test]
async fn reading_the_store_again_tells_watchers_only_what_changed() {
    let world = World::new().await;
    for name in ["a", "b", "c"] {
        world.documents.create(&document("role", name)).await.unwrap();
    }
    world.seen().await;
    let at = world.mirror.begin(&BTreeMap::new()).at;
    // As if the watch had broken: what follows is not told by it, but found.
    let deaf =
        Mirror { state: Arc::new(RwLock::new(State { kinds: BTreeMap::new(), revision: 0, floor: 0, life: 0 })), ..world.mirror.clone() };
    deaf.load(Reading::First).await.unwrap();
    let at = Position { life: deaf.read().life, ..at };
    world.documents.delete("role", &ResourceName::new("b").unwrap(), None).await.unwrap();
    world.documents.create(&document("role", "d")).await.unwrap();
    deaf.load(Reading::Again).await.unwrap();
    let roles = ["role".to_owned()];
    let told = |news: News<'_>| {
        let text = |(_, _, change)| match change {
            Change::Put(entry) => entry.document.metadata.name.to_string(),
            Change::Gone(name) => format!("-{name}"),
        };
        news.into_iter().map(text).collect::<Vec<_>>()
    };
    let (news, _) = deaf.news(roles.iter(), at).unwrap();
    assert_eq!(told(news), ["d", "-b"]);
    deaf.load(Reading::Restored).await.unwrap();
    assert_eq!(deaf.news(roles.iter(), at).err(), Some(Lost::Restored));
}

#[tokio::test]
async fn locks_are_read_once_until_one_changes() {
    let world = World::new().await;
    let lock = |name: &str| Document { spec: serde_json::json!({"target": {"user": "bob"}, "message": ""}), ..document("lock", name) };
    world.documents.create(&lock("one")).await.unwrap();
    world.seen().await;
    assert!(Arc::ptr_eq(&world.mirror.locks(), &world.mirror.locks()));
    world.documents.create(&document("node", "n")).await.unwrap();
    world.documents.create(&lock("two")).await.unwrap();
    world.seen().await;
    assert_eq!(world.mirror.locks().len(), 2);
}
