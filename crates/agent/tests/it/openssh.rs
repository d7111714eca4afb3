//! The real OpenSSH client: host certificate checked, commands, terminals, copies, many channels over one connection.

use crate::world::{World, own_login};
use agent::ssh::{self, Arrival};
use std::{os::unix::fs::PermissionsExt, path::Path, process::Output, time::Duration};
use tokio::{net::TcpListener, process::Command};

/// A world that listens, and what its client needs in a directory.
struct Door {
    world: World,
    files: tempfile::TempDir,
    port: u16,
}

impl Door {
    async fn open() -> Self {
        let world = World::new();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (shared, tasks) = (world.shared.clone(), world.tasks.clone());
        world.tasks.spawn("listen", async move {
            while let Ok((stream, peer)) = listener.accept().await {
                stream.set_nodelay(true).unwrap();
                let arrival = Arrival { client: Some(peer), local: stream.local_addr().ok() };
                tasks.spawn("serve", ssh::serve(shared.clone(), stream, arrival, || ()));
            }
        });
        let files = tempfile::tempdir().unwrap();
        let badge = world.badge("alice");
        let write = |name: &str, text: &str| {
            std::fs::write(files.path().join(name), text).unwrap();
            std::fs::set_permissions(files.path().join(name), std::fs::Permissions::from_mode(0o600)).unwrap();
        };
        write("key", &badge.key.to_openssh(russh::keys::ssh_key::LineEnding::LF).unwrap());
        write("key-cert.pub", &badge.certificate.to_openssh().unwrap());
        let authority = world.host_authority();
        write("known_hosts", &format!("@cert-authority * {authority}\n"));
        let config = format!(
            "Host node1\n HostName 127.0.0.1\n Port {port}\n User {}\n HostKeyAlias node1\n IdentityFile {dir}/key\n CertificateFile {dir}/key-cert.pub\n IdentitiesOnly yes\n UserKnownHostsFile {dir}/known_hosts\n GlobalKnownHostsFile /dev/null\n StrictHostKeyChecking yes\n BatchMode yes\n LogLevel ERROR\n",
            own_login(),
            dir = files.path().display()
        );
        write("config", &config);
        Self { world, files, port }
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("-F").arg(self.files.path().join("config")).stdin(std::process::Stdio::null()).kill_on_drop(true);
        command
    }

    async fn ssh(&self, args: &[&str]) -> Output {
        let mut command = self.command("ssh");
        tokio::time::timeout(Duration::from_secs(60), command.args(args).output()).await.expect("ssh does not end").unwrap()
    }
}

/// The real programs, or a failure that names the cure: a test that does not run proves nothing.
fn require_openssh() {
    for path in ["/usr/bin/ssh", "/usr/bin/scp", "/usr/lib/openssh/sftp-server"] {
        assert!(Path::new(path).exists(), "{path} is missing: make test-deps");
    }
}

fn text(output: &Output) -> (String, String, Option<i32>) {
    (String::from_utf8_lossy(&output.stdout).into_owned(), String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssh_runs_commands_and_terminals() {
    require_openssh();
    let door = Door::open().await;
    assert_eq!(text(&door.ssh(&["node1", "echo out; echo err >&2; exit 9"]).await), ("out\n".into(), "err\n".into(), Some(9)));
    let (out, _, status) = text(&door.ssh(&["-tt", "node1", "test -t 0 && stty size >/dev/null && echo terminal"]).await);
    assert_eq!((out.trim(), status), ("terminal", Some(0)));
    let (_, errors, status) = text(&door.ssh(&["-l", "postgres", "node1", "true"]).await);
    assert!(status == Some(255) && errors.contains("no role allows login \"postgres\""), "{errors}");
    let killed = door.ssh(&["node1", "kill -KILL $$"]).await;
    assert_eq!(killed.status.code(), Some(255));
    assert!(door.port != 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssh_copies_files_there_and_back() {
    require_openssh();
    let door = Door::open().await;
    let path = |name: &str| door.files.path().join(name);
    let bytes: Vec<u8> = (0u32..2 << 20).flat_map(u32::to_le_bytes).collect();
    std::fs::write(path("a"), &bytes).unwrap();
    for (from, to) in [
        (path("a").display().to_string(), format!("node1:{}", path("b").display())),
        (format!("node1:{}", path("b").display()), path("c").display().to_string()),
    ] {
        let output = door.command("scp").args(["-q", &from, &to]).output().await.unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    assert!(std::fs::read(path("c")).unwrap() == bytes);
    let output = door.ssh(&["node1", &format!("sha256sum < {}", path("b").display())]).await;
    assert!(output.status.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openssh_shares_one_connection_among_sessions() {
    require_openssh();
    let door = Door::open().await;
    let socket = format!("ControlPath={}", door.files.path().join("mux").display());
    let mut master = door.command("ssh").args(["-M", "-N", "-o", &socket, "node1"]).spawn().unwrap();
    while !door.files.path().join("mux").exists() {
        tokio::task::yield_now().await;
    }
    let runs = (0..8).map(|number| {
        let (door, socket) = (&door, socket.clone());
        async move { text(&door.ssh(&["-o", &socket, "node1", &format!("head -c 3000000 /dev/zero | wc -c; echo {number}")]).await) }
    });
    for (number, (out, errors, status)) in futures::future::join_all(runs).await.into_iter().enumerate() {
        assert_eq!((out, status), (format!("3000000\n{number}\n"), Some(0)), "{errors}");
    }
    master.kill().await.unwrap();
    assert_eq!(door.world.event("session.start").await.text("user"), "alice");
}
