//! `auth_service.audit`: where audit events are kept and for how long. Guide: docs/audit.md.
//!
//! Files on the Auth Service's own disk are always there; `type: postgres` adds the database in which the events of all Auth
//! Services come together. Keys that would do nothing are faults, as in `lockgate.storage`.

use super::{Storage, storage::StorageType};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::{path::PathBuf, time::Duration};
use types::Ttl;

/// Where audit events are kept and for how long.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Audit {
    /// `file`: on this Auth Service's disk. `postgres`: there first, and from there into a database that all of them share. Default: file.
    #[serde(rename = "type")]
    pub(crate) kind: Option<AuditType>,
    /// How long events are kept, e.g. `365d`; whole days. Default: for ever.
    pub(crate) retention: Option<String>,
    /// postgres: how long the files keep what has arrived in the database. Default: as long as the database.
    pub(crate) local_retention: Option<String>,
    /// postgres: how many events may wait for the database before nothing more is taken, logins included. Default: 1000000.
    pub(crate) max_backlog: Option<u64>,
    /// postgres: `host`, `host:port` or a socket's directory; of several, the first that can be written to is used. Default: localhost; with `lockgate.storage` on PostgreSQL, that database and login.
    pub(crate) hosts: Vec<String>,
    /// postgres: the database. Default: lockgate.
    pub(crate) database: Option<String>,
    /// postgres: the schema of the tables, made if the user may. Default: lockgate_audit.
    pub(crate) schema: Option<String>,
    /// postgres: who logs in. Default: lockgate.
    pub(crate) username: Option<String>,
    /// postgres: the file whose first line is the password.
    pub(crate) password_file: Option<PathBuf>,
    /// postgres: the authorities of the servers' certificates, PEM; switches TLS on.
    pub(crate) tls_ca_file: Option<PathBuf>,
    /// postgres: this client's certificate, PEM.
    pub(crate) tls_cert_file: Option<PathBuf>,
    /// postgres: its key, PEM.
    pub(crate) tls_key_file: Option<PathBuf>,
    /// postgres: allows other machines without TLS. Default: no.
    pub(crate) insecure: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum AuditType {
    #[default]
    File,
    Postgres,
}

const DAY: Duration = Duration::from_secs(86_400);
const SCHEMA: &str = "lockgate_audit";

impl Audit {
    pub(super) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let Self { password_file, tls_ca_file, tls_cert_file, tls_key_file, .. } = self;
        [password_file, tls_ca_file, tls_cert_file, tls_key_file].into_iter().flatten()
    }

    /// The connection's keys, as `lockgate.storage` has them.
    fn connection(&self) -> Storage {
        Storage {
            kind: Some(StorageType::Postgres),
            hosts: self.hosts.clone(),
            database: self.database.clone(),
            schema: Some(self.schema.clone().unwrap_or_else(|| SCHEMA.into())),
            username: self.username.clone(),
            password_file: self.password_file.clone(),
            tls_ca_file: self.tls_ca_file.clone(),
            tls_cert_file: self.tls_cert_file.clone(),
            tls_key_file: self.tls_key_file.clone(),
            insecure: self.insecure,
            ..Storage::default()
        }
    }

    /// Whether anything is said of a connection, its schema apart.
    fn says_where(&self) -> bool {
        self.connection() != Self { schema: self.schema.clone(), ..Self::default() }.connection()
    }

    /// Faults of meaning: the key and why.
    pub(super) fn check(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        let lengths = [("auth_service.audit.retention", &self.retention), ("auth_service.audit.local_retention", &self.local_retention)];
        for (key, length) in lengths {
            match length.as_deref().map(str::parse::<Ttl>) {
                Some(Err(error)) => faults.push((key, error.to_string())),
                Some(Ok(length)) if length.0 < DAY => faults.push((key, "is shorter than a day".into())),
                Some(Ok(_)) | None => {}
            }
        }
        if self.max_backlog == Some(0) {
            faults.push(("auth_service.audit.max_backlog", "takes no event at all".into()));
        }
        if self.kind.unwrap_or_default() == AuditType::File {
            let given = [
                ("auth_service.audit.local_retention", self.local_retention.is_some()),
                ("auth_service.audit.max_backlog", self.max_backlog.is_some()),
                ("auth_service.audit.schema", self.schema.is_some()),
                ("auth_service.audit.hosts", self.says_where()),
            ];
            let foreign = given.into_iter().filter(|(_, given)| *given).map(|(key, _)| key);
            let told = |key: &str| if key.ends_with("hosts") { "or another key of a connection belongs" } else { "belongs" };
            faults.extend(foreign.map(|key| (key, format!("{} to the type postgres, and the type is file", told(key)))));
        } else {
            let of_storage = self.connection().check().into_iter();
            let key = |key: &'static str| match key {
                "lockgate.storage.insecure" => "auth_service.audit.insecure",
                _ => "auth_service.audit.tls_cert_file",
            };
            faults.extend(of_storage.map(|(at, why)| (key(at), why)));
        }
        faults
    }

    /// What is to be done; `postgres` makes the options of a connection. Where nothing is said of one, it is that of the store.
    #[cfg(feature = "server")]
    pub(crate) fn settings(&self, storage: &Storage, postgres: impl Fn(&Storage) -> store::postgres::Options) -> auth::AuditSettings {
        let length = |text: &Option<String>| text.as_deref().and_then(|text| text.parse::<Ttl>().ok()).map(|length| length.0);
        let retention = length(&self.retention);
        if self.kind.unwrap_or_default() == AuditType::File {
            return auth::AuditSettings { retention, shared: None };
        }
        let own = self.connection();
        let beside = storage.kind == Some(StorageType::Postgres) && !self.says_where();
        let connection = if beside { Storage { schema: own.schema, ..storage.clone() } } else { own };
        let mut shared = auth::SharedAudit::new(postgres(&connection));
        shared.local_retention = length(&self.local_retention);
        shared.max_backlog = self.max_backlog.unwrap_or(shared.max_backlog);
        auth::AuditSettings { retention, shared: Some(shared) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> Audit {
        serde_saphyr::from_str(yaml).unwrap()
    }

    #[test]
    fn keys_that_would_do_nothing_and_lengths_that_are_none_are_faults() {
        let check = |yaml: &str, expected: &[&str]| {
            let keys: Vec<_> = read(yaml).check().into_iter().map(|(key, _)| key.trim_start_matches("auth_service.audit.")).collect();
            assert_eq!(keys, expected, "{yaml}");
        };
        check("{}", &[]);
        check("{retention: 365d}", &[]);
        check("{type: postgres}", &[]);
        check("{type: postgres, hosts: [db], tls_ca_file: /ca, retention: 365d, local_retention: 30d, max_backlog: 5}", &[]);
        check("{retention: a year}", &["retention"]);
        check("{retention: 3h, max_backlog: 0}", &["retention", "max_backlog", "max_backlog"]);
        check("{local_retention: 30d, schema: x, username: me}", &["local_retention", "schema", "hosts"]);
        check("{type: postgres, tls_cert_file: /c}", &["tls_cert_file", "tls_cert_file"]);
        check("{type: postgres, tls_ca_file: /ca, insecure: true}", &["insecure"]);
    }

    #[cfg(feature = "server")]
    #[test]
    fn where_nothing_is_said_of_a_connection_it_is_the_stores() {
        let check = |audit: &str, storage: &str, hosts: &str, schema: &str| {
            let storage: Storage = serde_saphyr::from_str(storage).unwrap();
            let options = |storage: &Storage| {
                let mut options = store::postgres::Options::new(storage.hosts.clone(), "lockgate", "lockgate");
                options.schema.clone_from(storage.schema.as_ref().unwrap());
                options
            };
            let options = read(audit).settings(&storage, options).shared.unwrap().options;
            assert_eq!((options.hosts.join(","), options.schema.as_str()), (hosts.to_owned(), schema), "{audit} {storage:?}");
        };
        check("{type: postgres}", "{type: postgres, hosts: [db1]}", "db1", SCHEMA);
        check("{type: postgres, schema: x}", "{type: postgres, hosts: [db1], schema: y}", "db1", "x");
        check("{type: postgres, hosts: [db2]}", "{type: postgres, hosts: [db1]}", "db2", SCHEMA);
        check("{type: postgres, username: me}", "{type: postgres, hosts: [db1]}", "", SCHEMA);
        check("{type: postgres}", "{type: etcd, peers: [e1]}", "", SCHEMA);
    }
}
