//! `lockgate.storage`: where the Auth Service keeps the cluster's state.
//!
//! One section for all drivers; a key that belongs to another driver than the chosen one is a fault, so that nobody believes in a
//! setting that does nothing. What the drivers demand besides is said when they open. Guide: docs/storage.md.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Where the Auth Service keeps the cluster's state.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Storage {
    /// `sqlite`, `postgres`, `etcd`, or `memory` for experiments. Default: sqlite.
    #[serde(rename = "type")]
    pub(crate) kind: Option<StorageType>,
    /// sqlite: the file. Default: `auth/state.db` in the data directory.
    pub(crate) path: Option<PathBuf>,
    /// postgres: `host`, `host:port` or a socket's directory; of several, the first that can be written to is used. Default: localhost.
    pub(crate) hosts: Vec<String>,
    /// postgres: the database. Default: lockgate.
    pub(crate) database: Option<String>,
    /// postgres: the schema of the tables, made if the user may. Default: lockgate.
    pub(crate) schema: Option<String>,
    /// etcd: `host` or `host:port` of the members. Default: localhost.
    pub(crate) peers: Vec<String>,
    /// etcd: what all keys begin with. Default: /lockgate/.
    pub(crate) prefix: Option<String>,
    /// postgres, etcd: who logs in. Default for postgres: lockgate; for etcd: nobody.
    pub(crate) username: Option<String>,
    /// postgres, etcd: the file whose first line is the password.
    pub(crate) password_file: Option<PathBuf>,
    /// postgres, etcd: the authorities of the servers' certificates, PEM; switches TLS on.
    pub(crate) tls_ca_file: Option<PathBuf>,
    /// postgres, etcd: this client's certificate, PEM.
    pub(crate) tls_cert_file: Option<PathBuf>,
    /// postgres, etcd: its key, PEM.
    pub(crate) tls_key_file: Option<PathBuf>,
    /// postgres, etcd: allows other machines without TLS. Default: no.
    pub(crate) insecure: Option<bool>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum StorageType {
    #[default]
    Sqlite,
    Postgres,
    Etcd,
    Memory,
}

impl StorageType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Sqlite => "sqlite",
            Self::Postgres => "postgres",
            Self::Etcd => "etcd",
            Self::Memory => "memory",
        }
    }
}

impl Storage {
    pub(super) fn paths_mut(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let Self { path, password_file, tls_ca_file, tls_cert_file, tls_key_file, .. } = self;
        [path, password_file, tls_ca_file, tls_cert_file, tls_key_file].into_iter().flatten()
    }

    /// Faults of meaning: the key and why.
    pub(super) fn check(&self) -> Vec<(&'static str, String)> {
        use StorageType::{Etcd, Postgres, Sqlite};
        let kind = self.kind.unwrap_or_default();
        let remote: &[StorageType] = &[Postgres, Etcd];
        let keys: [(&str, bool, &[StorageType]); 12] = [
            ("lockgate.storage.path", self.path.is_some(), &[Sqlite]),
            ("lockgate.storage.hosts", !self.hosts.is_empty(), &[Postgres]),
            ("lockgate.storage.database", self.database.is_some(), &[Postgres]),
            ("lockgate.storage.schema", self.schema.is_some(), &[Postgres]),
            ("lockgate.storage.peers", !self.peers.is_empty(), &[Etcd]),
            ("lockgate.storage.prefix", self.prefix.is_some(), &[Etcd]),
            ("lockgate.storage.username", self.username.is_some(), remote),
            ("lockgate.storage.password_file", self.password_file.is_some(), remote),
            ("lockgate.storage.tls_ca_file", self.tls_ca_file.is_some(), remote),
            ("lockgate.storage.tls_cert_file", self.tls_cert_file.is_some(), remote),
            ("lockgate.storage.tls_key_file", self.tls_key_file.is_some(), remote),
            ("lockgate.storage.insecure", self.insecure.is_some(), remote),
        ];
        let foreign = keys.into_iter().filter(|(_, given, of)| *given && !of.contains(&kind));
        let mut faults: Vec<_> = foreign
            .map(|(key, _, of)| {
                let of: Vec<&str> = of.iter().map(|kind| kind.as_str()).collect();
                (key, format!("belongs to the type {}, and the type is {}", of.join(" or "), kind.as_str()))
            })
            .collect();
        if self.tls_cert_file.is_some() != self.tls_key_file.is_some() {
            faults.push(("lockgate.storage.tls_cert_file", "needs tls_key_file, and the other way round".into()));
        }
        if self.tls_ca_file.is_none() && self.tls_cert_file.is_some() {
            faults.push(("lockgate.storage.tls_cert_file", "needs tls_ca_file, by which the servers are known".into()));
        }
        if self.tls_ca_file.is_some() && self.insecure == Some(true) {
            faults.push(("lockgate.storage.insecure", "given together with tls_ca_file, which is for TLS".into()));
        }
        if kind == Etcd && self.username.is_some() != self.password_file.is_some() {
            faults.push(("lockgate.storage.username", "needs password_file, and the other way round".into()));
        }
        faults
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_another_driver_and_halves_of_pairs_are_faults() {
        let check = |yaml: &str, expected: &[&str]| {
            let storage: Storage = serde_saphyr::from_str(yaml).unwrap();
            let keys: Vec<_> = storage.check().into_iter().map(|(key, _)| key.trim_start_matches("lockgate.storage.")).collect();
            assert_eq!(keys, expected, "{yaml}");
        };
        check("{}", &[]);
        check("{path: /x}", &[]);
        check("{type: memory, path: /x}", &["path"]);
        check("{hosts: [db], username: me}", &["hosts", "username"]);
        check("{type: postgres, hosts: [db1, 'db2:5433'], username: me, password_file: /p, tls_ca_file: /ca}", &[]);
        check("{type: postgres, peers: [db], path: /x}", &["path", "peers"]);
        check("{type: etcd, peers: [a, b], tls_ca_file: /ca, tls_cert_file: /c, tls_key_file: /k, prefix: /x/}", &[]);
        check("{type: etcd, username: me, tls_cert_file: /c, tls_key_file: /k}", &["tls_cert_file", "username"]);
        check("{type: etcd, tls_ca_file: /ca, tls_key_file: /k, insecure: true}", &["tls_cert_file", "insecure"]);
    }
}
