//! `lockgate install systemd`: the unit. TERM stops at once, QUIT drains: `systemctl stop` drains first, within its time limit.
//! `systemctl reload` is a live restart (`restart`), for which systemd waits since version 253. The unit is the same on every machine, since
//! packages hold it: an older systemd warns of the second `Type` and keeps the first, and there `HUP` is sent by hand.

use crate::exit::{Could as _, Outcome};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

pub(super) fn systemd(output: Option<&Path>, env_file: &Path, pid_file: &Path, fd_limit: u32, program: Option<PathBuf>) -> Outcome {
    let program = match program {
        Some(path) => path,
        None => std::env::current_exe().could("find the path of this program")?,
    };
    let text = unit(&program, env_file, pid_file, fd_limit);
    match output {
        None => crate::output::write_out(&text).could("print the unit")?,
        Some(path) => {
            std::fs::write(path, text).could(format!("write {}", path.display()))?;
            crate::output::write_out(&format!(
                "Wrote {}. Next: systemctl daemon-reload && systemctl enable --now lockgate\n",
                path.display()
            ))
            .could("print")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn unit(program: &Path, env_file: &Path, pid_file: &Path, fd_limit: u32) -> String {
    format!(
        "[Unit]
Description=Lockgate identity-aware access
Documentation=man:lockgate(1)
After=network-online.target
Wants=network-online.target

[Service]
Type=notify
# A reload is a live restart: the program, which may be a newer one, takes over, and the process before ends with its sessions. An older
# systemd than 253 does not know this type and keeps the one above: systemctl kill --signal=HUP --kill-who=main lockgate
Type=notify-reload
# A host waits for its cluster, and one that must be upgraded first says so and waits too: that is no failure to start.
TimeoutStartSec=infinity
EnvironmentFile=-{env}
ExecStart={program} start --pid-file={pid}
PIDFile={pid}
# QUIT drains: no new session, the existing ones run to their end. After the time limit systemd kills what is left.
KillSignal=SIGQUIT
KillMode=mixed
TimeoutStopSec=5min
Restart=on-failure
RestartSec=5s
LimitNOFILE={fd_limit}
UMask=0077

[Install]
WantedBy=multi-user.target
",
        env = env_file.display(),
        program = program.display(),
        pid = pid_file.display(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unit_names_the_program_and_drains_on_stop() {
        let text = unit(Path::new("/usr/local/bin/lockgate"), Path::new("/etc/default/lockgate"), Path::new("/run/lockgate.pid"), 1024);
        assert!(text.contains("ExecStart=/usr/local/bin/lockgate start --pid-file=/run/lockgate.pid\n"));
        assert!(
            text.contains("KillSignal=SIGQUIT\n")
                && text.contains("LimitNOFILE=1024\n")
                && text.contains("\nType=notify\n")
                && text.contains("\nType=notify-reload\n")
                && !text.contains("ExecReload=")
                && text.contains("\nTimeoutStartSec=infinity\n")
        );
    }
}
