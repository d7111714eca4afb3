//! Somebody with a login: a client directory of his own, a password, and `tsh`.

use crate::{cluster::Cluster, run::Run};
use std::{
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

/// The account whose sessions the tests open. As root, one of its own: the start files of whoever runs the tests are not
/// part of the test. Else there is no other that a session could become.
pub fn me() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| account("lgtest"))
}

/// Another account of this machine; the same one when the tests do not run as root.
pub fn somebody() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| account("lgtest2"))
}

/// By this `scripts/with-accounts.sh` knows which accounts to remove when the tests have ended.
const ACCOUNT_MARK: &str = "Lockgate tests";

fn account(name: &str) -> String {
    let uid = nix::unistd::geteuid();
    if !uid.is_root() {
        return nix::unistd::User::from_uid(uid).ok().flatten().expect("an account").name;
    }
    let exists = || nix::unistd::User::from_name(name).ok().flatten().is_some();
    if !exists() {
        // Another test program may be faster.
        let words = ["--create-home", "--shell", "/bin/sh", "--comment", ACCOUNT_MARK, name];
        let made = Run::new("useradd").args(words).go();
        assert!(exists(), "{made}");
    }
    name.to_owned()
}

/// An invited user.
pub struct Person {
    pub name: String,
    pub password: String,
    /// `LOCKGATE_HOME`
    pub home: PathBuf,
    /// The invitation link.
    pub invite: String,
    proxy: String,
    pins: Vec<String>,
    program: PathBuf,
}

impl Person {
    /// Invited, no more.
    #[track_caller]
    pub fn invite(cluster: &Cluster, name: &str, roles: &[&str], logins: &[&str]) -> Person {
        let mut add = cluster.tctl(["users", "add", name, "--format=json"]).arg(format!("--roles={}", roles.join(",")));
        if !logins.is_empty() {
            add = add.arg(format!("--logins={}", logins.join(",")));
        }
        let invite = add.go().json()["invite"].as_str().expect("a link").to_owned();
        let home = cluster.home.join(format!("home-{name}"));
        Person {
            name: name.to_owned(),
            password: format!("correct horse {name}"),
            proxy: cluster.proxy_addr(),
            pins: cluster.pins.clone(),
            program: cluster.program().to_owned(),
            home,
            invite,
        }
    }

    /// Takes the invitation, and is logged in.
    #[track_caller]
    pub fn accept(self) -> Person {
        self.tsh(["login"])
            .args(self.where_to())
            .arg(format!("--invite={}", self.invite))
            .env("LOCKGATE_PASSWORD_FILE", self.password_file(&self.password))
            .go()
            .ok();
        if self.tsh(["status"]).go().status != 0 {
            self.login().go().ok();
        }
        self
    }

    /// Flags that say which cluster.
    pub fn where_to(&self) -> Vec<String> {
        let own = [format!("--proxy={}", self.proxy), format!("--user={}", self.name)];
        own.into_iter().chain(self.pins.iter().map(|pin| format!("--ca-pin={pin}"))).collect()
    }
    /// A file that holds a password.
    pub fn password_file(&self, password: &str) -> PathBuf {
        let path = self.home.with_extension("password");
        fs::write(&path, format!("{password}\n")).expect("write the password");
        path
    }

    /// `tsh …`
    pub fn tsh<S: AsRef<OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Run {
        self.tsh_of(&self.program, words)
    }
    /// The same with another program.
    pub fn tsh_of<S: AsRef<OsStr>>(&self, program: &Path, words: impl IntoIterator<Item = S>) -> Run {
        Run::new(program).arg("tsh").args(words).env("LOCKGATE_HOME", &self.home)
    }
    /// `tsh login` with the password.
    pub fn login(&self) -> Run {
        self.login_with(&self.password)
    }
    pub fn login_with(&self, password: &str) -> Run {
        self.tsh(["login"]).args(self.where_to()).env("LOCKGATE_PASSWORD_FILE", self.password_file(password))
    }
    /// `tsh ssh login@host command`
    pub fn ssh(&self, target: &str, command: &str) -> Run {
        self.tsh(["ssh", target]).arg(command)
    }
    /// From now on by another Proxy, `host:port`.
    pub fn at(mut self, proxy: &str) -> Person {
        proxy.clone_into(&mut self.proxy);
        self
    }
    /// The same person in another place, not logged in there.
    pub fn elsewhere(&self, place: &str) -> Person {
        Person {
            name: self.name.clone(),
            password: self.password.clone(),
            home: self.home.with_file_name(format!("home-{}-{place}", self.name)),
            invite: self.invite.clone(),
            proxy: self.proxy.clone(),
            pins: self.pins.clone(),
            program: self.program.clone(),
        }
    }
}
