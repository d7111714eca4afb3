//! Sessions: how long one takes to set up, how many at once, and how fast bytes go through one.

use crate::{
    Scale, World,
    measure::{Contestant, Series, at_once, fed, in_turns, ms, once},
    process::{cores, cpu_of_all},
    report::{Report, row},
    step,
};
use harness::Run;
use std::{cell::RefCell, collections::BTreeMap, fs};

const TSH: &str = "tsh ssh";
const DIRECT: &str = "OpenSSH direct";
const JUMP: &str = "OpenSSH, ssh -J";
const BY_HELPER: &str = "ssh through `tsh proxy ssh`";
const BY_PROXY: &str = "ssh -J through the Proxy's jump server";
const DIRECT_X25519: &str = "OpenSSH direct, told to leave post-quantum exchange out";
const DIRECT_AES: &str = "OpenSSH direct, told to use aes256-gcm";

/// `tsh ssh` and the two ways of OpenSSH alone.
fn three<'a>(world: &'a World, command: &'a str) -> Vec<Contestant<'a>> {
    vec![
        Contestant::new(TSH, move || world.alice.ssh(&format!("{}@node1", world.login), command)),
        Contestant::new(DIRECT, move || world.peer.ssh(&["target", command])),
        Contestant::new(JUMP, move || world.peer.ssh(&["-J", "jump", "target", command])),
    ]
}

/// Plain OpenSSH as a client of Lockgate, set up by `tsh config`.
fn plain_ssh<'a>(world: &'a World, command: &'a str) -> [Contestant<'a>; 2] {
    let path = world.cluster.home.join("ssh_config");
    let lines =
        format!("{}\nHost *\n  BatchMode yes\n  LogLevel ERROR\n  GlobalKnownHostsFile /dev/null\n", world.alice.tsh(["config"]).go().ok());
    fs::write(&path, lines).expect("ssh's configuration");
    let target = format!("{}@node1.{}", world.login, world.cluster.name);
    let jump = format!("{}-jump", world.cluster.name);
    let (with_helper, with_jump) = ((path.clone(), target.clone()), (path, target));
    [
        Contestant::new(BY_HELPER, move || Run::new("ssh").arg("-F").arg(&with_helper.0).args([&with_helper.1, command])),
        Contestant::new(BY_PROXY, move || Run::new("ssh").arg("-F").arg(&with_jump.0).args(["-J", &jump, &with_jump.1, command])),
    ]
}

/// One command after the other, each in a session of its own.
pub(crate) fn set_up(world: &World, report: &mut Report) {
    let mut contestants = three(world, "true");
    contestants.push(Contestant::new(DIRECT_X25519, || world.peer.ssh(&["-o", "KexAlgorithms=curve25519-sha256", "target", "true"])));
    contestants.extend(plain_ssh(world, "true"));
    let shell = nix::unistd::User::from_name(world.login).ok().flatten().map(|user| user.shell).expect("a shell");
    // The variable makes a Debian bash read ~/.bashrc, as it does under sshd.
    contestants.push(Contestant::new("the login's shell alone, without SSH", move || {
        Run::new(&shell).args(["-c", "true"]).env("SSH_CLIENT", "::1 1 1")
    }));
    step(&format!("session set-up, {} rounds", world.scale.rounds));
    let series = in_turns(&contestants, world.scale.rounds, once);
    report.section(
        "Session set-up",
        &format!(
            "`true` on the host, from the client's start to its end; certificates on both sides everywhere. {} rounds, everyone once in each.",
            world.scale.rounds
        ),
    );
    let jump = &series[2];
    let mut rows = vec![row(["", "median ms", "fastest", "9 of 10 within", "× ssh -J", "× direct"])];
    for (contestant, of) in contestants.iter().zip(&series) {
        let ratio = |other: &Series| format!("{:.2}", of.over(other));
        rows.push(row([contestant.name, &ms(of.median()), &ms(of.fastest()), &ms(of.ninth()), &ratio(jump), &ratio(&series[1])]));
    }
    report.table(&rows);
    let ratio = series[0].over(jump);
    report.target("session set-up, `tsh ssh` to `ssh -J`", format!("{ratio:.2} ×"), "≤ 0.30 ×", ratio <= 0.30);
}

/// A session again, when the cluster has grown.
pub(crate) fn among_many(world: &World, report: &mut Report, hosts: usize) {
    let contestants = three(world, "true");
    let series = in_turns(&contestants[..1], world.scale.rounds.min(10), once);
    report.line(&format!("`tsh ssh host true` among {hosts} hosts: {} ms.", ms(series[0].median())));
}

/// Many at the same moment.
pub(crate) fn crowd(world: &World, report: &mut Report) {
    let Scale { crowd, .. } = world.scale;
    report.section("Sessions at once", &format!("{crowd} clients started together, each `true` on the host; until the last has ended."));
    let mut rows = vec![row(["", "seconds", "per second", "processor seconds each", "failed"])];
    let mut faults = 0;
    for contestant in three(world, "true") {
        step(&format!("{crowd} sessions at once: {}", contestant.name));
        let before = cpu_of_all();
        let (took, failed) = at_once(&contestant, crowd);
        let (seconds, cpu) = (took.as_secs_f64(), (cpu_of_all() - before) / crowd as f64);
        failed.iter().take(3).for_each(|error| step(error));
        if contestant.name == TSH {
            faults = failed.len();
        }
        rows.push(row([
            contestant.name,
            &format!("{seconds:.1}"),
            &format!("{:.0}", crowd as f64 / seconds),
            &format!("{cpu:.3}"),
            &failed.len().to_string(),
        ]));
    }
    report.table(&rows);
    report.target(&format!("{crowd} sessions at once, errors"), faults.to_string(), "0", faults == 0);
}

/// Bytes through one session, each way.
pub(crate) fn bulk(world: &World, report: &mut Report) {
    let Scale { bulk, bulk_rounds, .. } = world.scale;
    report.section(
        "Bulk throughput",
        &format!(
            "{} MiB of zeros through one session, set-up included. {bulk_rounds} rounds, everyone once in each; processor seconds are the whole machine's ({} cores), for one GiB.",
            bulk >> 20,
            cores()
        ),
    );
    let mut rows = vec![row(["", "down MiB/s", "× direct", "processor s/GiB", "up MiB/s", "× direct", "processor s/GiB"])];
    let send = format!("head -c {bulk} /dev/zero");
    let directions = [(send.as_str(), false), ("cat >/dev/null", true)].map(|(command, up)| {
        step(&format!("bulk {}, {bulk_rounds} rounds", if up { "up" } else { "down" }));
        let mut contestants = three(world, command);
        contestants.push(Contestant::new(DIRECT_AES, move || world.peer.ssh(&["-c", "aes256-gcm@openssh.com", "target", command])));
        let cpu: RefCell<BTreeMap<&str, Vec<f64>>> = RefCell::default();
        let series = in_turns(&contestants, bulk_rounds, |contestant| {
            let before = cpu_of_all();
            let took = if up { fed(contestant, bulk) } else { once(contestant) };
            cpu.borrow_mut().entry(contestant.name).or_default().push((cpu_of_all() - before) * (1u64 << 30) as f64 / bulk as f64);
            took
        });
        let names: Vec<&str> = contestants.iter().map(|contestant| contestant.name).collect();
        (names, series, cpu.into_inner())
    });
    let [(names, down, down_cpu), (_, up, up_cpu)] = &directions;
    let cells = |at: usize, series: &[Series], cpu: &BTreeMap<&str, Vec<f64>>| {
        let mut of = cpu[names[at]].clone();
        of.sort_by(f64::total_cmp);
        let speed = (bulk >> 20) as f64 / series[at].median().as_secs_f64();
        [format!("{speed:.0}"), format!("{:.2}", series[1].over(&series[at])), format!("{:.2}", of[of.len() / 2])]
    };
    for (at, name) in names.iter().enumerate() {
        let mut line = vec![(*name).to_owned()];
        line.extend(cells(at, down, down_cpu));
        line.extend(cells(at, up, up_cpu));
        rows.push(line);
    }
    report.table(&rows);
    for (way, series) in [("down", down), ("up", up)] {
        let (direct, jump) = (series[1].over(&series[0]), series[2].over(&series[0]));
        report.target(&format!("throughput {way}, to OpenSSH direct"), format!("{direct:.2} ×"), "≥ 1.00 ×", direct >= 1.0);
        report.target(&format!("throughput {way}, to `ssh -J`"), format!("{jump:.2} ×"), "≥ 1.60 ×", jump >= 1.6);
    }
}
