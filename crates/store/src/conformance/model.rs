//! Random operations against a reference: a `BTreeMap` and a list of events, too simple to be wrong.
//!
//! Steps are decoded from four bytes each, so that a property test can shrink them and a seed can make them.

use super::{World, event, key, started};
use crate::{Batch, Clock as _, CommitError, Committed, Condition, Event, Item, Key, Op, scan};
use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};
use std::collections::BTreeMap;
use std::time::Duration;
use types::Time;

/// Four bytes that choose a step and its keys.
pub type Step = [u8; 4];

const KEYS: [&str; 7] = ["a", "a/a", "a/b", "b", "b/a/c", "c-d", "zz"];

#[derive(Default)]
struct Model {
    items: BTreeMap<Key, Item>,
    revision: u64,
    events: Vec<Event>,
}

/// Three hundred steps from each of three seeds, one after another on the same store.
pub(super) async fn random_operations(world: World) {
    let mut steps: Vec<Step> = Vec::new();
    for seed in 1..=3 {
        let mut rng = StdRng::seed_from_u64(seed);
        steps.extend((0..300).map(|_| rng.random::<Step>()));
    }
    check(&world, &steps).await;
}

/// Takes the steps on a fresh world and compares every answer, all items, and all events.
pub async fn check(world: &World, steps: &[Step]) {
    let mut model = Model::default();
    let mut live = started(&*world.store, vec![], Some(0)).await;
    for (number, step) in steps.iter().enumerate() {
        let store = if step[0] & 0x80 == 0 { &*world.store } else { &*world.twin };
        let now = world.clock.now();
        match step[0] % 16 {
            0..=8 => {
                let batch = model.batch(*step, now);
                let expected = model.commit(&batch, now);
                assert_eq!(store.commit(batch).await, expected, "step {number} {step:?}");
            }
            9 | 10 => {
                let at = pick(step[1]);
                let expires = now.plus(Duration::from_millis(u64::from(step[2])));
                let wanted = (step[3] % 3 == 0).then(|| model.current(&at, now));
                let expected = model.keep_alive(&at, wanted, expires, now);
                assert_eq!(store.keep_alive(&at, wanted, expires, None).await, expected, "step {number} {step:?}");
            }
            11 => world.clock.advance(Duration::from_millis(u64::from(step[1]))),
            12 => assert_eq!(store.expire_due().await, Ok(model.expire(now)), "step {number}"),
            13 | 14 => {
                let at = pick(step[1]);
                assert_eq!(store.get(&at).await, Ok(model.live(&at, now).cloned()), "step {number}");
            }
            _ => {
                let (from, to) = bounds(step[1], step[2]);
                let expected: Vec<Item> = model.items.range(from.clone()..to.clone()).map(|(_, item)| item.clone()).collect();
                let expected: Vec<Item> = expected.into_iter().filter(|item| !item.expired(now)).collect();
                assert_eq!(scan(store, &from, &to).await, Ok(expected), "step {number}");
            }
        }
    }
    assert_eq!(world.store.revision().await, Ok(model.revision));
    let mut replay = started(&*world.twin, vec![], Some(0)).await;
    for expected in &model.events {
        assert_eq!(&event(&mut live).await, expected);
        assert_eq!(&event(&mut replay).await, expected);
    }
}

fn pick(byte: u8) -> Key {
    key(KEYS[usize::from(byte) % KEYS.len()])
}

/// A range that is never empty: of one key's children, or between two keys.
fn bounds(one: u8, two: u8) -> (Key, Key) {
    let (one, two) = (pick(one), pick(two));
    match one.cmp(&two) {
        std::cmp::Ordering::Less => (one, two),
        std::cmp::Ordering::Equal => (one.clone(), one.prefix_end()),
        std::cmp::Ordering::Greater => (two, one),
    }
}

impl Model {
    fn live(&self, at: &Key, now: Time) -> Option<&Item> {
        self.items.get(at).filter(|item| !item.expired(now))
    }

    fn current(&self, at: &Key, now: Time) -> u64 {
        self.live(at, now).map_or(0, |item| item.revision)
    }

    fn batch(&self, [what, one, two, how]: Step, now: Time) -> Batch {
        let (first, second) = (pick(one), pick(two));
        let mut batch = Batch::new(None);
        batch = match how % 8 {
            0 => batch.require(Condition::Absent(first.clone())),
            1 => batch.require(Condition::Exists(first.clone())),
            2 | 3 => batch.require(Condition::RevisionIs(first.clone(), self.current(&first, now))),
            4 => batch.require(Condition::Exists(second.clone())).require(Condition::RevisionIs(first.clone(), self.revision)),
            _ => batch,
        };
        let expires = (how & 0x10 != 0).then(|| now.plus(Duration::from_millis(u64::from(how))));
        match what % 16 {
            0..=3 => batch.put(first, vec![what, one, two, how], expires),
            4 => batch.delete(first),
            5 => {
                let (from, to) = bounds(one, two);
                batch.delete_range(from, to)
            }
            6 => batch.put(first, vec![how; usize::from(how)], expires).delete(second),
            7 => batch.put(second, vec![], None).put(first, vec![how], expires),
            _ => batch.delete(second).put(first, vec![one], expires),
        }
    }

    fn commit(&mut self, batch: &Batch, now: Time) -> Result<Committed, CommitError> {
        batch.check()?;
        for condition in &batch.conditions {
            let current = self.live(condition.key(), now).map(|item| item.revision);
            let holds = match condition {
                Condition::Absent(_) => current.is_none(),
                Condition::Exists(_) => current.is_some(),
                Condition::RevisionIs(_, wanted) => current == Some(*wanted),
            };
            if !holds {
                return Err(CommitError::Conflict { key: condition.key().clone() });
            }
        }
        let revision = self.revision + 1;
        let mut events = Vec::new();
        for op in &batch.ops {
            match op {
                Op::Put { key, value, expires } => {
                    events.push(Event::Put(Item { key: key.clone(), value: value.clone(), revision, expires: *expires }));
                }
                Op::Delete { key } if self.items.contains_key(key) => events.push(Event::Delete { key: key.clone(), revision }),
                Op::Delete { .. } => {}
                Op::DeleteRange { from, to } => {
                    events.extend(self.items.range(from.clone()..to.clone()).map(|(key, _)| Event::Delete { key: key.clone(), revision }));
                }
            }
        }
        self.apply(events);
        Ok(Committed { revision: self.revision })
    }

    fn keep_alive(&mut self, at: &Key, wanted: Option<u64>, expires: Time, now: Time) -> Result<Committed, CommitError> {
        let Some(item) = self.live(at, now) else { return Err(CommitError::NotFound { key: at.clone() }) };
        if wanted.is_some_and(|wanted| wanted != item.revision) {
            return Err(CommitError::Conflict { key: at.clone() });
        }
        let item = Item { revision: self.revision + 1, expires: Some(expires), ..item.clone() };
        self.apply(vec![Event::Put(item)]);
        Ok(Committed { revision: self.revision })
    }

    /// In the order of expiry, then of keys.
    fn expire(&mut self, now: Time) -> usize {
        let revision = self.revision + 1;
        let mut due: Vec<(Option<Time>, Key)> =
            self.items.values().filter(|item| item.expired(now)).map(|item| (item.expires, item.key.clone())).collect();
        due.sort();
        let count = due.len();
        self.apply(due.into_iter().map(|(_, key)| Event::Delete { key, revision }).collect());
        count
    }

    fn apply(&mut self, events: Vec<Event>) {
        if events.is_empty() {
            return;
        }
        self.revision += 1;
        for event in &events {
            match event {
                Event::Put(item) => drop(self.items.insert(item.key.clone(), item.clone())),
                Event::Delete { key, .. } => drop(self.items.remove(key)),
                Event::Init { .. } => {}
            }
        }
        self.events.extend(events);
    }
}
