//! A hundred thousand hosts: filling the store, starting on it, listing, filtering, and what that costs in memory.
//!
//! SQLite is measured at three sizes, to show how figures grow; PostgreSQL and etcd at the largest: past the start, Auth serves lists
//! from memory, whatever the driver. Watches and heartbeats, which go through the driver, are in [`fanout`](crate::fanout).

use crate::{
    World, fanout,
    large::{Filled, Ground, RACK},
    measure::{Contestant, Series, in_turns, ms, once},
    process::{Memory, cpu_of, memory},
    report::{Report, row},
    step,
    stores::{Driver, versions},
};
use client::api::Api;
use std::time::{Duration, Instant};
use types::{Labels, document::Spec as _, kind::Node};

/// What was measured at one size on one driver.
struct Figures {
    driver: Driver,
    hosts: usize,
    filled: Filled,
    /// Auth's and the Proxy's, after the start.
    auth: Memory,
    proxy: Memory,
    pages: Served,
    filtered: Served,
    listed: Series,
    listed_rack: Series,
}

/// Requests over the API, and what each cost the Auth Service.
struct Served {
    took: Series,
    cpu: f64,
}

pub(crate) fn scale(world: &World, report: &mut Report) {
    let sizes = world.scale.large;
    let mut all = Vec::new();
    let mut live = Vec::new();
    let mut empty = None;
    for driver in Driver::wanted() {
        let mut ground = Ground::new(driver);
        if driver == Driver::Sqlite {
            empty = Some(memory(ground.cluster.auth().pid()));
        }
        for hosts in sizes.into_iter().skip(if driver == Driver::Sqlite { 0 } else { 2 }) {
            all.push(measure(world, &mut ground, hosts));
        }
        live.push((driver, fanout::fanout(world, &ground)));
    }
    starting(report, &all);
    listing(report, &all, empty);
    fanout::write(report, sizes[2], &live);
}

fn measure(world: &World, ground: &mut Ground, hosts: usize) -> Figures {
    let driver = ground.server.driver;
    let filled = ground.grow(&world.runtime, hosts);
    step(&format!("{}: {hosts} hosts, Auth ready after {:?}, the Proxy after {:?}", driver.name(), filled.auth, filled.proxy));
    let api = ground.api(&ground.admin(), "tctl");
    let auth = ground.cluster.auth().pid();
    let rack = Labels::from([("rack".to_owned(), "r3".to_owned())]);
    let runs = if hosts > 10_000 { 3 } else { 10 };
    let pages = world.runtime.block_on(served(&api, auth, &Labels::new(), hosts, runs));
    let filtered = world.runtime.block_on(served(&api, auth, &rack, RACK.min(hosts.saturating_sub(3 * RACK)), 20));
    let contestants = [
        Contestant::new("tsh ls", || ground.person.tsh(["ls"])),
        Contestant::new("tsh ls rack=r3", || ground.person.tsh(["ls", "rack=r3"])),
    ];
    let mut of_tsh = in_turns(&contestants, if hosts > 10_000 { 5 } else { 10 }, once).into_iter();
    let (auth, proxy) = (memory(auth), memory(ground.cluster.proxy().pid()));
    let (listed, listed_rack) = (of_tsh.next().expect("two"), of_tsh.next().expect("two"));
    Figures { driver, hosts, filled, auth, proxy, pages, filtered, listed, listed_rack }
}

/// The list as a client gets it, page after page, without reading the documents.
async fn served(api: &Api, auth: u32, labels: &Labels, expected: usize, runs: usize) -> Served {
    let mut took = Series::default();
    let mut cpu = 0.0;
    for run in 0..=runs {
        if run == 1 {
            cpu = cpu_of(auth);
        }
        let began = Instant::now();
        let listed = api.list_raw(Node::KIND, labels).await.expect("a list");
        if run > 0 {
            took.push(began.elapsed());
        }
        assert_eq!(listed.items.len(), expected, "hosts with {labels:?}");
    }
    Served { took, cpu: (cpu_of(auth) - cpu) / runs as f64 }
}

fn starting(report: &mut Report, all: &[Figures]) {
    report.section(
        "A hundred thousand hosts: filling and starting",
        &format!(
            "Each host is two documents, created one by one, fenced, 256 at once, through Auth's own layer over the driver ({}); then Auth and Proxy \
             start on the filled store, with nothing in memory. From the start of the process to \"ready\": Auth has read every document, the \
             Proxy has every host and policy in its cache.",
            versions()
        ),
    );
    let mut rows = vec![row(["", "hosts", "documents per second", "Auth's start, s", "the Proxy's start, s"])];
    for of in all {
        let rate = of.filled.documents as f64 / of.filled.fill.as_secs_f64();
        let cells = [
            of.driver.name(),
            &of.hosts.to_string(),
            &format!("{rate:.0}"),
            &format!("{:.2}", of.filled.auth.as_secs_f64()),
            &format!("{:.2}", of.filled.proxy.as_secs_f64()),
        ];
        rows.push(row(cells));
    }
    report.table(&rows);
    let largest = all.iter().map(|of| of.hosts).max().unwrap_or_default();
    for of in all.iter().filter(|of| of.hosts == largest) {
        let (took, limit) = (of.filled.auth.as_secs_f64(), if of.driver == Driver::Sqlite { 3.0 } else { 5.0 });
        let what = format!("start of Auth on {} hosts, {}", of.hosts, of.driver.name());
        report.target(&what, format!("{took:.2} s"), &format!("< {limit:.0} s"), took < limit);
    }
}

fn listing(report: &mut Report, all: &[Figures], empty: Option<Memory>) {
    report.section(
        "A hundred thousand hosts: lists and memory",
        &format!(
            "All hosts over the API in pages of 2,500, every document read by the client; the {RACK} hosts of one label; the same by `tsh ls`, whole \
             command through the Proxy. Processor ms are the Auth Service's for one list. Memory is what is resident after these."
        ),
    );
    let mut rows = vec![row([
        "",
        "hosts",
        "all, ms",
        "processor ms",
        "one label, ms",
        "processor ms",
        "`tsh ls`, ms",
        "`tsh ls rack=r3`, ms",
        "Auth, MiB",
        "the Proxy, MiB",
    ])];
    for of in all {
        let cells = [
            of.driver.name(),
            &of.hosts.to_string(),
            &ms(of.pages.took.median()),
            &format!("{:.0}", of.pages.cpu * 1000.0),
            &ms(of.filtered.took.median()),
            &format!("{:.1}", of.filtered.cpu * 1000.0),
            &ms(of.listed.median()),
            &ms(of.listed_rack.median()),
            &(of.auth.rss >> 10).to_string(),
            &(of.proxy.rss >> 10).to_string(),
        ];
        rows.push(row(cells));
    }
    report.table(&rows);
    let largest = all.iter().filter(|of| of.driver == Driver::Sqlite).max_by_key(|of| of.hosts);
    let Some((of, empty)) = largest.zip(empty) else { return };
    let each = of.auth.anonymous.saturating_sub(empty.anonymous) as f64 * 1024.0 / (2 * of.hosts) as f64;
    report.line(&format!(
        "Memory of Auth for each document, sqlite, {} hosts: {each:.0} bytes (own, beyond an empty cluster's {} MiB).",
        of.hosts,
        empty.anonymous >> 10
    ));
    let within = |took: Duration, limit: u64| took < Duration::from_millis(limit);
    let listed = of.listed.median();
    report.target(&format!("`tsh ls` of {} hosts", of.hosts), format!("{} ms", ms(listed)), "< 1500 ms", within(listed, 1500));
    let filtered = of.filtered.took.median();
    report.target(
        &format!("one label of {} hosts, over the API", of.hosts),
        format!("{} ms", ms(filtered)),
        "< 50 ms",
        within(filtered, 50),
    );
}
