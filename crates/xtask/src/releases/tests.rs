//! Rows that are right, and each way in which one can be wrong.

use super::*;

fn row(version: &str, date: &str) -> Release {
    let sum = "0123456789abcdef".repeat(4);
    let names = [format!("lockgate-{version}-linux-amd64.tar.gz"), format!("lockgate_{version}_amd64.deb"), "sbom.cdx.json".to_owned()];
    Release {
        version: version.parse().unwrap(),
        commit: sum[..40].to_owned(),
        date: date.to_owned(),
        registry: sum.clone(),
        api: sum.clone(),
        frozen: sum.clone(),
        artifacts: names.map(|name| (name, sum.clone())).into(),
    }
}

fn faults(rows: &[Release], now: &str) -> Vec<String> {
    shape(rows, &now.parse().unwrap())
}

#[test]
fn rows_in_order_are_right_and_survive_being_written() {
    let rows = [row("1.0.0", "2026-11-23"), row("1.0.1", "2026-11-23"), row("2.0.0-rc.1", "2027-01-01"), row("2.0.0", "2027-02-01")];
    assert_eq!(faults(&rows, "2.0.0"), Vec::<String>::new());
    let text: String = rows.iter().map(|row| written(row) + "\n").collect();
    let read: Releases = toml::from_str(&text).unwrap();
    assert_eq!(format!("{:?}", read.release), format!("{rows:?}"));
}

#[test]
fn each_thing_that_is_wrong_is_told() {
    let check = |rows: &[Release], now: &str, words: &str| {
        let found = faults(rows, now);
        assert!(found.len() == 1 && found[0].contains(words), "{words}: {found:?}");
    };
    let good = || row("1.0.0", "2026-11-23");
    check(&[Release { commit: "abc".into(), ..good() }], "1.0.0", "full name");
    check(&[Release { api: "X".repeat(64), ..good() }], "1.0.0", "64 hexadecimal");
    check(&[Release { date: "23.11.2026".into(), ..good() }], "1.0.0", "of the form");
    check(&[Release { artifacts: BTreeMap::new(), ..good() }], "1.0.0", "is missing");
    check(&[row("1.0.0+5", "2026-11-23")], "1.0.0+5", "no build number");
    check(&[row("1.1.0", "2026-11-23"), row("1.0.9", "2026-11-24")], "1.1.0", "ascend");
    check(&[row("1.0.0", "2026-11-23"), row("1.0.1", "2026-11-22")], "1.0.1", "dated before");
    check(&[good()], "0.9.0", "released already");
}

#[test]
fn every_release_has_its_chapter() {
    let check = |text: &str, expected: usize| {
        let found = changelog(text, &[row("1.0.0", "2026-11-23")], &"1.1.0".parse().unwrap());
        assert_eq!(found.len(), expected, "{text}: {found:?}");
    };
    check("## [Unreleased]\n## [1.0.0] - 2026-11-23\n", 0);
    check("## [1.1.0] - 2027-01-01\n## [1.0.0] - 2026-11-23\n", 0);
    check("## [1.1.0]\n## [1.0.0] - 2026-11-24\n", 1);
    check("", 2);
}

#[test]
fn other_bytes_than_those_released_are_told_by_name() {
    let made = |bytes: &[u8]| BTreeMap::from([("a.deb".to_owned(), bytes.to_vec())]);
    let row = Release { artifacts: BTreeMap::from([("a.deb".to_owned(), sha256(b"x"))]), ..row("1.0.0", "2026-11-23") };
    assert!(row.compare(&made(b"x")).is_ok());
    assert!(row.compare(&made(b"y")).unwrap_err().to_string().contains("a.deb"));
}

#[test]
fn the_rows_of_this_repository_are_right() {
    let root = Root::find().unwrap();
    let findings = check(&root).unwrap();
    assert_eq!(findings.faults, Vec::<String>::new());
}
