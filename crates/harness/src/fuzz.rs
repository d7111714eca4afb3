//! Fuzzing on a stable compiler: throws broken bytes at a parser until time is up, and keeps what breaks it.
//!
//! A target is a name and a function from bytes to how far it got. Inputs are mutations of the corpus in
//! `fuzz/corpus/<target>/`, which is replayed first; an input that gets somewhere new joins the pool it mutates. A target
//! fails when it panics, holds more than 64 MiB at once, or does not come back. The same seed and corpus give the same inputs.
//!
//! The failing input is written to the corpus, so that it is tried first for ever after. An input that kills the whole
//! process (stack overflow, an allocation the machine refuses) is left in `fuzz/current/` and replayed by the next run.
//! Libraries for this on stable throw random bytes, or need a nightly compiler: neither reaches the inside of a frame here.

use allocation_counter::{AllocationInfo, measure};
use sha2::{Digest, Sha256};
use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::fs::{self, File};
use std::io::{self, Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, Instant};

/// What one input may hold on the heap at any moment, beyond what was there before, in bytes.
pub const MEMORY_CAP: u64 = 64 << 20;
/// How long one input may take before the target counts as stuck.
pub const STUCK_AFTER: Duration = Duration::from_secs(10);
const LONGEST_INPUT: usize = 64 << 10;
const MOST_IN_POOL: usize = 4096;
/// Values that parsers get wrong: signs, halves, and the ends of each width.
const EDGES: [u64; 14] =
    [0, 1, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x1_0000, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0x7fff_ffff_ffff_ffff];

/// How far an input got, so that one which gets elsewhere is worth mutating further.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Reached(u64);

impl Reached {
    /// From what the parser answered: its `Debug` text without digits, so that "length 7" and "length 8" are one place.
    pub fn of(answer: &impl fmt::Debug) -> Reached {
        let text = format!("{answer:?}");
        let place = text.bytes().filter(|byte| !byte.is_ascii_digit());
        // FNV-1a: quick, and the same everywhere.
        Reached(place.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)))
    }
}

/// One parser of bytes that a stranger can send.
#[derive(Clone, Copy)]
pub struct Target {
    /// Also the name of its folder in the corpus.
    pub name: &'static str,
    /// Words of the format: magic numbers, keywords, names of fields.
    pub dictionary: &'static [&'static [u8]],
    /// Must come back for every input, without a panic.
    pub run: fn(&[u8]) -> Reached,
}

/// When to stop, and where to begin.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    pub time: Duration,
    pub runs: u64,
    pub seed: u64,
    /// Write inputs that got somewhere new into the corpus.
    pub keep: bool,
}

impl Budget {
    /// A brief run for every test run; `FUZZ_SECONDS` (per target), `FUZZ_SEED` and `FUZZ_KEEP=1` make it a long one.
    pub fn from_env() -> Budget {
        let number = |name: &str| std::env::var(name).ok().and_then(|text| text.trim().parse::<u64>().ok());
        let seed = number("FUZZ_SEED").unwrap_or(1);
        let keep = number("FUZZ_KEEP") == Some(1);
        match number("FUZZ_SECONDS") {
            Some(seconds) => Budget { time: Duration::from_secs(seconds), runs: u64::MAX, seed, keep },
            None => Budget { time: Duration::from_secs(2), runs: 20_000, seed, keep },
        }
    }
}

/// A run that found nothing.
#[derive(Clone, Copy, Debug)]
pub struct Report {
    pub runs: u64,
    /// How many different places were reached.
    pub places: usize,
    /// The most that one input held, in bytes.
    pub peak: u64,
}

/// What broke, and the file that breaks it again.
#[derive(Debug)]
pub struct Fault {
    pub target: &'static str,
    pub cause: Cause,
    pub input: PathBuf,
}

#[derive(Debug)]
pub enum Cause {
    Panicked(String),
    Held { bytes: u64 },
    Stuck,
    Files(io::Error),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "fuzz target {}: ", self.target)?;
        match &self.cause {
            Cause::Panicked(text) => write!(f, "panicked: {text}")?,
            Cause::Held { bytes } => write!(f, "held {bytes} bytes, may hold {MEMORY_CAP}")?,
            Cause::Stuck => write!(f, "did not come back within {} s", STUCK_AFTER.as_secs())?,
            Cause::Files(error) => write!(f, "{error}")?,
        }
        write!(f, " (input: {})", self.input.display())
    }
}

impl std::error::Error for Fault {}

/// Fuzzes one target within its budget; `home` is the repository's `fuzz` folder.
pub fn fuzz(target: Target, home: &Path, budget: Budget) -> Result<Report, Fault> {
    let files = Files::open(target.name, home).map_err(|error| Fault {
        target: target.name,
        cause: Cause::Files(error),
        input: home.join("corpus").join(target.name),
    })?;
    let (current, corpus) = (files.current_path.clone(), files.corpus.clone());
    let progress = Arc::new(AtomicU64::new(0));
    let (sender, receiver) = sync_channel(1);
    let seen = Arc::clone(&progress);
    // Its own thread, so that one which never comes back can be left behind.
    let worker = std::thread::Builder::new().name(format!("fuzz-{}", target.name));
    let started = worker.spawn(move || drop(sender.send(Run::new(target, files, budget).until_done(&seen))));
    let fault = |cause, input| Fault { target: target.name, cause, input };
    if let Err(error) = started {
        return Err(fault(Cause::Files(error), corpus));
    }
    let mut last = 0;
    loop {
        match receiver.recv_timeout(STUCK_AFTER) {
            Ok(outcome) => return outcome,
            Err(RecvTimeoutError::Disconnected) => return Err(fault(Cause::Panicked("the driver itself".into()), current)),
            Err(RecvTimeoutError::Timeout) => {
                let now = progress.load(Ordering::Relaxed);
                if now == last {
                    return Err(fault(Cause::Stuck, current));
                }
                last = now;
            }
        }
    }
}

/// The corpus, and the one input that is being tried.
struct Files {
    corpus: PathBuf,
    inputs: VecDeque<Vec<u8>>,
    current_path: PathBuf,
    current: File,
}

impl Files {
    fn open(name: &str, home: &Path) -> io::Result<Files> {
        let corpus = home.join("corpus").join(name);
        fs::create_dir_all(&corpus)?;
        fs::create_dir_all(home.join("current"))?;
        let mut paths: Vec<PathBuf> = fs::read_dir(&corpus)?.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?;
        paths.sort();
        let mut inputs = paths.iter().filter(|path| path.is_file()).map(fs::read).collect::<io::Result<VecDeque<_>>>()?;
        let current_path = home.join("current").join(name);
        // A run that ended well removes it: what is here killed its process.
        if let Ok(killer) = fs::read(&current_path) {
            inputs.push_front(killer);
        }
        let current = File::create(&current_path)?;
        Ok(Files { corpus, inputs, current_path, current })
    }

    fn note_current(&mut self, input: &[u8]) -> io::Result<()> {
        self.current.seek(SeekFrom::Start(0))?;
        self.current.write_all(input)?;
        self.current.set_len(input.len() as u64)
    }

    fn keep(&self, kind: &str, input: &[u8]) -> io::Result<PathBuf> {
        let digest = data_encoding::HEXLOWER.encode(Sha256::digest(input).get(..8).unwrap_or_default());
        let path = self.corpus.join(format!("{kind}-{digest}"));
        fs::write(&path, input)?;
        Ok(path)
    }
}

struct Run {
    target: Target,
    files: Files,
    budget: Budget,
    dice: Dice,
    pool: Vec<Vec<u8>>,
    places: HashSet<Reached>,
    peak: u64,
}

impl Run {
    fn new(target: Target, files: Files, budget: Budget) -> Run {
        Run { target, files, budget, dice: Dice(budget.seed), pool: vec![Vec::new()], places: HashSet::new(), peak: 0 }
    }

    fn until_done(mut self, progress: &AtomicU64) -> Result<Report, Fault> {
        let end = Instant::now() + self.budget.time;
        let mut runs = 0;
        while let Some(input) = self.files.inputs.pop_front() {
            self.one(&input)?;
            self.pool.push(input);
            runs += 1;
            progress.store(runs, Ordering::Relaxed);
        }
        while runs < self.budget.runs && Instant::now() < end {
            let input = mutate(&self.pool, self.target.dictionary, &mut self.dice);
            let is_new = self.one(&input)?;
            if is_new && self.budget.keep {
                self.files.keep("found", &input).map_err(|error| self.fault(Cause::Files(error), self.files.corpus.clone()))?;
            }
            if is_new && self.pool.len() < MOST_IN_POOL {
                self.pool.push(input);
            }
            runs += 1;
            progress.store(runs, Ordering::Relaxed);
        }
        let _ = fs::remove_file(&self.files.current_path);
        Ok(Report { runs, places: self.places.len(), peak: self.peak })
    }

    /// Tries one input; whether it reached a new place.
    fn one(&mut self, input: &[u8]) -> Result<bool, Fault> {
        self.files.note_current(input).map_err(|error| self.fault(Cause::Files(error), self.files.current_path.clone()))?;
        let run = self.target.run;
        let mut answer = None;
        let held: AllocationInfo = measure(|| answer = Some(catch_unwind(AssertUnwindSafe(|| run(input)))));
        self.peak = self.peak.max(held.bytes_max);
        let cause = match answer {
            Some(Ok(_)) if held.bytes_max > MEMORY_CAP => Cause::Held { bytes: held.bytes_max },
            Some(Ok(reached)) => return Ok(self.places.insert(reached)),
            Some(Err(panic)) => Cause::Panicked(panic_text(panic.as_ref())),
            None => Cause::Panicked("the input was not tried".into()),
        };
        let kept = self.files.keep("fault", input).unwrap_or_else(|_| self.files.current_path.clone());
        if kept != self.files.current_path {
            let _ = fs::remove_file(&self.files.current_path);
        }
        Err(self.fault(cause, kept))
    }

    fn fault(&self, cause: Cause, input: PathBuf) -> Fault {
        Fault { target: self.target.name, cause, input }
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("without words").to_owned()
}

/// SplitMix64: the numbers must be the same for ever, whatever a library does with its generators.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 to `end`, without `end`; 0 when `end` is 0.
    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.roll() % (end.max(1) as u64)).unwrap_or(0)
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        of.get(self.below(of.len()))
    }

    /// A stretch of a text of this length, mostly short.
    fn stretch(&mut self, length: usize) -> std::ops::Range<usize> {
        let start = self.below(length + 1);
        let longest = if self.below(8) == 0 { length } else { 16 };
        start..(start + self.below(longest + 1)).min(length)
    }
}

/// A new input: one of the pool with one to six changes.
fn mutate(pool: &[Vec<u8>], dictionary: &[&[u8]], dice: &mut Dice) -> Vec<u8> {
    let mut input = dice.pick(pool).cloned().unwrap_or_default();
    for _ in 0..=dice.below(6) {
        change(&mut input, pool, dictionary, dice);
    }
    input.truncate(LONGEST_INPUT);
    input
}

fn change(input: &mut Vec<u8>, pool: &[Vec<u8>], dictionary: &[&[u8]], dice: &mut Dice) {
    let at = dice.below(input.len() + 1);
    match dice.below(10) {
        0 => flip_bit(input, at, dice),
        1 => put(input, at, &[u8::try_from(dice.below(256)).unwrap_or(0)]),
        2 => input.truncate(at),
        3 => drop(input.drain(dice.stretch(input.len()))),
        4 => insert(input, at, &(0..=dice.below(16)).map(|_| dice.roll().to_le_bytes()[0]).collect::<Vec<u8>>()),
        5 => {
            let again = input.get(dice.stretch(input.len())).unwrap_or_default().to_vec();
            insert(input, at, &again);
        }
        6 => {
            let other = dice.pick(pool).map(Vec::as_slice).unwrap_or_default();
            let tail = other.get(dice.below(other.len() + 1)..).unwrap_or_default();
            input.truncate(at);
            input.extend_from_slice(tail);
        }
        7 => {
            let word = dice.pick(dictionary).copied().unwrap_or(b"\0");
            if dice.below(2) == 0 { insert(input, at, word) } else { put(input, at, word) }
        }
        _ => change_length(input, at, dice),
    }
}

/// Writes a number where a length may stand: an edge, or about as many bytes as really follow.
fn change_length(input: &mut Vec<u8>, at: usize, dice: &mut Dice) {
    let follow = input.len().saturating_sub(at) as u64;
    let near = [follow, follow.wrapping_sub(1), follow + 1, follow.wrapping_sub(4), follow.wrapping_sub(2), input.len() as u64];
    let value = *if dice.below(2) == 0 { dice.pick(&EDGES) } else { dice.pick(&near) }.unwrap_or(&0);
    let width = *dice.pick(&[1, 2, 4, 4, 8]).unwrap_or(&4);
    let (big, little) = (value.to_be_bytes(), value.to_le_bytes());
    let bytes = if dice.below(3) == 0 { little.get(..width) } else { big.get(8 - width..) };
    put(input, at, bytes.unwrap_or_default());
}

fn flip_bit(input: &mut [u8], at: usize, dice: &mut Dice) {
    if let Some(byte) = input.get_mut(at) {
        *byte ^= 1 << dice.below(8);
    }
}

/// Overwrites, and lengthens where it goes past the end.
fn put(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let end = (at + bytes.len()).min(input.len());
    input.splice(at.min(end)..end, bytes.iter().copied());
}

fn insert(input: &mut Vec<u8>, at: usize, bytes: &[u8]) {
    let at = at.min(input.len());
    input.splice(at..at, bytes.iter().copied());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn brief() -> Budget {
        Budget { time: Duration::from_secs(20), runs: 200_000, seed: 7, keep: false }
    }

    fn with_corpus(name: &'static str, seed: &[u8], run: fn(&[u8]) -> Reached) -> (tempfile::TempDir, Result<Report, Fault>) {
        let home = tempfile::tempdir().unwrap();
        fs::create_dir_all(home.path().join("corpus").join(name)).unwrap();
        fs::write(home.path().join("corpus").join(name).join("seed"), seed).unwrap();
        let outcome = fuzz(Target { name, dictionary: &[b"LOCK"], run }, home.path(), brief());
        (home, outcome)
    }

    #[test]
    fn a_panic_behind_a_magic_word_and_a_length_is_found_and_kept() {
        fn frail(data: &[u8]) -> Reached {
            let Some(rest) = data.strip_prefix(b"LOCK") else { return Reached::of(&"no magic") };
            let Some((length, body)) = rest.split_first() else { return Reached::of(&"no length") };
            assert!(usize::from(*length) != body.len() + 1, "off by one");
            Reached::of(&"read")
        }
        let (home, outcome) = with_corpus("frail", b"", frail);
        let fault = outcome.unwrap_err();
        assert!(matches!(&fault.cause, Cause::Panicked(text) if text.contains("off by one")), "{fault}");
        assert!(fs::read(&fault.input).unwrap().starts_with(b"LOCK"));
        let again = fuzz(Target { name: "frail", dictionary: &[], run: frail }, home.path(), Budget { runs: 0, ..brief() });
        assert!(again.is_err(), "what was found is replayed first");
    }

    #[test]
    fn an_allocation_from_an_untrusted_length_is_found() {
        fn trusting(data: &[u8]) -> Reached {
            let length = data.first_chunk().map_or(0, |bytes| u32::from_be_bytes(*bytes)) as usize;
            let buffer: Vec<u8> = Vec::with_capacity(length.min(1 << 30));
            Reached::of(&(buffer.capacity() > 0))
        }
        let (_home, outcome) = with_corpus("trusting", b"\0\0\0\x04body", trusting);
        assert!(matches!(outcome.unwrap_err().cause, Cause::Held { .. }));
    }

    #[test]
    fn the_same_seed_gives_the_same_inputs() {
        let inputs = |seed| {
            let mut dice = Dice(seed);
            (0..100).map(|_| mutate(&[b"some words".to_vec()], &[b"LOCK"], &mut dice)).collect::<Vec<_>>()
        };
        assert_eq!(inputs(3), inputs(3));
        assert_ne!(inputs(3), inputs(4));
    }

    #[test]
    fn a_sound_target_passes_and_leaves_nothing_behind() {
        let (home, outcome) = with_corpus("sound", b"abc", |data| Reached::of(&data.first()));
        assert_eq!(outcome.unwrap().runs, 200_000);
        assert!(!home.path().join("current/sound").exists());
        assert_eq!(fs::read_dir(home.path().join("corpus/sound")).unwrap().count(), 1);
    }
}
