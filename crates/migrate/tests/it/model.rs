//! Random rows, random writes, random steps: the mirror always equals a map, and up, undo, up equals up.

use crate::drivers::{FIRST, MEMORY, dump, finalize, reset};
use crate::samples::{ALL, key, new_value, old_row, registry};
use migrate::{Limits, Mirror, Outcome, Runner};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use store::{Batch, Key, Store, scan};
use upgrade::migrate::{Goal, Migration, Row};

#[derive(Clone, Debug)]
enum Act {
    Put(u8, u64),
    Delete(u8),
    /// The first runner's step, or the other's.
    Step(bool),
    Turn,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        3 => (0u8..8, 0u64..1000).prop_map(|(name, size)| Act::Put(name, size)),
        1 => (0u8..8).prop_map(Act::Delete),
        6 => any::<bool>().prop_map(Act::Step),
        1 => Just(Act::Turn),
    ]
}

fn name(of: u8) -> String {
    format!("n{of}")
}

async fn shown(mirror: &Mirror, migration: &Migration) -> BTreeMap<String, Vec<u8>> {
    let dir = key(migration, "x").to_string();
    let dir = Key::dir(dir.rsplit_once('/').unwrap().0.split('/')).unwrap();
    let items = scan(mirror, &dir, &dir.prefix_end()).await.unwrap();
    items.into_iter().map(|item| (item.key.name().to_owned(), item.value.to_vec())).collect()
}

async fn play(store: &Arc<dyn Store>, migration: Migration, seed: &BTreeMap<u8, u64>, acts: &[Act]) {
    let rows: Vec<_> = seed.iter().map(|(of, size)| old_row(&migration, &name(*of), *size)).collect();
    reset(store.as_ref(), &rows).await;
    let mirror = Mirror::new(Arc::clone(store), registry());
    let limits = Limits { rows: 2, ..Limits::default() };
    let runners = ["one", "other"].map(|holder| Runner::new(Arc::clone(store), migration, FIRST, holder, limits).unwrap());
    let value = |of: u8, size: u64| new_value(&migration, &name(of), size);
    let mut model: BTreeMap<String, Vec<u8>> = seed.iter().map(|(of, size)| (name(*of), value(*of, *size))).collect();
    let mut goal = Goal::Up;
    for act in acts {
        match act {
            Act::Put(of, size) => {
                let batch = Batch::new(Some(FIRST)).put(key(&migration, &name(*of)), value(*of, *size), None);
                mirror.commit(batch).await.unwrap();
                model.insert(name(*of), value(*of, *size));
            }
            Act::Delete(of) => {
                mirror.commit(Batch::new(Some(FIRST)).delete(key(&migration, &name(*of)))).await.unwrap();
                model.remove(&name(*of));
            }
            Act::Step(other) => drop(runners[usize::from(*other)].step(goal).await.unwrap()),
            Act::Turn => goal = if goal == Goal::Up { Goal::Undo } else { Goal::Up },
        }
        assert_eq!(shown(&mirror, &migration).await, model, "{act:?}");
    }
    assert_eq!(runners[0].run(Goal::Up).await.unwrap(), Outcome::Done);
    let up = dump(store.as_ref()).await;
    assert_eq!(runners[0].run(Goal::Undo).await.unwrap(), Outcome::Done);
    let undone: Vec<_> = dump(store.as_ref()).await.into_iter().map(|(key, value, _)| Row::new(key, value)).collect();
    let backward = |row: &Row| if migration.is_one_to_one() { migration.forward(row).unwrap().remove(0).value } else { row.value.clone() };
    let back: BTreeMap<_, _> = undone.iter().map(|row| (row.key.rsplit_once('/').unwrap().1.to_owned(), backward(row))).collect();
    assert_eq!(back, model);
    assert_eq!(runners[1].run(Goal::Up).await.unwrap(), Outcome::Done);
    assert_eq!(dump(store.as_ref()).await, up, "up, undo, up is up");
    finalize(store.as_ref()).await;
    assert_eq!(runners[1].run(Goal::Contract).await.unwrap(), Outcome::Done);
    assert_eq!(shown(&mirror, &migration).await, model);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn the_mirror_equals_a_map_whatever_the_migration_does(
        seed in prop::collection::btree_map(0u8..8, 0u64..1000, 0..8),
        acts in prop::collection::vec(act(), 0..50),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(async {
            let opened = (MEMORY.open)().await;
            for migration in ALL {
                Box::pin(play(&opened.store, migration, &seed, &acts)).await;
            }
        });
    }

    #[test]
    fn there_and_back_is_the_same_for_any_row(of in "[a-z][a-z0-9-]{0,20}", size: u64, extra in "[ -~&&[^\"\\\\]]{0,40}") {
        for migration in ALL.iter().filter(|migration| migration.is_one_to_one()) {
            let (key, value) = old_row(migration, &of, size);
            let value = String::from_utf8(value).unwrap().replace("\"kept\":", &format!("\"{extra}x\":"));
            let old = Row::new(key, value);
            let rows = migration.check(&old).unwrap();
            let pair = migration.pair(&rows[0]).unwrap();
            prop_assert_eq!(&pair.old, &old);
            prop_assert_eq!(&pair.new, &rows[0]);
        }
    }
}
