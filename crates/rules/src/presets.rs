//! The roles every cluster is born with: `access`, `editor`, `auditor`, as the field knows them.
//!
//! Written once at the cluster's birth by `auth`; afterwards they are documents like any other, and an administrator's
//! changes to them stay.

use types::{
    Metadata, Resource, ResourceName,
    role::{Conditions, OneOrMany, Role, Rule},
};

/// All presets, in the order they are created. Fails only if a name here were malformed, which a test excludes.
pub fn roles() -> Vec<Resource<Role>> {
    [access(), editor(), auditor()].into_iter().flatten().collect()
}

/// Log in to every host, with the logins in the user's traits.
fn access() -> Option<Resource<Role>> {
    let allow = Conditions {
        logins: vec!["{{internal.logins}}".into()],
        node_labels: [("*".to_owned(), OneOrMany(vec!["*".into()]))].into(),
        ..Conditions::default()
    };
    preset("access", "log in to every host with your own logins", Role { allow, ..Role::default() })
}

/// Change the cluster: users, roles, tokens, locks, preferences. Who writes roles can become anybody, so a backup gives him nothing new.
fn editor() -> Option<Resource<Role>> {
    let rules = vec![
        rule(&["user", "role", "token", "lock", "cluster_auth_preference"], &["list", "read", "create", "update", "delete"]),
        rule(&["member", "node"], &["list", "read", "delete"]),
        rule(&["cert_authority", "cluster_name"], &["list", "read"]),
        rule(&["backup"], &["create"]),
        rule(&["control"], &["list", "read", "update"]),
        rule(&["update_directive"], &["list", "read", "create", "update"]),
    ];
    preset(
        "editor",
        "change users, roles, tokens, locks and preferences; make backups; move the cluster to another version",
        Role { allow: Conditions { rules, ..Conditions::default() }, ..Role::default() },
    )
}

/// Read what happened: audit events and recordings.
fn auditor() -> Option<Resource<Role>> {
    let rules = vec![rule(&["event", "recording"], &["list", "read"])];
    preset("auditor", "read audit events and recordings", Role { allow: Conditions { rules, ..Conditions::default() }, ..Role::default() })
}

fn preset(name: &str, description: &str, role: Role) -> Option<Resource<Role>> {
    let mut metadata = Metadata::named(ResourceName::new(name).ok()?);
    metadata.description = Some(description.to_owned());
    Some(Resource::new(metadata, role))
}

fn rule(resources: &[&str], verbs: &[&str]) -> Rule {
    let owned = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    Rule { resources: owned(resources), verbs: owned(verbs), ..Rule::default() }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_presets_are_three() {
        let names: Vec<_> = super::roles().iter().map(|role| role.name().to_string()).collect();
        assert_eq!(names, ["access", "editor", "auditor"]);
    }
}
