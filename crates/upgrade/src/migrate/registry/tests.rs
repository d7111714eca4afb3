//! What may stand in the list, and what a release freezes. The definitions here serve the tests of the whole module.

use super::*;
use types::Document;
use types::control::ClusterVersion;

pub(crate) const FROM: ClusterVersion = ClusterVersion { major: 8, step: 0 };
pub(crate) const TO: ClusterVersion = ClusterVersion { major: 9, step: 0 };

fn grow(mut document: Document) -> Result<Document, String> {
    let size = document.spec.get("size").and_then(serde_json::Value::as_u64).ok_or("its size is not a number")?;
    document.spec = serde_json::json!({ "size": { "cm": size } });
    document.version = "v2".into();
    Ok(document)
}
fn shrink(mut document: Document) -> Result<Document, String> {
    let size = document.spec["size"]["cm"].as_u64().ok_or("it has no size")?;
    document.spec = serde_json::json!({ "size": size });
    document.version = "v1".into();
    Ok(document)
}
fn device(mut document: Document) -> Result<Document, String> {
    document.kind = "device".into();
    Ok(document)
}
fn gadget(mut document: Document) -> Result<Document, String> {
    document.kind = "gadget".into();
    Ok(document)
}

pub(crate) const RESHAPED: Migration = Migration {
    id: "9-widget-size",
    about: "sizes have a unit",
    from: FROM,
    to: TO,
    floor: 8,
    change: Change::InPlace { dir: "doc/widget", form: Form::Document { up: grow, down: shrink } },
    repair: None,
    source: "fn grow(a, b,) { 1 }",
};
pub(crate) const MOVED: Migration = Migration {
    id: "9-gadget-device",
    change: Change::Moved { from: "doc/gadget", to: "doc/device", form: Form::Document { up: device, down: gadget } },
    ..RESHAPED
};

#[test]
fn the_released_migrations_are_as_they_were_released() {
    registry().unwrap().hold(LOCK).unwrap();
}

#[test]
fn a_released_migration_that_changes_or_goes_is_found() {
    let both = Registry::new(&[RESHAPED, MOVED]).unwrap();
    let lock = format!("# released\n{} {}\n", RESHAPED.id, digest(&RESHAPED));
    assert_eq!(both.hold(&lock), Ok(()));
    let laid_out = Registry::new(&[Migration { source: "fn grow(\n    a,\n    b,\n) {\n    1\n}\n", ..RESHAPED }]).unwrap();
    assert_eq!(laid_out.hold(&lock), Ok(()), "layout does not count");
    let changed = Registry::new(&[Migration { source: "fn grow(a, b) { 2 }", ..RESHAPED }]).unwrap();
    assert!(matches!(changed.hold(&lock), Err(BadRegistry::Changed { .. })));
    assert_ne!(changed.digest(), Registry::new(&[RESHAPED]).unwrap().digest());
    assert_eq!(Registry::new(&[MOVED]).unwrap().hold(&lock), Err(BadRegistry::Gone(RESHAPED.id.into())));
    assert_eq!(both.hold("one two three"), Err(BadRegistry::Line(1)));
}

#[test]
fn migrations_of_one_major_do_not_meet() {
    let check = |migrations: &[Migration], expected: &str| {
        let got = Registry::new(migrations).map(drop).map_err(|bad| bad.to_string());
        match (expected, got) {
            ("", got) => assert_eq!(got, Ok(())),
            (part, Err(text)) => assert!(text.contains(part), "{text}"),
            (part, Ok(())) => panic!("expected {part}"),
        }
    };
    let move_to = |from, to| Migration { id: "9-x", change: Change::Moved { from, to, form: Form::Kept }, ..RESHAPED };
    check(&[RESHAPED, MOVED], "");
    check(&[RESHAPED, RESHAPED], "two migrations");
    check(&[RESHAPED, move_to("doc/a", "doc/widget/b")], "both touch doc/widget");
    check(&[RESHAPED, move_to("doc/a", "doc/widgets")], "");
    check(&[move_to("doc/a", "doc/a/b")], "both touch");
    check(&[move_to("doc/a", "migration/b")], "not a directory");
    check(&[move_to("doc/a", "doc//b")], "not a directory");
    check(&[Migration { id: "9 x", ..RESHAPED }], "not a migration's id");
    check(&[Migration { floor: 7, ..RESHAPED }], "does not lead");
    check(&[Migration { change: Change::InPlace { dir: "doc/a", form: Form::Kept }, ..RESHAPED }], "changes nothing");
    let later = Migration { id: "10-widget", from: TO, to: ClusterVersion { major: 10, step: 0 }, floor: 9, ..RESHAPED };
    check(&[RESHAPED, later], "");
}
