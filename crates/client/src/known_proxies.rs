//! The Proxies that a host knew when it was last well, in `<data_dir>/host/proxies.json`.
//!
//! A host that is refused for its version hears nothing any more, and may have been given no Proxy: one that joined by the Auth Service
//! directly. For rescue it asks those that the Auth Service named with its heartbeats ([`crate::presence`]). What stands here is
//! where to dial and no more: whoever answers must show a Proxy's certificate of the cluster. Writer: `cli`. Readers: `agent::rescue`
//! and `lockgate rescue`.

use crate::profile::private_dir;
use net::tls::write_private;
use serde::{Deserialize, Serialize};
use std::{
    io,
    path::{Path, PathBuf},
};
use types::Extra;

/// More than a cluster has.
const MOST: usize = 64;
/// A longer name is none.
const LONGEST: usize = 300;

#[derive(Default, Serialize, Deserialize)]
struct File {
    #[serde(default)]
    proxies: Vec<String>,
    #[serde(flatten)]
    extra: Extra,
}

fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("host/proxies.json")
}

fn read(data_dir: &Path) -> File {
    std::fs::read(path(data_dir)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default()
}

/// Those that were kept; none when there is no file, or none that can be read.
pub fn load(data_dir: &Path) -> Vec<String> {
    read(data_dir).proxies.into_iter().filter(|addr| addr.len() <= LONGEST).take(MOST).collect()
}

/// Keeps them in place of those before. That nobody is told of is no news: the last ones stay.
pub fn save(data_dir: &Path, proxies: &[String]) -> io::Result<()> {
    let was = read(data_dir);
    if proxies.is_empty() || was.proxies == proxies {
        return Ok(());
    }
    let path = path(data_dir);
    if let Some(parent) = path.parent() {
        private_dir(parent)?;
    }
    let text = serde_json::to_vec(&File { proxies: proxies.to_vec(), extra: was.extra })?;
    write_private(&path, &text).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_proxies_are_kept_and_nothing_does_not_replace_them() {
        let dir = tempfile::tempdir().unwrap();
        let check = |want: &[&str]| assert_eq!(load(dir.path()), want);
        check(&[]);
        save(dir.path(), &["one:3080".into(), "two:3080".into()]).unwrap();
        save(dir.path(), &[]).unwrap();
        check(&["one:3080", "two:3080"]);
        std::fs::write(path(dir.path()), r#"{"proxies":["one:3080"],"later":{"a":1}}"#).unwrap();
        save(dir.path(), &["three:3080".into()]).unwrap();
        check(&["three:3080"]);
        assert!(std::fs::read_to_string(path(dir.path())).unwrap().contains(r#""later":{"a":1}"#));
        std::fs::write(path(dir.path()), b"{").unwrap();
        check(&[]);
        save(dir.path(), &["one:3080".into()]).unwrap();
        check(&["one:3080"]);
    }
}
