//! The client as a program: how fast it starts, and what it holds while it carries a connection for OpenSSH.

use crate::{
    World,
    measure::{Contestant, in_turns, ms, once},
    process::memory,
    report::{Report, row},
    step,
};
use harness::Run;
use std::{
    io::Read as _,
    process::{Child, Stdio},
};

/// `tsh version`, with and without asking the Proxy.
pub(crate) fn start_up(world: &World, report: &mut Report) {
    let contestants = [
        Contestant::new("`tsh version --client`", || world.alice.tsh(["version", "--client"])),
        Contestant::new("`tsh version`, the Proxy's too", || world.alice.tsh(["version"])),
        Contestant::new("`tsh status`", || world.alice.tsh(["status"])),
        Contestant::new("`ssh -V`", || Run::new("ssh").arg("-V")),
        Contestant::new("`/bin/true`", || Run::new("/bin/true")),
    ];
    step(&format!("start-up, {} rounds", world.scale.starts));
    let series = in_turns(&contestants, world.scale.starts, once);
    report.section("Start-up", &format!("From start to end. {} rounds, everyone once in each.", world.scale.starts));
    let mut rows = vec![row(["", "median ms", "fastest", "9 of 10 within"])];
    for (contestant, of) in contestants.iter().zip(&series) {
        rows.push(row([contestant.name, &ms(of.median()), &ms(of.fastest()), &ms(of.ninth())]));
    }
    report.table(&rows);
    for (at, what) in [(0, "`tsh version --client`"), (1, "`tsh version`, the Proxy's too")] {
        let took = series[at].median().as_secs_f64() * 1000.0;
        report.target(what, format!("{took:.1} ms"), "< 10 ms", took < 10.0);
    }
}

/// The helper that plain `ssh` runs, beside OpenSSH's own.
pub(crate) fn helper(world: &World, report: &mut Report) {
    report.section("Memory of a ProxyCommand", "One process per connection, connected and idle; KiB.");
    let mut rows = vec![row(["", "resident", "own (anonymous)", "proportional"])];
    let target = format!("{}@node1", world.login);
    let peer = world.peer.target_addr();
    for (name, run) in [
        ("`tsh proxy ssh`", world.alice.tsh(["proxy", "ssh", &target])),
        ("`ssh -W` to the jump host", world.peer.ssh(&["-W", &peer, "jump"])),
    ] {
        let mut child = Carrying(run.into_command().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a helper"));
        let mut banner = [0; 4];
        child.0.stdout.as_mut().expect("piped").read_exact(&mut banner).expect("the host's first words");
        assert_eq!(&banner, b"SSH-", "{name}");
        let held = memory(child.0.id());
        rows.push(row([name, &held.rss.to_string(), &held.anonymous.to_string(), &held.pss.to_string()]));
    }
    report.table(&rows);
}

/// Killed when it has been looked at.
struct Carrying(Child);
impl Drop for Carrying {
    fn drop(&mut self) {
        let _already_gone = self.0.kill();
        let _reaped = self.0.wait();
    }
}
