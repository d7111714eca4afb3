//! The package as dpkg sees it: read, installed into a folder of its own, upgraded, refused, removed.

use super::*;
use std::process::Command;

const TIME: u64 = 1_763_856_000;

fn folder() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging/debian")
}

fn package(version: &str) -> Vec<u8> {
    let mut data = Tree::default();
    data.program("usr/bin/lockgate", format!("#!/bin/sh\necho {version}\n"));
    data.link("usr/bin/tsh", "lockgate");
    data.file("etc/default/lockgate", "# nothing\n");
    data.file("usr/share/doc/lockgate/copyright", "words\n");
    deb(&About { version, arch: "amd64", glibc: "2.34", time: TIME }, &data, &folder()).unwrap()
}

/// A machine of its own: dpkg's books and files in one folder.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Machine {
        let dir = tempfile::tempdir().unwrap();
        let books = dir.path().join("var/lib/dpkg");
        for part in ["info", "updates", "triggers"] {
            fs::create_dir_all(books.join(part)).unwrap();
        }
        fs::write(books.join("status"), "").unwrap();
        Machine(dir)
    }

    fn dpkg(&self, words: &[&str]) -> (bool, String) {
        let root = format!("--root={}", self.0.path().display());
        let told = Command::new("dpkg")
            .args(["--force-not-root", "--force-script-chrootless", "--force-depends", "--force-architecture", "--log=/dev/null", &root])
            .args(words)
            .env("LC_ALL", "C")
            .output()
            .unwrap();
        (told.status.success(), format!("{}{}", String::from_utf8_lossy(&told.stdout), String::from_utf8_lossy(&told.stderr)))
    }

    fn install(&self, version: &str) -> (bool, String) {
        let file = self.0.path().join(format!("{version}.deb"));
        fs::write(&file, package(version)).unwrap();
        self.dpkg(&["--install", file.to_str().unwrap()])
    }

    fn has(&self, path: &str) -> bool {
        self.0.path().join(path).exists()
    }

    /// What the program there says.
    fn says(&self) -> String {
        let told = Command::new(self.0.path().join("usr/bin/tsh")).output().unwrap();
        String::from_utf8(told.stdout).unwrap().trim().to_owned()
    }
}

#[test]
fn dpkg_reads_the_package_and_the_bytes_are_the_same_each_time() {
    let file = tempfile::NamedTempFile::with_suffix(".deb").unwrap();
    fs::write(file.path(), package("1.2.3-rc.1")).unwrap();
    assert!(package("1.2.3") == package("1.2.3"));
    let run = |words: &[&str]| {
        let told = Command::new("dpkg-deb").args(words).arg(file.path()).env("LC_ALL", "C").env("TZ", "UTC").output().unwrap();
        assert!(told.status.success() && told.stderr.is_empty(), "{words:?}: {}", String::from_utf8_lossy(&told.stderr));
        String::from_utf8(told.stdout).unwrap()
    };
    let about = run(&["--field"]);
    for line in ["Package: lockgate", "Version: 1.2.3~rc.1", "Architecture: amd64", "Depends: libc6 (>= 2.34), libgcc-s1 (>= 4.2)"] {
        assert!(about.lines().any(|one| one == line), "{line}: {about}");
    }
    assert!(!about.contains('@') || about.matches('@').count() == 1, "marks are filled in: {about}");
    let listed = run(&["--contents"]);
    assert!(listed.lines().all(|line| line.contains("root/root") && line.contains("2025-11-23 00:00")), "{listed}");
    assert!(listed.contains("./usr/bin/tsh -> lockgate"), "{listed}");
    assert_eq!(run(&["--info"]).matches("#!/bin/sh").count(), 4);
    assert!(run(&["--info"]).contains("conffiles"));
}

#[test]
fn it_installs_upgrades_and_goes_and_the_state_stays() {
    let machine = Machine::new();
    let (done, told) = machine.install("1.0.0");
    assert!(done, "{told}");
    assert_eq!(machine.says(), "1.0.0");
    fs::create_dir_all(machine.0.path().join("var/lib/lockgate")).unwrap();
    fs::write(machine.0.path().join("etc/default/lockgate"), "LOCKGATE_LOG=debug\n").unwrap();
    let (done, told) = machine.install("2.1.0");
    assert!(done, "{told}");
    assert_eq!(machine.says(), "2.1.0");
    assert!(fs::read_to_string(machine.0.path().join("etc/default/lockgate")).unwrap().contains("debug"), "what the operator wrote stays");
    let (done, told) = machine.dpkg(&["--purge", "lockgate"]);
    assert!(done, "{told}");
    assert!(!machine.has("usr/bin/lockgate") && !machine.has("etc/default/lockgate"));
    assert!(machine.has("var/lib/lockgate") && told.contains("was kept"), "{told}");
}

#[test]
fn g5_a_jump_over_a_major_is_refused_before_a_file_is_changed() {
    let machine = Machine::new();
    machine.install("1.4.0");
    // A machine that never ran anything has nothing to lose.
    let other = Machine::new();
    other.install("1.4.0");
    fs::create_dir_all(machine.0.path().join("var/lib/lockgate")).unwrap();
    let (done, told) = machine.install("3.0.0");
    assert!(!done && told.contains("LG-VERSION-005") && told.contains("latest 2 first"), "{told}");
    assert_eq!(machine.says(), "1.4.0");
    assert!(machine.dpkg(&["--audit"]).1.is_empty(), "dpkg's books are in order: {}", machine.dpkg(&["--audit"]).1);
    assert!(other.install("3.0.0").0);
    for version in ["2.0.0", "3.0.0", "3.1.0"] {
        let (done, told) = machine.install(version);
        assert!(done, "{version}: {told}");
    }
}

#[test]
fn the_newest_glibc_that_a_program_names_is_found() {
    let check = |bytes: &[u8], expected: Option<&str>| assert_eq!(glibc(bytes).as_deref(), expected);
    check(b"x\0GLIBC_2.2.5\0\0GLIBC_2.34\0GLIBC_2.17\0", Some("2.34"));
    check(b"GLIBC_2.99\0 is text", None);
    check(b"", None);
    assert_eq!(debian_version("1.0.0-rc.1"), "1.0.0~rc.1");
}
