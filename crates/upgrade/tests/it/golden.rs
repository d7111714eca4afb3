//! What each migration makes of rows that 1.0.0 wrote, and the way back: the bytes of both forms, held as they were released.

use crate::hold;
use std::{fs, path::Path};
use types::{Document, Resource, kind::User};
use upgrade::migrate::{Row, registry};

/// A row of each as 1.0.0 writes it, one that says little and one that says more than was known.
const ROWS: &[(&str, &[(&str, &str)])] = &[
    (
        "2-account-secret",
        &[
            ("internal/account/ann", r#"{"password":"$argon2id$v=19$m=8,t=1,p=1$c2FsdA$aGFzaA"}"#),
            ("internal/account/bob@example.com", r#"{"password":"$argon2id$x","otp":"JBSWY3DP","last_otp_step":59000000,"later":[1]}"#),
        ],
    ),
    ("2-ca-secret", &[("internal/ca/host", r#"{"format":1,"keys":[{"algorithm":"ed25519","secret":"AAAA"}]}"#)]),
    (
        "2-invite-user",
        &[
            ("internal/invite/0a1b", r#"{"user":"ann","otp":"JBSWY3DP","created_by":"root"}"#),
            ("internal/invite/2c3d", r#"{"user":"bob@example.com","otp":"JBSWY3DP","created_by":"root","later":true}"#),
        ],
    ),
    (
        "2-host-compact",
        &[
            (
                "internal/host/00000000-0000-0000-0000-000000000001",
                r#"{"name":"db-7","key":"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff","names":["db-7"],"newest":1790000000,"used":1789999999}"#,
            ),
            (
                "internal/host/00000000-0000-0000-0000-000000000002",
                r#"{"name":"proxy","key":"ffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff","names":[],"newest":18446744073709551615,"used":0,"later":{"a":1}}"#,
            ),
        ],
    ),
    (
        "2-user-status",
        &[
            ("doc/user/ann", r#"{"kind":"user","version":"v1","metadata":{"name":"ann"},"spec":{"roles":["access"],"created_by":"root"}}"#),
            ("doc/user/bob", r#"{"kind":"user","version":"v1","metadata":{"name":"bob","labels":{"a":"b"}},"spec":{"later":1},"more":2}"#),
        ],
    ),
];

fn line(word: &str, row: &Row) -> String {
    format!("{word} {} {}\n", row.key, row.value.escape_ascii())
}

#[test]
fn rows_are_changed_as_they_were_released() {
    let registry = registry().unwrap();
    let known: Vec<&str> = registry.iter().map(|migration| migration.id).collect();
    assert_eq!(ROWS.iter().map(|(id, _)| *id).collect::<Vec<_>>(), known, "a new migration has its rows here");
    for (migration, (id, rows)) in registry.iter().zip(ROWS) {
        let mut told = String::new();
        for (key, value) in *rows {
            let old = Row::new(*key, *value);
            told += &line("old", &old);
            for new in migration.check(&old).unwrap() {
                told += &line("new", &new);
                if migration.is_one_to_one() {
                    assert_eq!(migration.pair(&new).unwrap().old, old, "{id}");
                }
            }
        }
        hold::text(&format!("{id}.txt"), &told);
    }
}

#[test]
fn rows_that_no_release_wrote_are_named_and_not_guessed_at() {
    let check = |id: &str, key: &str, value: &str, why: &str| {
        let registry = registry().unwrap();
        let bad = registry.find(id).unwrap().check(&Row::new(key, value)).unwrap_err();
        assert!(bad.why.contains(why), "{id}: {bad}");
    };
    let user = |version: &str, more: &str| format!(r#"{{"kind":"user","version":"{version}","metadata":{{"name":"a"}},{more}}}"#);
    check("2-user-status", "doc/user/a", &user("v2", r#""spec":{}"#), "it is of version v2");
    check("2-user-status", "doc/user/a", &user("v1", r#""spec":{},"status":{}"#), "has a status");
    check("2-user-status", "doc/user/a", &user("v1", r#""spec":7"#), "no object");
    check("2-invite-user", "internal/invite/x", r#"{"otp":"x"}"#, "for whom");
    check("2-invite-user", "internal/invite/x", r#"{"user":"a/b"}"#, "is none");
    let host = |key: &str, newest: &str| format!(r#"{{"name":"a","key":"{key}","names":[],"newest":{newest},"used":1}}"#);
    check("2-host-compact", "internal/host/x", &host("k", "1"), "no digest");
    check("2-host-compact", "internal/host/x", &host(&"0".repeat(64), "-1"), "no number");
    check("2-host-compact", "internal/host/x", "{}", "it has no name");
    check("2-host-compact", "internal/host/x", "\u{1}", "expected value");
}

#[test]
fn a_compact_record_that_was_damaged_is_told_and_no_record_takes_half_of_what_it_took() {
    let registry = registry().unwrap();
    let migration = registry.find("2-host-compact").unwrap();
    let (_, rows) = ROWS.iter().find(|(id, _)| *id == migration.id).unwrap();
    for (key, value) in *rows {
        let new = migration.forward(&Row::new(*key, *value)).unwrap().remove(0);
        assert!(2 * new.value.len() < value.len(), "{} of {}", new.value.len(), value.len());
        for cut in 0..new.value.len() {
            let read = upgrade::migrations::host_compact::read(&new.value[..cut]);
            // What is behind the known fields may be absent.
            assert!(read.is_err() || upgrade::migrations::host_compact::write(read.unwrap()).unwrap() == new.value[..cut], "{cut}");
        }
        assert!(upgrade::migrations::host_compact::read(&[b"\x02", &new.value[1..]].concat()).unwrap_err().contains("format"));
    }
}

/// `types` holds the forms of today; a form that a migration left behind is held here.
#[test]
fn documents_of_released_forms_become_those_of_today_and_come_back() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../types/tests/golden/1.0.0/document-user.json");
    let old = Document::from_json(&fs::read(golden).unwrap()).unwrap();
    let registry = registry().unwrap();
    let new = registry.newest(old.clone()).unwrap();
    let user = Resource::<User>::from_document(new.clone()).unwrap();
    assert_eq!((user.spec.roles.len(), &user.extra[User::STATUS]["created_by"]), (2, &"root".into()));
    assert_eq!(registry.as_of(1, new), Ok(old));
}
