//! A whole cluster out of real processes: one process for everything, or Auth, Proxy and SSH Service each in its own.
//!
//! Every cluster has its own directory and ports, so any number of them run side by side. A cluster that is dropped kills its
//! processes; when the test failed it shows the ends of their logs, and when it passed an ERROR line in a log fails it after all,
//! unless [`Cluster::allow`]ed. [`shared`] is one cluster per test program, for the many tests that change nothing.

use crate::{
    binary,
    person::Person,
    process::{Running, errors_in},
    run::{Ran, Run},
    wait::eventually,
};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fmt::Write as _,
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    ops::Deref,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    time::Duration,
};
use tempfile::TempDir;

/// What a service may take to become ready. Generous: many clusters may start at once on two cores.
pub const READY: Duration = Duration::from_secs(60);

/// How a cluster is to be.
#[derive(Clone, Debug)]
pub struct Setup {
    pub name: String,
    /// Auth, Proxy and SSH Service each in its own process.
    pub split: bool,
    pub with_node: bool,
    pub otp: bool,
    pub allow_prerelease: bool,
    pub labels: Vec<(String, String)>,
    /// `lockgate.storage` of the Auth Services, in YAML; a store of its own when absent.
    pub storage: Option<String>,
    /// A second Auth Service on the same store. Only in a split cluster.
    pub second_auth: bool,
    /// Each Auth Service keeps recordings in a directory of its own, in place of one that they share.
    pub own_recordings: bool,
    /// Programs for the three services; a cluster in one process uses the first.
    pub auth: PathBuf,
    pub proxy: PathBuf,
    pub node: PathBuf,
    /// The program of users and administrators, when it is not that of the Auth Service.
    pub clients: Option<PathBuf>,
    /// Set for every service.
    pub environment: Vec<(String, String)>,
    /// More of the section `lockgate` of every service, in YAML.
    pub general: String,
}

impl Default for Setup {
    fn default() -> Setup {
        let program = binary::current().to_owned();
        Setup {
            name: "lg".into(),
            split: false,
            with_node: true,
            otp: false,
            allow_prerelease: false,
            labels: vec![("env".into(), "test".into())],
            storage: None,
            second_auth: false,
            own_recordings: false,
            auth: program.clone(),
            proxy: program.clone(),
            node: program,
            clients: None,
            environment: Vec::new(),
            general: String::new(),
        }
    }
}

/// A port that nobody listens on. Outside the range from which outgoing connections are given theirs, so that none of those
/// takes it before the service does.
pub fn free_port() -> u16 {
    static TAKEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut taken = lock(&TAKEN);
    loop {
        let port = rand::random_range(10_000..32_000);
        if !taken.contains(&port) && TcpListener::bind(("127.0.0.1", port)).is_ok() {
            taken.insert(port);
            return port;
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One process of a cluster, running or not.
pub struct Member {
    pub name: String,
    pub data_dir: PathBuf,
    pub config: PathBuf,
    pub diag_port: u16,
    /// Where its SSH Service listens, if it does.
    pub ssh_port: u16,
    program: Mutex<PathBuf>,
    args: Mutex<Vec<String>>,
    environment: Vec<(String, String)>,
    log: PathBuf,
    running: Mutex<Option<Running>>,
}

impl Member {
    /// A member whose configuration is `yaml`, with `DIAG` and `DATA` filled in. Not started yet.
    fn new(home: &Path, name: &str, program: &Path, ssh_port: u16, setup: &Setup, yaml: &str) -> Member {
        let (data_dir, diag_port) = (home.join(name), free_port());
        let config = home.join(format!("{name}.yaml"));
        let general = format!(
            "version: v1\nlockgate:\n  nodename: {name}\n  data_dir: {}\n  diag_addr: 127.0.0.1:{diag_port}\n{}",
            data_dir.display(),
            setup.general
        );
        fs::write(&config, general + yaml).expect("write the configuration");
        Member {
            name: name.to_owned(),
            log: home.join(format!("{name}.log")),
            program: Mutex::new(program.to_owned()),
            args: Mutex::default(),
            running: Mutex::default(),
            environment: setup.environment.clone(),
            data_dir,
            config,
            diag_port,
            ssh_port,
        }
    }

    /// Flags for the starts from now on.
    pub fn set_args<S: Into<String>>(&self, args: impl IntoIterator<Item = S>) {
        *lock(&self.args) = args.into_iter().map(Into::into).collect();
    }
    /// The program for the starts from now on.
    pub fn set_program(&self, program: &Path) {
        *lock(&self.program) = program.to_owned();
    }

    /// The command of a start, for those that are expected to fail.
    pub fn command(&self) -> Run {
        let mut run = Run::new(&*lock(&self.program)).args(["start", "--config"]).arg(&self.config).args(lock(&self.args).iter());
        for (name, value) in &self.environment {
            run = run.env(name, value);
        }
        for name in ["LOCKGATE_LOG", "RUST_BACKTRACE"] {
            if let Some(value) = std::env::var_os(name) {
                run = run.env(name, value);
            }
        }
        run
    }

    /// Starts it, and does not wait.
    pub fn start(&self) {
        let running = Running::start(&self.command().into_command(), &self.log);
        *lock(&self.running) = Some(running);
    }

    /// Waits until every one of its components is ready.
    #[track_caller]
    pub fn wait_ready(&self) {
        eventually(READY, &format!("{} is ready; /readyz says {:?}; log:\n{}", self.name, self.readyz(), self.log_end()), || {
            if let Some(status) = self.with(Running::ended) {
                panic!("{} ended with {status}:\n{}", self.name, self.log_end());
            }
            self.readyz().filter(|(status, _)| *status == 200)
        });
    }

    #[track_caller]
    pub(crate) fn with<T>(&self, act: impl FnOnce(&mut Running) -> T) -> T {
        act(lock(&self.running).as_mut().unwrap_or_else(|| panic!("{} was not started", self.name)))
    }
    pub fn pid(&self) -> u32 {
        self.with(|running| running.pid())
    }
    pub fn signal(&self, signal: Signal) {
        self.with(|running| running.signal(signal));
    }
    /// `kill -9`
    pub fn kill(&self) {
        self.with(Running::kill);
    }
    /// Waits for its end; the status.
    #[track_caller]
    pub fn wait(&self, deadline: Duration) -> i32 {
        self.with(|running| running.wait(deadline))
    }
    pub fn has_ended(&self) -> bool {
        self.with(|running| running.ended().is_some())
    }
    /// TERM, and its end.
    #[track_caller]
    pub fn stop(&self) {
        self.signal(Signal::SIGTERM);
        self.wait(Duration::from_secs(30));
    }
    /// Stopped, another start, ready.
    #[track_caller]
    pub fn restart(&self) {
        self.stop();
        self.start();
        self.wait_ready();
    }

    /// `GET` on the diagnostic address: status and body; none when nobody answers.
    pub fn diag(&self, path: &str) -> Option<(u16, String)> {
        http(self.diag_port, path)
    }
    pub fn readyz(&self) -> Option<(u16, Value)> {
        let (status, body) = self.diag("/readyz")?;
        Some((status, serde_json::from_str(&body).ok()?))
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
    fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

fn http(port: u16, path: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
}

/// How a host joins.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    Tunnel,
    Direct,
}

/// The processes of one cluster. The first is the Auth Service's.
pub struct Cluster {
    pub name: String,
    pub auth_port: u16,
    second_auth_port: Option<u16>,
    pub web_port: u16,
    pub jump_port: u16,
    pub home: PathBuf,
    /// Of the host authority: one for each of its keys.
    pub pins: Vec<String>,
    setup: Setup,
    members: Vec<Member>,
    joined: Mutex<Vec<std::sync::Arc<Member>>>,
    allowed: Mutex<Vec<String>>,
    _dir: TempDir,
}

impl Cluster {
    /// One process, one host named `node1`.
    pub fn start() -> Cluster {
        Cluster::with(Setup::default())
    }
    /// Three processes, and `node1` joined by tunnel.
    pub fn split() -> Cluster {
        Cluster::with(Setup { split: true, ..Setup::default() })
    }

    #[track_caller]
    pub fn with(setup: Setup) -> Cluster {
        let dir = tempfile::Builder::new().prefix("lg").tempdir_in("/tmp").expect("a directory");
        let open = dir.path().join("open");
        fs::create_dir(&open).expect("a directory");
        for (path, mode) in [(dir.path(), 0o711), (&open, 0o777)] {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions");
        }
        let (auth_port, web_port, jump_port) = (free_port(), free_port(), free_port());
        let mut cluster = Cluster {
            name: setup.name.clone(),
            home: dir.path().to_owned(),
            pins: Vec::new(),
            members: Vec::new(),
            joined: Mutex::default(),
            allowed: Mutex::default(),
            _dir: dir,
            auth_port,
            second_auth_port: None,
            web_port,
            jump_port,
            setup,
        };
        cluster.begin();
        cluster
    }

    fn begin(&mut self) {
        let setup = self.setup.clone();
        let auth_yaml = self.auth_yaml(self.auth_port);
        let (first, rest) = if setup.split {
            ("auth", "proxy_service: {enabled: false}\nssh_service: {enabled: false}\n".to_owned())
        } else {
            ("node1", self.proxy_yaml() + &ssh_yaml(setup.with_node, 1, &setup.labels))
        };
        let auth = Member::new(&self.home, first, &setup.auth, 0, &setup, &(auth_yaml + &rest));
        if setup.allow_prerelease {
            auth.set_args(["--allow-prerelease"]);
        }
        auth.start();
        self.members.push(auth);
        self.members[0].wait_ready();
        self.pins = self.pins_now();
        if setup.second_auth {
            let port = free_port();
            let second = self.new_auth("auth2", port, &setup.auth);
            second.start();
            second.wait_ready();
            lock(&self.joined).push(std::sync::Arc::new(second));
            self.second_auth_port = Some(port);
        }
        if setup.split {
            let proxy = self.new_proxy("proxy1", &setup.proxy);
            proxy.start();
            proxy.wait_ready();
            self.members.push(proxy);
            if setup.with_node {
                let node = self.new_node("node1", Way::Tunnel, &setup.labels, &setup.node);
                node.start();
                node.wait_ready();
                self.members.push(node);
            }
        }
        if setup.with_node {
            self.wait_node("node1");
        }
    }

    fn auth_yaml(&self, port: u16) -> String {
        let storage = self.setup.storage.as_ref().map_or_else(String::new, |storage| format!("  storage: {storage}\n"));
        let recordings = match self.setup.second_auth && !self.setup.own_recordings {
            true => format!("  recordings_dir: {}\n", self.home.join("recordings").display()),
            false => String::new(),
        };
        storage
            + &format!(
                "auth_service:\n  enabled: true\n  listen_addr: 127.0.0.1:{port}\n  public_addr: ['127.0.0.1:{port}']\n  cluster_name: {}\n{recordings}  authentication:\n    second_factor: '{}'\n",
                self.setup.name,
                if self.setup.otp { "otp" } else { "off" }
            )
    }

    /// A further Auth Service on the cluster's store; not started.
    pub fn new_auth(&self, name: &str, port: u16, program: &Path) -> Member {
        let rest = "proxy_service: {enabled: false}\nssh_service: {enabled: false}\n";
        Member::new(&self.home, name, program, 0, &self.setup, &(self.auth_yaml(port) + rest))
    }

    /// The Auth Services, as members are given them.
    fn auths_yaml(&self) -> String {
        match self.second_auth_port {
            Some(second) => format!("  auth_servers: ['127.0.0.1:{}', '127.0.0.1:{second}']\n", self.auth_port),
            None => format!("  auth_server: 127.0.0.1:{}\n", self.auth_port),
        }
    }

    /// A further Proxy on ports of its own, which has a token; not started. Its `host:port` too.
    pub fn another_proxy(&self, name: &str) -> (Member, String) {
        let port = free_port();
        let yaml = format!("{}  ca_pin: {:?}\n", self.auths_yaml(), self.pins)
            + "auth_service: {enabled: false}\nssh_service: {enabled: false}\n"
            + &format!(
                "proxy_service:\n  enabled: true\n  web_listen_addr: 127.0.0.1:{port}\n  listen_addr: 'off'\n  public_addr: ['127.0.0.1:{port}']\n"
            );
        let proxy = Member::new(&self.home, name, &self.setup.proxy, 0, &self.setup, &yaml);
        proxy.set_args([format!("--token={}", self.token("proxy"))]);
        (proxy, format!("127.0.0.1:{port}"))
    }

    fn proxy_yaml(&self) -> String {
        format!(
            "proxy_service:\n  enabled: true\n  web_listen_addr: 127.0.0.1:{}\n  listen_addr: 127.0.0.1:{}\n  public_addr: ['127.0.0.1:{0}']\n",
            self.web_port, self.jump_port
        )
    }

    /// A Proxy on this cluster's ports that has a token; not started.
    pub fn new_proxy(&self, name: &str, program: &Path) -> Member {
        let yaml = format!("{}  ca_pin: {:?}\n", self.auths_yaml(), self.pins)
            + "auth_service: {enabled: false}\nssh_service: {enabled: false}\n"
            + &self.proxy_yaml();
        let proxy = Member::new(&self.home, name, program, 0, &self.setup, &yaml);
        proxy.set_args([format!("--token={}", self.token("proxy"))]);
        proxy
    }

    /// A host that has a token; not started.
    pub fn new_node(&self, name: &str, way: Way, labels: &[(String, String)], program: &Path) -> Member {
        let server = match way {
            Way::Tunnel => format!("  proxy_server: 127.0.0.1:{}\n", self.web_port),
            Way::Direct => self.auths_yaml(),
        };
        self.node_by(&server, name, labels, program)
    }
    /// A host that is given these Proxies; not started.
    pub fn new_node_by(&self, name: &str, proxies: &[&str]) -> Member {
        self.node_by(&format!("  proxy_servers: {proxies:?}\n"), name, &self.setup.labels, &self.setup.node)
    }
    fn node_by(&self, server: &str, name: &str, labels: &[(String, String)], program: &Path) -> Member {
        let ssh_port = free_port();
        let yaml = format!("{server}  ca_pin: {:?}\nauth_service: {{enabled: false}}\nproxy_service: {{enabled: false}}\n", self.pins)
            + &ssh_yaml(true, ssh_port, labels);
        let node = Member::new(&self.home, name, program, ssh_port, &self.setup, &yaml);
        node.set_args([format!("--token={}", self.token("node"))]);
        node
    }

    /// A further host, started and listed.
    #[track_caller]
    pub fn join(&self, name: &str, way: Way, labels: &[(&str, &str)]) -> std::sync::Arc<Member> {
        let labels: Vec<_> = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let node = std::sync::Arc::new(self.new_node(name, way, &labels, &self.setup.node));
        node.start();
        node.wait_ready();
        lock(&self.joined).push(node.clone());
        self.wait_node(name);
        node
    }

    /// Its log is looked at in the end, like those of the first members.
    pub fn watch(&self, member: Member) -> std::sync::Arc<Member> {
        let member = std::sync::Arc::new(member);
        lock(&self.joined).push(member.clone());
        member
    }

    /// Waits until a host is listed.
    #[track_caller]
    pub fn wait_node(&self, name: &str) {
        eventually(READY, &format!("host {name} is listed"), || self.nodes().iter().any(|node| node == name).then_some(()));
    }
    /// Names of the hosts that are listed.
    pub fn nodes(&self) -> Vec<String> {
        let listed = self.tctl(["nodes", "ls", "--format=json"]).go().json();
        let names = listed.as_array().expect("a list").iter().map(|node| node["spec"]["hostname"].as_str().unwrap_or("").to_owned());
        names.collect()
    }

    /// Where an Auth Service keeps its recordings.
    pub fn recordings(&self, auth: &Member) -> PathBuf {
        match self.setup.second_auth && !self.setup.own_recordings {
            true => self.home.join("recordings"),
            false => auth.data_dir.join("auth/recordings"),
        }
    }
    /// The second Auth Service of a cluster that has one.
    pub fn second_auth(&self) -> std::sync::Arc<Member> {
        lock(&self.joined).iter().find(|member| member.name == "auth2").expect("a second Auth Service").clone()
    }
    /// The process with the Auth Service; of a cluster in one process, the process.
    pub fn auth(&self) -> &Member {
        &self.members[0]
    }
    pub fn proxy(&self) -> &Member {
        self.members.get(1).unwrap_or(&self.members[0])
    }
    /// The process of `node1`.
    pub fn node(&self) -> &Member {
        self.members.get(2).unwrap_or(&self.members[0])
    }
    /// A directory that sessions of any account may use.
    pub fn open(&self) -> PathBuf {
        self.home.join("open")
    }
    /// `host:port` of the Proxy.
    pub fn proxy_addr(&self) -> String {
        format!("127.0.0.1:{}", self.web_port)
    }
    pub fn auth_addr(&self) -> String {
        format!("127.0.0.1:{}", self.auth_port)
    }
    /// What clients are run with.
    pub fn program(&self) -> &Path {
        self.setup.clients.as_ref().unwrap_or(&self.setup.auth)
    }

    /// `tctl …` as the local administrator.
    pub fn tctl<S: AsRef<std::ffi::OsStr>>(&self, words: impl IntoIterator<Item = S>) -> Run {
        self.tctl_of(self.program(), words)
    }
    /// The same with another program.
    pub fn tctl_of<S: AsRef<std::ffi::OsStr>>(&self, program: &Path, words: impl IntoIterator<Item = S>) -> Run {
        Run::new(program)
            .arg("tctl")
            .arg("--data-dir")
            .arg(&self.members[0].data_dir)
            .args(words)
            .env("LOCKGATE_HOME", self.home.join("nobody"))
    }
    fn pins_now(&self) -> Vec<String> {
        let status = eventually(READY, "tctl answers", || {
            let ran = self.tctl(["status"]).go();
            (ran.status == 0).then(|| ran.text())
        });
        let pins: Vec<String> = status.split_whitespace().filter(|word| word.starts_with("sha256:")).map(str::to_owned).collect();
        assert!(!pins.is_empty(), "no pin in {status}");
        pins
    }

    /// A join token.
    #[track_caller]
    pub fn token(&self, role: &str) -> String {
        let made = self.tctl(["tokens", "add", &format!("--type={role}"), "--format=json"]).go().json();
        made["token"].as_str().expect("a token").to_owned()
    }

    /// Creates documents from YAML.
    #[track_caller]
    pub fn create(&self, yaml: &str) -> String {
        self.tctl(["create", "-f"]).input(yaml).go().ok()
    }
    /// Creates a role whose `spec` is this YAML flow text.
    #[track_caller]
    pub fn role(&self, name: &str, spec: &str) {
        self.create(&format!("kind: role\nversion: v1\nmetadata: {{name: {name}}}\nspec: {spec}\n"));
    }

    /// Somebody who was invited, has a password and is logged in.
    #[track_caller]
    pub fn person(&self, name: &str, roles: &[&str], logins: &[&str]) -> Person {
        Person::invite(self, name, roles, logins).accept()
    }

    /// Events of these names (and all, when there is none), newest first.
    #[track_caller]
    pub fn events(&self, names: &[&str]) -> Vec<Value> {
        let mut run = self.tctl(["audit", "ls", "--format=json", "--limit=1000"]);
        if !names.is_empty() {
            run = run.arg(format!("--event={}", names.join(",")));
        }
        run.go().json().as_array().expect("a list").clone()
    }
    /// Waits for an event of that name and code in which these fields have these values.
    #[track_caller]
    pub fn event(&self, name: &str, code: &str, fields: &[(&str, &str)]) -> Value {
        let fits = |event: &Value| event["code"] == code && fields.iter().all(|(key, value)| event[*key] == *value);
        let seen = || self.events(&[name]);
        eventually(Duration::from_secs(20), &format!("event {name} {code} {fields:?}; there are {:?}", seen()), || {
            seen().into_iter().find(fits)
        })
    }

    /// ERROR lines with this text are expected.
    pub fn allow(&self, text: &str) {
        lock(&self.allowed).push(text.to_owned());
    }

    fn each_member(&self, mut act: impl FnMut(&Member)) {
        self.members.iter().for_each(&mut act);
        lock(&self.joined).iter().for_each(|member| act(member));
    }
    fn show_logs(&self) {
        self.each_member(|member| eprintln!("--- the end of the log of {}\n{}", member.name, member.log_end()));
    }
    fn faults(&self) -> Vec<String> {
        let (mut all, allowed) = (Vec::new(), lock(&self.allowed).clone());
        self.each_member(|member| {
            all.extend(errors_in(&member.log(), &allowed).into_iter().map(|line| format!("{}: {line}", member.name)))
        });
        all
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.each_member(|member| {
            if let Some(running) = lock(&member.running).as_mut() {
                running.kill();
            }
        });
        if std::thread::panicking() {
            self.show_logs();
        } else {
            let faults = self.faults();
            assert!(faults.is_empty(), "the services logged errors:\n{}", faults.join("\n"));
        }
    }
}

fn ssh_yaml(enabled: bool, port: u16, labels: &[(String, String)]) -> String {
    let mut yaml = format!("ssh_service:\n  enabled: {enabled}\n  listen_addr: 127.0.0.1:{port}\n");
    if !labels.is_empty() {
        yaml.push_str("  labels:\n");
    }
    for (key, value) in labels {
        writeln!(yaml, "    {key}: '{value}'").expect("a string");
    }
    yaml
}

/// The cluster of this test program, in one process. For tests that leave it as it was.
pub fn shared() -> Shared {
    static CLUSTER: OnceLock<Cluster> = OnceLock::new();
    Shared::of(CLUSTER.get_or_init(Cluster::start))
}

/// A test's use of a cluster that is never dropped: its logs are looked at when the test ends.
pub struct Shared(&'static Cluster);

impl Shared {
    pub fn of(cluster: &'static Cluster) -> Shared {
        Shared(cluster)
    }
}

impl Deref for Shared {
    type Target = Cluster;
    fn deref(&self) -> &Cluster {
        self.0
    }
}
impl Drop for Shared {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.show_logs();
        } else {
            let faults = self.0.faults();
            assert!(faults.is_empty(), "the services logged errors:\n{}", faults.join("\n"));
        }
    }
}

/// Runs `command` until it succeeds.
#[track_caller]
pub fn until_ok(deadline: Duration, mut command: impl FnMut() -> Run) -> Ran {
    let last = std::cell::RefCell::new(String::new());
    let end = std::time::Instant::now() + deadline;
    loop {
        let ran = command().go();
        if ran.status == 0 {
            return ran;
        }
        *last.borrow_mut() = ran.to_string();
        assert!(std::time::Instant::now() < end, "not within {deadline:?}:\n{}", last.borrow());
        crate::wait::pause(Duration::from_millis(50));
    }
}
