//! The bill of materials, CycloneDX 1.5 as JSON: every package in the program, with its licence, digest and what it needs.
//!
//! The same packages give the same bytes: the time is the commit's, and the serial number is made of the contents.

use super::Origin;
use super::packages::{Packages, Shipped};
use anyhow::Result;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub(crate) fn sbom(packages: &Packages, origin: &Origin) -> Result<String> {
    let components: Vec<Value> = packages.all.iter().filter(|shipped| !is_main(shipped)).map(component).collect();
    let mut dependencies = Vec::new();
    let mut main = Value::Null;
    for shipped in &packages.all {
        if is_main(shipped) {
            main = json!({
                "type": "application", "bom-ref": shipped.reference(), "name": "lockgate", "version": origin.version,
                "licenses": [{"license": {"id": "Apache-2.0"}}],
                "properties": [{"name": "lockgate:commit", "value": origin.commit}],
            });
        }
        dependencies.push(json!({"ref": shipped.reference(), "dependsOn": shipped.needs}));
    }
    let content = serde_json::to_vec(&(&components, &dependencies, &main))?;
    let bom = json!({
        "$schema": "http://cyclonedx.org/schema/bom-1.5.schema.json",
        "bomFormat": "CycloneDX", "specVersion": "1.5", "serialNumber": serial(&content), "version": 1,
        "metadata": {
            "timestamp": origin.stamp,
            "tools": {"components": [{"type": "application", "name": "cargo xtask dist", "version": origin.version}]},
            "component": main,
        },
        "components": components, "dependencies": dependencies,
    });
    Ok(serde_json::to_string_pretty(&bom)? + "\n")
}

fn is_main(shipped: &Shipped) -> bool {
    shipped.package.source.is_none() && shipped.package.name.as_str() == "cli"
}

fn component(shipped: &Shipped) -> Value {
    let package = &shipped.package;
    let mut component = json!({
        "type": "library", "bom-ref": shipped.reference(), "name": package.name.as_str(), "version": package.version.to_string(),
    });
    let Some(fields) = component.as_object_mut() else { return component };
    if let Some(about) = &package.description {
        fields.insert("description".into(), about.split_whitespace().collect::<Vec<_>>().join(" ").into());
    }
    if let Some(licence) = &package.license {
        // Before 2018 crates wrote `MIT/Apache-2.0`.
        fields.insert("licenses".into(), json!([{"expression": licence.replace('/', " OR ")}]));
    }
    if package.source.is_some() {
        fields.insert("purl".into(), shipped.reference().into());
    }
    if let Some(sum) = &shipped.checksum {
        fields.insert("hashes".into(), json!([{"alg": "SHA-256", "content": sum}]));
    }
    if let Some(place) = &package.repository {
        fields.insert("externalReferences".into(), json!([{"type": "vcs", "url": place}]));
    }
    component
}

/// A UUID of version 8 (RFC 9562) made of a digest.
fn serial(content: &[u8]) -> String {
    let mut bytes: [u8; 16] = Sha256::digest(content).first_chunk().copied().unwrap_or_default();
    for (at, byte) in bytes.iter_mut().enumerate() {
        match at {
            6 => *byte = (*byte & 0x0f) | 0x80,
            8 => *byte = (*byte & 0x3f) | 0x80,
            _ => {}
        }
    }
    let hex: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let part = |from: usize, to: usize| hex.get(from..to).unwrap_or_default().concat();
    format!("urn:uuid:{}-{}-{}-{}-{}", part(0, 4), part(4, 6), part(6, 8), part(8, 10), part(10, 16))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::packages::shipped;
    use crate::run::Root;
    use std::collections::BTreeSet;

    #[test]
    fn the_bill_is_complete_closed_and_the_same_each_time() {
        let root = Root::find().unwrap();
        let origin = Origin::example();
        let make = || sbom(&shipped(root.dir(), "x86_64-unknown-linux-gnu").unwrap(), &origin).unwrap();
        let text = make();
        assert_eq!(text, make());
        let bill: Value = serde_json::from_str(&text).unwrap();
        let components = bill["components"].as_array().unwrap();
        let names: BTreeSet<&str> = components.iter().map(|one| one["name"].as_str().unwrap()).collect();
        for name in ["russh", "rustls", "tokio", "aws-lc-sys", "rules", "wire"] {
            assert!(names.contains(name), "{name} is missing");
        }
        for name in ["proptest", "xtask", "harness", "protox", "cc"] {
            assert!(!names.contains(name), "{name} is not in the program");
        }
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let main = &bill["metadata"]["component"]["bom-ref"];
        let known: BTreeSet<String> = components.iter().map(|one| text(&one["bom-ref"])).chain([text(main)]).collect();
        assert_eq!(known.len(), components.len() + 1, "references are unique");
        let uses = bill["dependencies"].as_array().unwrap();
        assert_eq!(uses.len(), known.len());
        assert!(uses.iter().flat_map(|one| one["dependsOn"].as_array().unwrap()).all(|need| known.contains(need.as_str().unwrap())));
        let foreign = components.iter().filter(|one| one.get("purl").is_some());
        assert!(foreign.clone().all(|one| one["hashes"][0]["content"].as_str().unwrap().len() == 64 && one.get("licenses").is_some()));
        assert!(foreign.count() > 100);
    }

    #[test]
    fn the_serial_number_is_a_uuid_of_the_contents() {
        let number = serial(b"a");
        assert_eq!((number.len(), number.get(23..24)), (45, Some("8")), "{number}");
        assert_eq!(number, serial(b"a"));
        assert_ne!(serial(b"a"), serial(b"b"));
    }
}
