//! What a watcher is told, whenever it asks and however much it missed.

use super::*;
use proptest::prelude::*;
use store::Key;

fn item(name: &str, revision: u64) -> Item {
    let value = format!(r#"{{"kind":"node","version":"v1","metadata":{{"name":"{name}"}},"spec":{{}}}}"#);
    Item { key: Key::new(["doc", "node", name]).unwrap(), value: value.into(), revision, expires: None }
}
fn put(table: &mut Table, name: &str, revision: u64) {
    table.put(Read::of(&item(name, revision)).unwrap());
}
fn told(table: &Table, from: u64, to: u64, most: usize) -> (Vec<String>, u64) {
    let (changes, end) = table.since(from, to, most);
    let text = |(revision, change): (u64, Change)| match change {
        Change::Put(entry) => format!("{revision} {}", entry.document.metadata.name),
        Change::Gone(name) => format!("{revision} -{name}"),
    };
    (changes.into_iter().map(text).collect(), end)
}

#[test]
fn each_document_is_told_once_as_it_is_and_those_that_are_gone_by_name() {
    let mut table = Table::new(0);
    put(&mut table, "a", 1);
    put(&mut table, "b", 2);
    put(&mut table, "a", 3);
    table.delete("b", 4);
    // Never seen here; a watcher may know it from elsewhere.
    table.delete("never", 5);
    assert_eq!(told(&table, 0, 5, 10), (vec!["3 a".into(), "4 -b".into(), "5 -never".into()], 5));
    assert_eq!(told(&table, 3, 5, 10), (vec!["4 -b".into(), "5 -never".into()], 5));
    assert_eq!(told(&table, 0, 3, 10), (vec!["3 a".into()], 3));
    put(&mut table, "b", 6);
    assert_eq!(told(&table, 0, 6, 10), (vec!["3 a".into(), "4 -b".into(), "5 -never".into(), "6 b".into()], 6));
}

#[test]
fn of_hosts_only_what_rights_look_at_is_kept_parsed_and_nothing_is_lost() {
    let json = r#"{"kind":"member","version":"v1","metadata":{"name":"a","labels":{"env":"prod"},"later":1},"spec":{"hostname":"h","roles":["proxy"]},"new":[2]}"#;
    let key = Key::new(["doc", "member", "a"]).unwrap();
    let read = Read::of(&Item { key, value: json.into(), revision: 7, expires: None }).unwrap();
    let entry = read.entry.unwrap();
    assert_eq!(entry.document.spec, serde_json::json!({"roles": ["proxy"]}));
    assert_eq!(entry.document.metadata.labels["env"], "prod");
    let full = entry.full().unwrap();
    assert_eq!(full.spec["hostname"], "h");
    assert_eq!((&full.extra["new"], &full.metadata.extra["later"]), (&serde_json::json!([2]), &serde_json::json!(1)));
    assert_eq!(full.to_json(), entry.json);
}

#[test]
fn a_commit_is_never_told_by_half() {
    let mut table = Table::new(0);
    ["a", "b"].iter().for_each(|name| put(&mut table, name, 1));
    ["c", "d", "e"].iter().for_each(|name| put(&mut table, name, 2));
    assert_eq!(told(&table, 0, 2, 3), (vec!["1 a".into(), "1 b".into()], 1));
    assert_eq!(told(&table, 1, 2, 1), (vec!["2 c".into(), "2 d".into(), "2 e".into()], 2));
}

#[test]
fn a_document_that_becomes_unreadable_is_gone_and_counted() {
    let mut table = Table::new(0);
    put(&mut table, "a", 1);
    table.put(Read::of(&Item { value: "{".into(), ..item("a", 2) }).unwrap());
    assert_eq!((told(&table, 0, 2, 9).0, table.unreadable()), (vec!["2 -a".to_owned()], 1));
    put(&mut table, "a", 3);
    assert_eq!(table.unreadable(), 0);
}

#[test]
fn only_deletions_are_forgotten_and_the_history_brings_them_back() {
    let mut table = Table::new(100);
    put(&mut table, "a", 120);
    assert!(table.knows_since(100) && !table.knows_since(90));
    table.remember(90, &[(95, "old".into()), (120, "told already".into())]);
    assert!(table.knows_since(90));
    assert_eq!(told(&table, 90, 120, 9).0, ["95 -old", "120 a"]);
    for number in 0..=u64::try_from(GRAVES).unwrap() {
        put(&mut table, "b", 1000 + 2 * number);
        table.delete("b", 1001 + 2 * number);
    }
    assert!(!table.knows_since(1000) && table.knows_since(1001));
    assert!(told(&table, 0, u64::MAX, 1).0.contains(&"120 a".to_owned()), "what is there is never forgotten");
}

#[test]
fn another_reading_of_the_store_tells_of_what_is_missing_in_it() {
    let mut table = Table::new(0);
    ["a", "b", "c"].iter().zip(1..).for_each(|(name, revision)| put(&mut table, name, revision));
    table.delete("c", 4);
    let mut fresh = Table::new(9);
    put(&mut fresh, "a", 1);
    put(&mut fresh, "d", 8);
    table.replace(fresh, 4, 9);
    assert_eq!(told(&table, 3, 9, 9).0, ["4 -c", "8 d", "9 -b"]);
    assert!(table.knows_since(0));
}

#[test]
fn what_reads_otherwise_after_a_flip_is_told_again_and_nothing_else() {
    let mut table = Table::new(0);
    ["a", "b"].iter().zip(1..).for_each(|(name, revision)| put(&mut table, name, revision));
    let mut fresh = Table::new(9);
    put(&mut fresh, "a", 1);
    let flipped = Item { value: r#"{"kind":"node","version":"v2","metadata":{"name":"b"},"spec":{}}"#.into(), ..item("b", 2) };
    fresh.put(Read::of(&flipped).unwrap());
    table.replace(fresh, 5, 9);
    assert_eq!(told(&table, 5, 9, 9).0, ["9 b"]);
    put(&mut table, "b", 10);
    assert_eq!(told(&table, 0, 10, 9).0, ["1 a", "10 b"]);
}

proptest! {
    /// Whoever asks at any moments, for any number at once, ends with what is there.
    #[test]
    fn a_follower_ends_with_what_is_there(
        steps in prop::collection::vec((0u8..6, any::<bool>(), any::<bool>(), 1usize..4, any::<bool>()), 1..80)
    ) {
        let (mut table, mut seen, mut at, mut revision) = (Table::new(0), BTreeSet::new(), 0, 0);
        let steps_left = steps.len();
        for (number, (name, there, same_commit, most, ask)) in steps.into_iter().enumerate() {
            // The follower has asked for what came before: a commit is put in whole before anybody sees it.
            if !same_commit || at == revision {
                revision += 1;
            }
            let name = format!("n{name}");
            if there { put(&mut table, &name, revision) } else { table.delete(&name, revision) }
            let last = number + 1 == steps_left;
            if ask || last {
                while at < revision {
                    let (changes, end) = table.since(at, revision, most);
                    for (_, change) in changes {
                        match change {
                            Change::Put(entry) => drop(seen.insert(entry.document.metadata.name.to_string())),
                            Change::Gone(name) => drop(seen.remove(name.as_ref())),
                        }
                    }
                    prop_assert!(end > at);
                    at = end;
                }
            }
        }
        let there: BTreeSet<String> = table.entries().keys().map(ToString::to_string).collect();
        prop_assert_eq!(seen, there);
    }
}
