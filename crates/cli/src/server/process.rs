//! What a process needs of its host: private directories, its id for life, the file with its process id, systemd's ear.

use std::{
    io::{Seek as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    os::{
        fd::OwnedFd,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};
use types::{Code, HostId, Public};

/// Makes a directory that only its owner may enter; an existing one is narrowed.
pub(super) fn make_private(directory: &Path) -> Result<(), Public> {
    let failed = |error: std::io::Error| {
        let public = Public::new(Code::Config, format!("{}: {error}", directory.display()));
        if error.kind() == std::io::ErrorKind::PermissionDenied {
            public.hint("run as root, or choose another place with --data-dir")
        } else {
            public
        }
    };
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed)?;
    let mode = std::fs::metadata(directory).map_err(failed)?.permissions().mode();
    if mode & 0o077 != 0 {
        std::fs::set_permissions(directory, std::fs::Permissions::from_mode(mode & 0o700)).map_err(failed)?;
    }
    Ok(())
}

/// The right to use a data directory: one process at a time, or one and its successor. Given back by the kernel, however they end.
pub(super) struct DataLock {
    file: std::fs::File,
}

impl DataLock {
    pub(super) fn take(data_dir: &Path) -> Result<Self, Public> {
        let path = data_dir.join("lock");
        let failed = |error: std::io::Error| Public::new(Code::Config, format!("{}: {error}", path.display()));
        let open = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(&path);
        let file = open.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => {
                let holder = std::fs::read_to_string(&path).unwrap_or_default();
                let holder = holder.trim().parse::<u32>().map(|pid| format!(" (process {pid})")).unwrap_or_default();
                let public = Public::new(Code::Config, format!("another lockgate{holder} runs with it"));
                return Err(public.hint("stop that one first, or give this one a --data-dir of its own"));
            }
            Err(std::fs::TryLockError::Error(error)) => return Err(failed(error)),
        }
        Ok(Self { file })
    }

    /// The lock of the process before, which both hold from now on.
    pub(super) fn inherited(file: std::fs::File) -> Self {
        Self { file }
    }
    /// For the next process.
    pub(super) fn descriptor(&self) -> std::io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }
    /// Writes down who leads: only for the message above.
    pub(super) fn note(&self) {
        let mut file = &self.file;
        let told =
            file.set_len(0).and_then(|()| file.rewind()).and_then(|()| file.write_all(format!("{}\n", std::process::id()).as_bytes()));
        if let Err(error) = told {
            tracing::debug!(%error, "the lock does not say who holds it");
        }
    }
}

/// This host's id: made at the first start, kept in `host_uuid`.
pub(super) fn host_id(data_dir: &Path) -> Result<HostId, Public> {
    let path = data_dir.join("host_uuid");
    let failed = |error: &dyn std::fmt::Display| Public::new(Code::Config, format!("{}: {error}", path.display()));
    match std::fs::read_to_string(&path) {
        Ok(text) => text.trim().parse().map_err(|error| failed(&error)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let id = HostId::from_uuid(uuid::Uuid::new_v4());
            let mut file =
                std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(|error| failed(&error))?;
            file.write_all(format!("{id}\n").as_bytes()).and_then(|()| file.sync_all()).map_err(|error| failed(&error))?;
            Ok(id)
        }
        Err(error) => Err(failed(&error)),
    }
}

/// The process id in a file, as long as the process lives.
pub(super) struct PidFile(PathBuf);

impl PidFile {
    pub(super) fn write(path: PathBuf) -> Result<Self, Public> {
        // Whoever reads it sees the one process or the other.
        let fresh = path.with_extension("new");
        std::fs::write(&fresh, format!("{}\n", std::process::id()))
            .and_then(|()| std::fs::rename(&fresh, &path))
            .map_err(|error| Public::new(Code::Config, format!("the pid file {}: {error}", path.display())))?;
        Ok(Self(path))
    }

    /// Leaves the file to the process that leads now, which may be writing it at this moment.
    pub(super) fn leave(self) {
        std::mem::forget(self);
    }
}
impl Drop for PidFile {
    fn drop(&mut self) {
        // A successor may have taken the file over.
        if std::fs::read_to_string(&self.0).is_ok_and(|text| text.trim() == std::process::id().to_string()) {
            let _already_gone = std::fs::remove_file(&self.0);
        }
    }
}

/// Tells systemd that users can be served; nothing happens elsewhere.
pub(super) fn tell_systemd(states: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}

/// An address that reaches a listener on this host: `0.0.0.0` listens everywhere, but cannot be dialled.
pub(super) fn loopback(addr: SocketAddr) -> SocketAddr {
    let ip = match addr.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    (ip, addr.port()).into()
}

/// `proxy.example.com` of `proxy.example.com:3080`.
pub(super) fn host_part(address: &str) -> Option<String> {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    (!host.is_empty()).then(|| host.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_keeps_its_id_for_life() {
        let dir = tempfile::tempdir().unwrap();
        let first = host_id(dir.path()).unwrap();
        assert_eq!(host_id(dir.path()).unwrap(), first);
        let mode = std::fs::metadata(dir.path().join("host_uuid")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn the_data_directory_is_private_also_when_it_was_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        make_private(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        make_private(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    }

    #[test]
    fn one_process_at_a_time_uses_a_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let held = DataLock::take(dir.path()).unwrap();
        held.note();
        let error = DataLock::take(dir.path()).err().unwrap();
        assert!(error.message.contains(&format!("process {}", std::process::id())), "{error}");
        assert!(error.hint.is_some());
        let handed_on = DataLock::inherited(held.descriptor().unwrap().into());
        drop(held);
        assert!(DataLock::take(dir.path()).is_err(), "its successor holds it too");
        handed_on.note();
        drop(handed_on);
        assert!(DataLock::take(dir.path()).is_ok());
    }

    #[test]
    fn a_listener_on_every_address_is_dialled_on_loopback() {
        assert_eq!(loopback("0.0.0.0:3080".parse().unwrap()).to_string(), "127.0.0.1:3080");
        assert_eq!(loopback("[::]:3080".parse().unwrap()).to_string(), "[::1]:3080");
        assert_eq!(host_part("[::1]:3080").as_deref(), Some("::1"));
    }
}
