//! The table, the counts and the alerts (rule G12).

use super::*;
use crate::control::birth;
use types::{Extra, HostId, Labels, Metadata, name::ClusterId};

/// A member seen at second 1000.
pub(crate) fn member(id: u128, hostname: &str, roles: &[&str], version: &str) -> Resource<Member> {
    let spec = Member {
        hostname: hostname.into(),
        roles: roles.iter().map(|role| role.parse().unwrap()).collect(),
        version: version.parse().unwrap(),
        boot_id: "b".into(),
        started: Time::from_unix(900),
        last_seen: Time::from_unix(1000),
        state: "active".into(),
        skips_version_check: false,
        labels: Labels::new(),
        platform: Default::default(),
        capabilities: Vec::new(),
        extra: Extra::new(),
    };
    Resource::new(Metadata::named(&HostId::from_uuid(uuid::Uuid::from_u128(id))), spec)
}

fn look(members: &[Resource<Member>], at: i64) -> Inventory {
    let control = birth(ClusterId::from_uuid(uuid::Uuid::nil()), &Version::new(8, 0, 0), true).unwrap();
    summarise(members, &control, Time::from_unix(at), Duration::from_secs(225))
}

#[test]
fn g12_the_inventory_lists_everybody_in_the_order_of_an_upgrade() {
    let members = [
        member(4, "web-2", &["node"], "7.4.0"),
        member(3, "web-1", &["node"], "8.0.0"),
        member(2, "p-1", &["proxy"], "8.0.0"),
        member(1, "a-1", &["auth", "proxy"], "8.1.0"),
    ];
    let inventory = look(&members, 1100);
    let table: Vec<_> =
        inventory.rows.iter().map(|row| format!("{} {} {} {}", row.hostname, row.services, row.version, row.standing.as_str())).collect();
    assert_eq!(table, ["a-1 auth,proxy 8.1.0 ok", "p-1 proxy 8.0.0 ok", "web-1 node 8.0.0 ok", "web-2 node 7.4.0 behind"]);
    let counts: Vec<_> = inventory.by_version.iter().map(|((role, version), count)| format!("{role} {version} {count}")).collect();
    assert_eq!(counts, ["auth 8.1.0 1", "node 7.4.0 1", "node 8.0.0 1", "proxy 8.0.0 1", "proxy 8.1.0 1"]);
    assert_eq!(inventory.rows[0].cells().len(), Row::HEADINGS.len());
    assert_eq!(inventory.alerts.len(), 1);
    assert_eq!(inventory.alerts[0].text, "1 host one major behind: web-2 (7.4.0)");
    assert_eq!(inventory.alerts[0].cure, "upgrade to the latest 8 before the cluster moves to 9");
}

#[test]
fn g12_alerts_name_the_hosts_and_the_cure() {
    let check = |members: &[Resource<Member>], text: &str, cure: &str| {
        let alert = look(members, 1100).alerts.into_iter().next().unwrap();
        assert_eq!((alert.text.as_str(), alert.cure.as_str()), (text, cure));
    };
    check(
        &[member(1, "old", &["node"], "5.0.0")],
        "1 host outside the versions this cluster admits: old (5.0.0)",
        "upgrade it to the latest 6, then 7",
    );
    let mut new = member(1, "new", &["proxy"], "9.0.0");
    new.spec.skips_version_check = true;
    let alerts = look(&[new], 1100).alerts;
    assert_eq!(alerts[1].text, "1 host with --skip-version-check: new (9.0.0)");
    check(
        &[member(1, "p", &["proxy"], "7.0.0"), member(2, "n", &["node"], "8.0.0")],
        "Proxies older than agents, which cannot connect through them; 1 host: p (7.0.0)",
        "upgrade the Proxies to the latest 8",
    );
    check(
        &[member(1, "rc", &["node"], "8.0.0-rc.1")],
        "1 host on a pre-release in a production cluster: rc (8.0.0-rc.1)",
        "replace it by a release",
    );
    let many: Vec<_> = (0..13).map(|n| member(n, &format!("h{n:02}"), &["node"], "7.0.0")).collect();
    let text = look(&many, 1100).alerts.remove(0).text;
    assert!(text.starts_with("13 hosts one major behind: h00 (7.0.0), h01") && text.ends_with("h09 (7.0.0) and 3 more"), "{text}");
}

#[test]
fn a_silent_member_is_offline_and_an_unknown_role_is_judged_as_an_agent() {
    let members = [member(1, "gone", &["node"], "8.0.0"), member(2, "new", &["gateway"], "8.0.0")];
    let inventory = look(&members, 2000);
    assert!(inventory.rows.iter().all(|row| !row.online && row.state == "offline"));
    assert!(inventory.rows.iter().any(|row| row.services == "gateway" && row.standing == Standing::Current));
    let late = look(&[member(3, "late", &["gateway"], "6.0.0")], 1100);
    assert_eq!(late.rows[0].standing, Standing::Outside { cure: "upgrade it to the latest 7".into() });
    assert!(look(&members, 1100).rows.iter().all(|row| row.online && row.state == "active"));
}

#[test]
fn g12_a_quarantined_host_is_listed_with_what_to_install_and_nothing_else_is_said_of_it() {
    let mut lost = member(7, "lost", &["node"], "5.2.0");
    lost.spec.state = Member::QUARANTINED.into();
    let told = serde_json::json!({"since": "1970-01-01T00:10:00Z", "next": "6.4.0", "why": "too old", "mood": "sad"});
    lost.spec.extra.insert(Member::QUARANTINE.into(), told);
    let inventory = look(std::slice::from_ref(&lost), 1100);
    let row = &inventory.rows[0];
    assert_eq!((row.state.as_str(), row.cells()[6].as_str()), ("quarantined", "install 6.4.0 (since 1970-01-01T00:10:00Z)"));
    assert_eq!(row.quarantine.as_ref().unwrap().extra["mood"], "sad");
    let texts: Vec<_> = inventory.alerts.iter().map(|alert| alert.text.as_str()).collect();
    assert_eq!(texts, ["1 host quarantined, serving nobody until another version is installed: lost (5.2.0)"]);
    // It holds no upgrade back, and back in service it is quarantined no more, whatever is left in its document.
    let control = birth(ClusterId::from_uuid(uuid::Uuid::nil()), &Version::new(8, 0, 0), true).unwrap();
    crate::control::adopt(&control, &Version::new(9, 0, 0), std::slice::from_ref(&lost)).unwrap();
    lost.spec.state = "active".into();
    assert!(crate::control::adopt(&control, &Version::new(9, 0, 0), std::slice::from_ref(&lost)).is_err());
    assert!(look(&[lost], 1100).rows[0].quarantine.is_none());
}
