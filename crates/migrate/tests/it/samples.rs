//! One made-up migration of each class, from major 8 to 9, with rows in both forms.

use store::Key;
use types::Document;
use types::control::ClusterVersion;
use upgrade::migrate::{Change, Fix, Form, Migration, Registry, Row};

fn size_up(mut document: Document) -> Result<Document, String> {
    let size = document.spec.get("size").and_then(serde_json::Value::as_u64).ok_or("its size is not a number")?;
    let site = document.spec.get("site").cloned().unwrap_or_default();
    document.spec = serde_json::json!({ "size": { "cm": size }, "site": site });
    document.version = "v2".into();
    Ok(document)
}
fn size_down(mut document: Document) -> Result<Document, String> {
    let size = document.spec["size"]["cm"].as_u64().ok_or("it has no size")?;
    let site = document.spec.get("site").cloned().unwrap_or_default();
    document.spec = serde_json::json!({ "size": size, "site": site });
    document.version = "v1".into();
    Ok(document)
}
fn size_repair(row: &Row) -> Option<Fix> {
    let text = String::from_utf8(row.value.clone()).ok()?;
    let mended = text.replace("\"size\":\"", "\"size\":").replace("\",\"site\"", ",\"site\"");
    (mended != text).then(|| Fix::Replace(mended.into_bytes()))
}
fn device(mut document: Document) -> Result<Document, String> {
    document.kind = "device".into();
    Ok(document)
}
fn gadget(mut document: Document) -> Result<Document, String> {
    document.kind = "gadget".into();
    Ok(document)
}
/// By site, and by size: two rows for most, one for those without a site.
fn by_site(row: &Row) -> Result<Vec<Row>, String> {
    let document = Document::from_json(&row.value).map_err(|error| error.to_string())?;
    let name = document.metadata.name.to_string();
    let size = document.spec["size"].as_u64().ok_or("its size is not a number")?;
    let mut rows = vec![Row::new(format!("index/host/size-{size}/{name}"), "")];
    if let Some(site) = document.spec["site"].as_str() {
        rows.push(Row::new(format!("index/host/site-{site}/{name}"), size.to_string()));
    }
    Ok(rows)
}
fn host_of(key: &str) -> Option<String> {
    Some(format!("doc/host/{}", key.rsplit_once('/')?.1))
}
fn hex_up(bytes: &[u8]) -> Result<Vec<u8>, String> {
    if bytes.starts_with(b"v2:") {
        return Err("it is encoded already".into());
    }
    Ok(format!("v2:{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()).into_bytes())
}
fn hex_down(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let text = std::str::from_utf8(bytes).ok().and_then(|text| text.strip_prefix("v2:")).ok_or("it is not encoded")?;
    if text.len() % 2 != 0 {
        return Err("it is cut off".into());
    }
    let byte = |at: usize| u8::from_str_radix(&text[at..at + 2], 16).map_err(|error| error.to_string());
    (0..text.len()).step_by(2).map(byte).collect()
}

pub(crate) const RESHAPED: Migration = Migration {
    id: "9-widget-size",
    about: "sizes have a unit",
    from: ClusterVersion { major: 8, step: 0 },
    to: ClusterVersion { major: 9, step: 0 },
    floor: 8,
    change: Change::InPlace { dir: "doc/widget", form: Form::Document { up: size_up, down: size_down } },
    repair: Some(size_repair),
    source: "made up",
};
pub(crate) const MOVED: Migration = Migration {
    id: "9-gadget-device",
    change: Change::Moved { from: "doc/gadget", to: "doc/device", form: Form::Document { up: device, down: gadget } },
    repair: None,
    ..RESHAPED
};
pub(crate) const INDEX: Migration = Migration {
    id: "9-host-index",
    change: Change::Index { source: "doc/host", into: "index/host", derive: by_site, source_of: host_of },
    repair: None,
    ..RESHAPED
};
pub(crate) const ENCODING: Migration = Migration {
    id: "9-vault-hex",
    change: Change::InPlace { dir: "internal/vault", form: Form::Bytes { up: hex_up, down: hex_down } },
    repair: None,
    ..RESHAPED
};

pub(crate) const ALL: [Migration; 4] = [RESHAPED, MOVED, INDEX, ENCODING];

pub(crate) fn registry() -> Registry {
    Registry::new(&ALL).unwrap()
}

/// Where business code finds a row; the old place for rows that stay.
pub(crate) fn key(migration: &Migration, name: &str) -> Key {
    let dir = if migration.is_one_to_one() { migration.new_dir() } else { migration.old_dir() };
    Key::parse(format!("{dir}/{name}")).unwrap()
}

/// A row as the older binary writes it: its key and value.
pub(crate) fn old_row(migration: &Migration, name: &str, size: u64) -> (String, Vec<u8>) {
    let dir = migration.old_dir();
    let value = match dir {
        "internal/vault" => format!("secret {name} {size}"),
        _ => {
            let (kind, site) = (dir.trim_start_matches("doc/"), if size.is_multiple_of(3) { "null" } else { "\"lyon\"" });
            format!(
                r#"{{"kind":"{kind}","version":"v1","metadata":{{"name":"{name}"}},"spec":{{"size":{size},"site":{site}}},"kept":{size}}}"#
            )
        }
    };
    (format!("{dir}/{name}"), value.into_bytes())
}

/// The value as business code writes it.
pub(crate) fn new_value(migration: &Migration, name: &str, size: u64) -> Vec<u8> {
    let (key, value) = old_row(migration, name, size);
    if !migration.is_one_to_one() {
        return value;
    }
    migration.forward(&Row::new(key, value)).unwrap().pop().unwrap().value
}
