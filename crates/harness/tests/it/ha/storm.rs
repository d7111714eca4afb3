//! A storm of `kill -9`: two Auth Services with recordings of their own, two Proxies, three hosts, and nobody is spared while sessions run.
//!
//! What must hold afterwards: every session that a user saw end well has its recording, whole; every session that began is closed
//! exactly once in the audit logs taken together; every service is ready again, and users reach every host by every Proxy. Seconds in the ordinary tests;
//! `LOCKGATE_STORM_SECONDS=60` (in `make soak`) for a minute.

use super::{
    load::{Books, Tally, open_sessions, recorded},
    servers::Etcd,
};
use harness::{
    Cluster, Setup,
    cluster::{Member, until_ok},
    eventually,
    person::me,
};
use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(60);
const PLAYED: usize = 10;

fn length() -> Duration {
    let asked = std::env::var("LOCKGATE_STORM_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs(asked.unwrap_or(12))
}

/// Kills one by chance, starts it again a moment later, and goes on to the next.
fn rage(members: &[&Member], until: Instant) -> usize {
    let (mut killed, mut next) = (0, Instant::now());
    let wait = |at: Instant| eventually(SOON, "the next blow", || (Instant::now() >= at).then_some(()));
    while next < until {
        wait(next);
        let member = members[rand::random_range(0..members.len())];
        member.kill();
        killed += 1;
        wait(Instant::now() + Duration::from_millis(rand::random_range(0..400)));
        member.start();
        next = Instant::now() + Duration::from_millis(rand::random_range(200..1200));
    }
    killed
}

#[test]
fn after_a_storm_of_kills_every_acknowledged_recording_is_whole_and_every_session_is_closed_once() {
    let etcd = Etcd::start();
    let setup = Setup { split: true, storage: Some(etcd.storage()), second_auth: true, own_recordings: true, ..Setup::default() };
    let cluster = Cluster::with(setup);
    cluster.allow("could not");
    let (proxy2, addr2) = cluster.another_proxy("proxy2");
    let proxy2 = cluster.watch(proxy2);
    let both = [cluster.proxy_addr(), addr2.clone()];
    let others = ["node2", "node3"].map(|name| cluster.watch(cluster.new_node_by(name, &[&both[0], &both[1]])));
    for member in [&proxy2, &others[0], &others[1]] {
        member.start();
        member.wait_ready();
    }
    let alice = cluster.person("alice", &["access", "auditor"], &[me()]);
    let there = alice.elsewhere("there").at(&addr2);
    there.login().go().ok();
    let hosts = ["node1", "node2", "node3"].map(|host| format!("{}@{host}", me()));
    let reachable =
        || [&alice, &there].iter().for_each(|person| hosts.iter().for_each(|host| drop(until_ok(SOON, || person.ssh(host, "true")))));
    reachable();

    let second = cluster.second_auth();
    let members = [cluster.auth(), &second, cluster.proxy(), &proxy2, cluster.node(), &others[0], &others[1]];
    let (tally, until) = (Mutex::new(Tally::default()), Instant::now() + length());
    let any = || hosts[rand::random_range(0..hosts.len())].clone();
    let killed = std::thread::scope(|scope| {
        for person in [&alice, &alice, &there, &there] {
            let tally = &tally;
            scope.spawn(move || open_sessions(person, any, tally, || Instant::now() >= until));
        }
        rage(&members, until)
    });
    let Tally { tried, failed, opened } = tally.into_inner().unwrap();
    eprintln!("{:?} of storm: {killed} killed, {tried} sessions tried, {} broken", length(), failed.len());
    assert!(killed >= 5 && !opened.is_empty());

    members.iter().for_each(|member| member.wait_ready());
    reachable();
    let auths = [cluster.auth(), &*second];
    let books = eventually(SOON, "every session is closed, and those that were acknowledged are uploaded", || {
        let books = Books::of(&auths);
        let closed = books.with("session.start").is_subset(&books.with("session.end"));
        let uploaded = books.with("session.upload");
        (closed && opened.keys().all(|session| uploaded.contains(session))).then_some(books)
    });
    for session in books.with("session.start").union(&books.with("session.end")) {
        assert_eq!(books.times("session.end", session), 1, "the ends of {session}");
    }
    recorded(&cluster, &auths, &alice, &opened, PLAYED);
    eprintln!("all {} sessions are closed once, {} recordings are whole", books.with("session.end").len(), opened.len());
}
