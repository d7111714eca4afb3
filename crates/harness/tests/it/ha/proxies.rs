//! Several Proxies: a host that was given one is reached through each.

use harness::{Cluster, cluster::until_ok, person::me};
use nix::sys::signal::Signal;
use std::time::Duration;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn a_host_that_was_given_one_proxy_is_reached_through_another_and_goes_on_when_either_is_gone() {
    let cluster = Cluster::split();
    let (second, addr) = cluster.another_proxy("proxy2");
    let second = cluster.watch(second);
    second.start();
    second.wait_ready();
    let alice = cluster.person("alice", &["access"], &[me()]);
    let there = alice.elsewhere("there").at(&addr);
    there.login().go().ok();
    let target = format!("{}@node1", me());
    until_ok(SOON, || there.ssh(&target, "true"));
    // The one that the host was given is gone: its tunnel to the other goes on.
    cluster.proxy().kill();
    for _ in 0..3 {
        there.ssh(&target, "true").go().ok();
    }
    cluster.proxy().start();
    cluster.proxy().wait_ready();
    until_ok(SOON, || alice.ssh(&target, "true"));
    // Both serve now, and neither pushes the other's tunnel out.
    for _ in 0..5 {
        alice.ssh(&target, "true").go().ok();
        there.ssh(&target, "true").go().ok();
    }
    second.signal(Signal::SIGTERM);
    second.wait(SOON);
    alice.ssh(&target, "true").go().ok();
    second.start();
    second.wait_ready();
    until_ok(SOON, || there.ssh(&target, "true"));
}
