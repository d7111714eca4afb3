//! The peer: two OpenSSH servers on loopback, a jump host and a target, with certificates for users and hosts made by `ssh-keygen`.
//!
//! Its settings are the defaults, but for what a comparison needs: no passwords, no PAM, no reverse lookups, room for as many
//! connections at once as Lockgate takes.

use harness::{Run, cluster::free_port, eventually, process::Running};
use std::{
    fs,
    net::TcpStream,
    path::{Path, PathBuf},
    time::Duration,
};

/// Runs until it is dropped.
pub(crate) struct OpenSsh {
    directory: PathBuf,
    target_port: u16,
    _servers: [Running; 2],
}

impl OpenSsh {
    pub(crate) fn start(directory: &Path, login: &str) -> OpenSsh {
        fs::create_dir_all(directory).expect("a directory");
        // Debian's unit makes it, and there may be no unit here. Without root it is not needed.
        let _without_root = fs::create_dir_all("/run/sshd");
        let keygen = |words: &[&str]| drop(Run::new("ssh-keygen").arg("-q").args(words).dir(directory).go().ok());
        for key in ["user_ca", "host_ca", "host", "user"] {
            keygen(&["-t", "ed25519", "-N", "", "-f", key]);
        }
        keygen(&["-s", "host_ca", "-I", "host", "-h", "-n", "jump,target", "host.pub"]);
        keygen(&["-s", "user_ca", "-I", "user", "-n", login, "-V", "+1h", "user.pub"]);
        let (jump_port, target_port) = (free_port(), free_port());
        let servers = [("jump", jump_port), ("target", target_port)].map(|(name, port)| serve(directory, name, port));
        let authority = fs::read_to_string(directory.join("host_ca.pub")).expect("the host authority");
        fs::write(directory.join("known_hosts"), format!("@cert-authority * {authority}")).expect("known_hosts");
        let hosts: String = [("jump", jump_port), ("target", target_port)]
            .iter()
            .map(|(name, port)| format!("Host {name}\n  HostName 127.0.0.1\n  Port {port}\n  HostKeyAlias {name}\n"))
            .collect();
        let at = directory.display();
        let everyone = format!(
            "Host *\n  User {}\n  IdentityFile {at}/user\n  CertificateFile {at}/user-cert.pub\n  IdentitiesOnly yes\n  UserKnownHostsFile {at}/known_hosts\n  \
             GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n  BatchMode yes\n  LogLevel ERROR\n",
            login
        );
        fs::write(directory.join("config"), hosts + &everyone).expect("config");
        let peer = OpenSsh { directory: directory.to_owned(), target_port, _servers: servers };
        peer.ssh(&["-J", "jump", "target", "true"]).go().ok();
        peer
    }

    /// `ssh …` with keys and hosts set up: the hosts are called `jump` and `target`.
    pub(crate) fn ssh(&self, words: &[&str]) -> Run {
        Run::new("ssh").arg("-F").arg(self.directory.join("config")).args(words)
    }

    /// Where the target listens, as `ssh -W` wants it.
    pub(crate) fn target_addr(&self) -> String {
        format!("127.0.0.1:{}", self.target_port)
    }
}

fn serve(directory: &Path, name: &str, port: u16) -> Running {
    let at = directory.display();
    let config = format!(
        "ListenAddress 127.0.0.1:{port}\nHostKey {at}/host\nHostCertificate {at}/host-cert.pub\nTrustedUserCAKeys {at}/user_ca.pub\n\
         AuthorizedKeysFile none\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nUseDNS no\nPermitRootLogin yes\n\
         PrintMotd no\nPidFile none\nMaxStartups 1000\nMaxSessions 1000\nLogLevel ERROR\n"
    );
    let path = directory.join(format!("sshd_{name}"));
    fs::write(&path, config).expect("sshd's configuration");
    let command = Run::new("/usr/sbin/sshd").args(["-D", "-e", "-f"]).arg(&path).into_command();
    let running = Running::start(&command, &directory.join(format!("{name}.log")));
    eventually(Duration::from_secs(10), "sshd listens", || TcpStream::connect(("127.0.0.1", port)).ok());
    running
}
