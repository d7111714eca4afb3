//! The archive and the package around a stand-in for the program: the same bytes each time, and what the ordinary tools make of them.

use super::*;
use crate::dist::program::Program;
use crate::run::Root;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

/// Answers as the program does, and names a version of glibc as a program does.
const STAND_IN: &str = r#"#!/bin/sh
case "$1 $2" in
"version --format=json") echo '{"version":"1.2.3","gitref":"0123456789ab","content":"sha256:00","apis":{"auth":[1,1]},"cluster_version":{}}' ;;
man*) printf '.TH lockgate 1\n' >"$2/lockgate.1"; printf '.TH tsh 1\n' >"$2/tsh.1" ;;
"install systemd") echo "[Service]"; echo "ExecStart=${3#*=} start" ;;
completion*) echo "complete $3 for $2" ;;
configure*) echo 'version: v1' ;;
esac
exit 0
"#;

pub(super) fn stand_in(dir: &Path) -> Program {
    let path = dir.join("lockgate");
    let mut bytes = STAND_IN.as_bytes().to_vec();
    bytes.extend(b"\0GLIBC_2.17\0GLIBC_2.34\0GLIBC_2.2.5\0");
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    Program::load(&path).unwrap()
}

fn made(dir: &Path) -> Artifacts {
    let root = Root::find().unwrap();
    artifacts(root.dir(), &Origin::example(), &stand_in(dir), "texts of licences\n", "{}\n".into()).unwrap()
}

fn run(dir: &Path, program: &str, words: &[&str]) -> String {
    let told = Command::new(program).args(words).current_dir(dir).env("LC_ALL", "C").env("TZ", "UTC").output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr));
    assert!(told.status.success(), "{program} {words:?}: {out}{err}");
    format!("{out}{err}")
}

#[test]
fn the_same_program_is_packed_into_the_same_bytes_from_any_folder() {
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::Builder::new().prefix("somewhere-else").tempdir().unwrap());
    let (one, other) = (made(here.path()), made(there.path()));
    assert_eq!(
        one.keys().map(String::as_str).collect::<Vec<_>>(),
        ["Containerfile", "lockgate-1.2.3-linux-amd64.tar.gz", "lockgate_1.2.3_amd64.deb", "sbom.cdx.json"]
    );
    assert!(one == other);
    let mut later = Origin::example();
    later.time += 1;
    let root = Root::find().unwrap();
    let third = artifacts(root.dir(), &later, &stand_in(here.path()), "texts of licences\n", "{}\n".into()).unwrap();
    assert!(one["lockgate_1.2.3_amd64.deb"] != third["lockgate_1.2.3_amd64.deb"], "the commit's time is in it");
}

#[test]
fn the_archive_unpacks_runs_and_installs() {
    let dir = tempfile::tempdir().unwrap();
    let name = "lockgate-1.2.3-linux-amd64.tar.gz";
    fs::write(dir.path().join(name), &made(dir.path())[name]).unwrap();
    let listed = run(dir.path(), "tar", &["-tvzf", name]);
    assert!(listed.lines().all(|line| line.contains("root/root") && line.contains("2025-11-23 00:00")), "{listed}");
    run(dir.path(), "tar", &["-xzf", name]);
    let whole = dir.path().join("lockgate-1.2.3");
    for file in ["LICENSE", "THIRD-PARTY.txt", "README.md", "CHANGELOG.md", "share/man/man1/tsh.1", "share/doc/lockgate/docs/install.md"] {
        assert!(whole.join(file).is_file(), "{file}");
    }
    assert!(run(&whole, "bin/tctl", &["version", "--format=json"]).contains("1.2.3"));
    assert!(
        fs::read_to_string(whole.join("lib/systemd/system/lockgate.service")).unwrap().contains("ExecStart=/usr/local/bin/lockgate start")
    );
    let prefix = dir.path().join("prefix");
    run(&whole, "./install.sh", &["--prefix", prefix.to_str().unwrap()]);
    assert!(run(&prefix, "bin/tsh", &["version", "--format=json"]).contains("1.2.3"));
    assert!(prefix.join("share/man/man1/lockgate.1").is_file() && prefix.join("share/bash-completion/completions/tsh").is_file());
}

#[test]
fn the_container_file_fetches_nothing_but_its_base_and_is_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let text = String::from_utf8(made(dir.path()).remove("Containerfile").unwrap()).unwrap();
    assert!(!text.contains('@'), "a mark was not filled in: {text}");
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
    assert!(lines.iter().filter(|line| line.starts_with("FROM")).count() == 1);
    for word in ["apt", "curl", "wget", "http"] {
        assert!(!lines.iter().any(|line| line.contains(word)), "{word}: {text}");
    }
    for line in ["USER 65532:65532", "STOPSIGNAL SIGQUIT", "ADD lockgate-1.2.3-linux-amd64.tar.gz /opt/"] {
        assert!(lines.contains(&line), "{line}: {text}");
    }
    assert!(text.contains("HEALTHCHECK") && text.contains("\"status\", \"--check\""));
}
