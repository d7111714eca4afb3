//! What those who act have seen is broken on purpose, rule by rule; states and plans are in `tests/it/broken.rs`.

use super::*;

#[test]
fn the_invariants_are_those_of_the_design_by_number() {
    let numbers: Vec<u8> = Invariant::ALL.iter().map(|invariant| invariant.number()).collect();
    assert_eq!(numbers, (1..=24).collect::<Vec<u8>>());
    assert_eq!(Invariant::Order.to_string(), "I12");
    assert!(Invariant::ALL.iter().all(|invariant| !invariant.promise().is_empty()));
}

#[test]
fn what_those_who_act_have_seen_is_held_against_the_rules() {
    let facts = Facts {
        admitted: vec![Admitted { name: "web-1".into(), lo: 1, hi: 1, major: 2 }],
        writes: vec![Write { who: "auth-1".into(), epoch: 3, least: 4, committed: true }],
        journal: vec![Write { who: "auth-2".into(), epoch: 2, least: 4, committed: true }],
        refused: vec![Told { name: "web-2".into(), cure: String::new(), at: Time::EPOCH }],
        metadata: vec![4, 7, 6],
        plans: vec![
            Line { id: "a".into(), parent: String::new(), generation: 1 },
            Line { id: "c".into(), parent: "b".into(), generation: 2 },
        ],
    };
    let numbers: Vec<u8> = record(&facts).iter().map(|fault| fault.invariant.number()).collect();
    assert_eq!(numbers, [3, 7, 8, 18, 22, 24]);
    let good = Facts {
        admitted: vec![Admitted { name: "web-1".into(), lo: 1, hi: 2, major: 2 }],
        writes: vec![Write { who: "auth-1".into(), epoch: 3, least: 4, committed: false }],
        journal: vec![Write { who: "auth-2".into(), epoch: 4, least: 4, committed: true }],
        refused: vec![Told { name: "web-2".into(), cure: "install 2".into(), at: Time::EPOCH }],
        metadata: vec![4, 4, 6],
        plans: vec![
            Line { id: "a".into(), parent: String::new(), generation: 1 },
            Line { id: "c".into(), parent: "a".into(), generation: 2 },
        ],
    };
    assert_eq!(record(&good), []);
    assert_eq!(record(&Facts::default()), []);
}
