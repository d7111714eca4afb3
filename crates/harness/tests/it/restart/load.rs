//! Whatever may be going on while a process is replaced, and whether it went on.
//!
//! What was begun before is held against the truth at its end: every counter counted every number, every file arrived, every word came
//! back. What is begun meanwhile, again and again, must succeed each time. Recordings are compared with what users saw.

use harness::{Cluster, Person, Run, binary, cluster::free_port, eventually, person::me, process::Running};
use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

const SOON: Duration = Duration::from_secs(60);
/// What a new session or request may take while processes are replaced, on a machine that is busy with all this.
const PATIENCE: Duration = Duration::from_secs(15);

/// How many sessions count.
fn sessions() -> usize {
    std::env::var("LOCKGATE_RESTART_SESSIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(8)
}

/// Echoes what is sent to it, for ever.
fn echo_server() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    port
}

/// Something done again and again beside the test; what went wrong, and how often it went well.
struct Again {
    thread: JoinHandle<()>,
    done: Arc<AtomicU64>,
    faults: Arc<Mutex<Vec<String>>>,
}

impl Again {
    fn start(end: &Arc<AtomicBool>, quiet: &Arc<RwLock<()>>, mut act: impl FnMut(u64) -> Result<(), String> + Send + 'static) -> Again {
        let (done, faults, end, quiet) = (Arc::<AtomicU64>::default(), Arc::<Mutex<Vec<String>>>::default(), end.clone(), quiet.clone());
        let (count, wrong) = (done.clone(), faults.clone());
        let thread = std::thread::spawn(move || {
            while !end.load(SeqCst) {
                let _not_quiet = quiet.read().unwrap();
                let begun = Instant::now();
                match act(count.load(SeqCst)) {
                    Ok(()) if begun.elapsed() > PATIENCE => wrong.lock().unwrap().push(format!("it took {:?}", begun.elapsed())),
                    Ok(()) => {}
                    Err(fault) => wrong.lock().unwrap().push(fault),
                }
                count.fetch_add(1, SeqCst);
            }
        });
        Again { thread, done, faults }
    }
    fn faults(&self) -> Vec<String> {
        self.faults.lock().unwrap().clone()
    }
    fn goes_on(&self, what: &str) {
        let done = self.done.load(SeqCst);
        eventually(SOON, what, || (self.done.load(SeqCst) > done + 1).then_some(()));
    }
}

pub(crate) struct Load {
    go: PathBuf,
    counters: Vec<Running>,
    copies: Vec<Running>,
    forward: Running,
    source: PathBuf,
    arrived: PathBuf,
    end: Arc<AtomicBool>,
    quiet: Arc<RwLock<()>>,
    /// A forwarded connection, sessions, requests.
    again: Vec<(&'static str, Again)>,
}

fn result(run: Run, want: &str) -> Result<(), String> {
    let ran = run.go();
    if ran.status == 0 && ran.text().contains(want) { Ok(()) } else { Err(ran.to_string()) }
}

/// Says a number to an echo and hears it again.
fn talk(stream: &mut TcpStream, number: u64) -> Result<(), String> {
    let word = number.to_be_bytes();
    let mut answer = [0; 8];
    stream.write_all(&word).and_then(|()| stream.read_exact(&mut answer)).map_err(|error| format!("word {number}: {error}"))?;
    if answer == word { Ok(()) } else { Err(format!("word {number} came back as {answer:?}")) }
}

fn connect(port: u16) -> Result<TcpStream, String> {
    let stream = TcpStream::connect(("127.0.0.1", port)).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Ok(stream)
}

impl Load {
    /// Begins everything, and returns when everything has begun.
    pub(crate) fn start(cluster: &Cluster, alice: &Person) -> Load {
        let (home, target) = (cluster.home.clone(), format!("{}@node1", me()));
        let go = cluster.home.join("go");
        // All together some hundred lines a second, however many count.
        let pause = 0.05 * (sessions() as f64 / 10.0).max(1.0);
        let counting = format!("i=0; while [ ! -e {} ]; do echo $i; i=$((i+1)); sleep {pause}; done; echo end $i", go.display());
        let mut counters: Vec<Running> = Vec::new();
        for number in 0..sessions() {
            let counter = Running::start(&alice.ssh(&target, &counting).into_command(), &home.join(format!("counter-{number}.log")));
            // A few at once: key exchanges of hundreds would be the test.
            if let Some(before) = number.checked_sub(3) {
                eventually(SOON, "a session counts", || counters[before].log().contains("0\n").then_some(()));
            }
            counters.push(counter);
        }
        let (source, arrived) = (home.join("source"), cluster.open().join("arrived"));
        fs::create_dir(&source).unwrap();
        let noise: Vec<u8> = (0..6_000_000u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 11) as u8).collect();
        fs::write(source.join("large"), &noise).unwrap();
        (0..50).for_each(|number| fs::write(source.join(format!("small-{number}")), &noise[..number * 100]).unwrap());
        let over = format!("env LOCKGATE_HOME={} {} tsh ssh", alice.home.display(), binary::current().display());
        let copies = (0..2)
            .map(|number| {
                let to = format!("{target}:{}-{number}/", arrived.display());
                let run = Run::new("rsync").args(["-a", "--bwlimit=300", "-e", &over]).arg(format!("{}/", source.display())).arg(to);
                Running::start(&run.into_command(), &home.join(format!("copy-{number}.log")))
            })
            .collect();
        let (echo, port) = (echo_server(), free_port());
        let forwarding = alice.tsh(["ssh", "-N", "-L", &format!("{port}:127.0.0.1:{echo}"), &target]);
        let forward = Running::start(&forwarding.into_command(), &home.join("forward.log"));
        let mut open = eventually(SOON, "the port is forwarded", || {
            let mut stream = connect(port).ok()?;
            talk(&mut stream, 0).ok().map(|()| stream)
        });
        for counter in &counters {
            eventually(SOON, "a session counts", || counter.log().contains("\n3\n").then_some(()));
        }
        let (end, quiet) = (Arc::new(AtomicBool::new(false)), Arc::new(RwLock::new(())));
        // Commands that can be sent to another thread.
        let words = |run: Run| {
            let command = run.into_command();
            let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).map(ToOwned::to_owned).collect();
            let env: Vec<_> = command.get_envs().filter_map(|(name, value)| Some((name.to_str()?.to_owned(), value?.to_owned()))).collect();
            move || env.iter().fold(Run::new(&words[0]).args(&words[1..]), |run, (name, value)| run.env(name, value))
        };
        let (new, list, own) = (words(alice.ssh(&target, "echo well")), words(cluster.tctl(["nodes", "ls"])), words(alice.tsh(["ls"])));
        let again = vec![
            ("a forwarded connection", Again::start(&end, &quiet, move |number| talk(&mut open, number))),
            ("new forwarded connections", Again::start(&end, &quiet, move |number| talk(&mut connect(port)?, number))),
            ("new sessions", Again::start(&end, &quiet, move |_| result(new(), "well"))),
            ("an administrator's requests", Again::start(&end, &quiet, move |_| result(list(), "node1"))),
            ("a user's requests through the Proxy", Again::start(&end, &quiet, move |_| result(own(), "node1"))),
        ];
        Load { go, counters, copies, forward, source, arrived, end, quiet, again }
    }

    /// Everything goes on at this moment.
    #[track_caller]
    pub(crate) fn goes_on(&self) {
        let seen: Vec<usize> = self.counters.iter().map(|counter| counter.log().len()).collect();
        for (counter, seen) in self.counters.iter().zip(seen) {
            eventually(SOON, "a session counts on", || (counter.log().len() > seen).then_some(()));
        }
        for (what, again) in &self.again {
            again.goes_on(what);
            assert_eq!(again.faults(), Vec::<String>::new(), "{what}");
        }
    }

    /// Does this while nothing new is begun; what has begun goes on.
    pub(crate) fn quietly<T>(&self, act: impl FnOnce() -> T) -> T {
        let _quiet = self.quiet.write().unwrap();
        act()
    }

    /// Ends everything, and holds it against the truth.
    #[track_caller]
    pub(crate) fn finish(mut self, cluster: &Cluster, alice: &Person) {
        for copy in &mut self.copies {
            assert_eq!(copy.wait(SOON), 0, "{}", copy.log());
        }
        for number in 0..self.copies.len() {
            let arrived = PathBuf::from(format!("{}-{number}", self.arrived.display()));
            Run::new("diff").arg("-r").arg(&self.source).arg(arrived).go().ok();
        }
        fs::write(&self.go, "").unwrap();
        let mut seen = Vec::new();
        for counter in &mut self.counters {
            assert_eq!(counter.wait(SOON), 0, "{}", counter.log());
            exact(&counter.log());
            seen.push(counter.log());
        }
        self.end.store(true, SeqCst);
        for (what, again) in self.again {
            let Again { thread, done, faults } = again;
            thread.join().unwrap();
            let (done, faults) = (done.load(SeqCst), faults.lock().unwrap().clone());
            eprintln!("{what}: {done} times");
            assert!(faults.is_empty(), "{what}, {} of {done}: {}", faults.len(), faults.join("\n"));
        }
        self.forward.kill();
        recorded(cluster, alice, seen);
    }
}

/// Every number once, in order, and the last one told at the end.
fn exact(log: &str) {
    let lines: Vec<&str> = log.lines().collect();
    let (end, numbers) = lines.split_last().unwrap();
    assert_eq!(*end, format!("end {}", numbers.len()), "{log}");
    for (at, line) in numbers.iter().enumerate() {
        assert_eq!(*line, at.to_string(), "{log}");
    }
}

/// What each counter showed is what its recording shows, whole, and its end is in the audit log.
fn recorded(cluster: &Cluster, alice: &Person, mut seen: Vec<String>) {
    seen.sort();
    let ids = |name: &str| -> Vec<String> {
        let events = cluster.events(&[name]);
        events.iter().filter_map(|event| event["sid"].as_str().map(str::to_owned)).collect()
    };
    let begun = cluster.events(&["session.start"]);
    let counting = begun.iter().filter(|event| event["command"].as_str().is_some_and(|command| command.contains("echo end $i")));
    let counting: Vec<String> = counting.filter_map(|event| event["sid"].as_str().map(str::to_owned)).collect();
    assert_eq!(counting.len(), seen.len());
    eventually(SOON, "every session has ended and its recording has arrived", || {
        let (ended, arrived) = (ids("session.end"), ids("session.upload"));
        counting.iter().all(|id| ended.contains(id) && arrived.contains(id)).then_some(())
    });
    let mut recordings: Vec<String> = counting.iter().map(|id| alice.tsh(["play", id, "--format=text"]).go().ok()).collect();
    recordings.sort();
    assert_eq!(recordings, seen);
    assert!(spool_is_empty(&cluster.node().data_dir.join("spool")), "nothing is left behind");
}

fn spool_is_empty(spool: &Path) -> bool {
    let left = || fs::read_dir(spool).unwrap().flatten().filter(|entry| entry.file_name().to_string_lossy().ends_with(".rec")).count();
    eventually(SOON, "the spool is empty", || (left() == 0).then_some(true))
}
