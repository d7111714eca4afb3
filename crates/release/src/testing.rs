//! A vendor for tests: three signers of whom two are needed, a key for freshness, and releases as `cargo xtask dist` writes them.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "for tests")]

use crate::{
    Folder,
    keys::Signer,
    repository::{self, Done, Lives, Vouchers},
};
use serde_json::{Value, json};
use sha2::Digest as _;
use std::{fs, path::PathBuf};
use types::{Sha256, Time, Version};

pub fn sha256(bytes: &[u8]) -> Sha256 {
    Sha256::new(sha2::Sha256::digest(bytes).into())
}

/// An archive as releases are packed: folders, files (those in `bin/` are programs) and links (text that begins with `->`).
pub fn archive(top: &str, entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    entry(&mut tar, &format!("{top}/"), b'5', "", &[], 0o755);
    for (path, bytes) in entries {
        let path = format!("{top}/{path}");
        match bytes.strip_prefix(b"->") {
            Some(target) => entry(&mut tar, &path, b'2', std::str::from_utf8(target).unwrap(), &[], 0o777),
            None => entry(&mut tar, &path, b'0', "", bytes, if path.contains("/bin/") { 0o755 } else { 0o644 }),
        }
    }
    tar.resize(tar.len() + 1024, 0);
    gzip(&tar)
}

/// Compressed as releases are.
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut out = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 2, 255];
    out.extend(miniz_oxide::deflate::compress_to_vec(bytes, 1));
    // Sum and length, which nobody here looks at.
    out.extend([0; 8]);
    out
}

/// One entry of a tar archive, whatever it says.
pub fn entry(out: &mut Vec<u8>, path: &str, kind: u8, target: &str, bytes: &[u8], mode: u32) {
    let mut header = vec![0u8; 512];
    let mut put = |at: usize, text: &[u8]| header.splice(at..at + text.len(), text.iter().copied()).for_each(drop);
    put(0, path.as_bytes());
    put(100, format!("{mode:07o}\0").as_bytes());
    put(124, format!("{:011o}\0", bytes.len()).as_bytes());
    put(156, &[kind]);
    put(157, target.as_bytes());
    put(257, b"ustar\x0000");
    put(148, b"        ");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header.splice(148..156, format!("{sum:06o}\0 ").bytes()).for_each(drop);
    out.extend(header);
    out.extend(bytes);
    out.resize(out.len().next_multiple_of(512), 0);
}

/// Who publishes.
pub struct Vendor {
    pub folder: Folder,
    pub signers: Vec<Signer>,
    pub online: Signer,
    /// What the manifests of its releases say beside the usual.
    pub manifest: Box<dyn Fn(&mut Value) + Send + Sync>,
}

/// The system that this was built for, as releases name it.
pub fn system() -> (&'static str, &'static str) {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    (std::env::consts::OS, arch)
}

impl Vendor {
    /// Two of three signers are needed. The root is signed and in force.
    pub async fn new(dir: PathBuf, keys: &std::path::Path, now: Time) -> Self {
        let key = |name: &str| Signer::generate(&keys.join(name)).unwrap().0;
        let vendor = Self {
            folder: Folder(dir),
            signers: vec![key("a.key"), key("b.key"), key("c.key")],
            online: key("online.key"),
            manifest: Box::new(|_| {}),
        };
        fs::create_dir_all(&vendor.folder.0).unwrap();
        vendor.next_root(now);
        vendor.sign(now).await;
        vendor
    }

    pub fn vouchers(&self) -> Vouchers {
        let signers = self.signers.iter().map(Signer::verifier).collect();
        Vouchers { signers, threshold: 2, online: vec![self.online.verifier()] }
    }

    pub fn next_root(&self, now: Time) {
        repository::init(&self.folder, &self.vouchers(), &Lives::default(), now).unwrap();
    }

    /// The first root, which hosts are given.
    pub fn root(&self) -> PathBuf {
        self.folder.0.join("metadata/1.root.json")
    }

    /// Puts a release into the folder; it is not signed yet.
    pub fn release(&self, version: &str, program: &[u8]) {
        let (os, arch) = system();
        self.release_for(version, program, os, arch);
    }

    pub fn release_for(&self, version: &str, program: &[u8], os: &str, arch: &str) {
        let dir = self.folder.0.join(version);
        fs::create_dir_all(&dir).unwrap();
        let links: [(&str, &[u8]); 4] =
            [("bin/lockgate", program), ("bin/tctl", b"->lockgate"), ("bin/tsh", b"->lockgate"), ("README.md", b"text")];
        let bytes = archive(&format!("lockgate-{version}"), &links);
        let name = format!("lockgate-{version}-{os}-{arch}.tar.gz");
        fs::write(dir.join(&name), &bytes).unwrap();
        let version: Version = version.parse().unwrap();
        let mut manifest = json!({
            "format": 1, "product": "lockgate", "version": version,
            "artifacts": [{"file": name, "kind": "archive", "sha256": sha256(&bytes), "size": bytes.len(), "os": os, "arch": arch}],
            "program": {"sha256": sha256(program), "size": program.len()},
            "minimum_source": "0.0.0", "denied_sources": {}, "security": false,
        });
        (self.manifest)(&mut manifest);
        fs::write(dir.join("manifest.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
        fs::write(dir.join("SHA256SUMS"), format!("{}  {name}\n", sha256(&bytes))).unwrap();
    }

    /// The digest of a release's archive.
    pub fn digest(&self, version: &str) -> Sha256 {
        let (os, arch) = system();
        crate::digest_of(&self.folder.0.join(version).join(format!("lockgate-{version}-{os}-{arch}.tar.gz"))).unwrap()
    }

    /// Signs with two signers and the key for freshness, as of that time.
    pub async fn sign(&self, now: Time) -> Done {
        let loaded = [&self.signers[0], &self.signers[1], &self.online];
        self.sign_with(&loaded, now).await
    }

    pub async fn sign_with(&self, keys: &[&Signer], now: Time) -> Done {
        repository::sign(&self.folder, keys, &Lives::default(), now).await.unwrap()
    }
}
