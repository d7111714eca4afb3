//! `tsh recordings ls`, `tsh play`, `tsh recordings export`: recorded sessions, from the cluster or from a file.
//!
//! The player is a small state machine ([`Player`]) over entries and keys: time is passed in, so its tests do not sleep.

use super::{Global, PlayFormat, profile, terminal};
use crate::{
    exit::{Could as _, Failure, Outcome},
    output::{Format, Table, show, write_out},
};
use serde_json::json;
use std::{
    io::{IsTerminal as _, Read as _, Write as _},
    path::Path,
    process::ExitCode,
    time::Duration,
};
use types::{Code, Public, Time, Ttl};
use wire::recording::{Entry, Header, Reader, What};

/// Which recordings `ls` shows.
pub(crate) struct Window {
    pub(crate) from_utc: Option<String>,
    pub(crate) to_utc: Option<String>,
    pub(crate) last: Option<Ttl>,
    pub(crate) limit: u32,
}

/// `tsh recordings ls`
pub(crate) fn recordings(global: &Global, window: &Window, format: Format) -> Outcome {
    let (from, to) = bounds(window, Time::from(std::time::SystemTime::now()))?;
    let session = profile::open(global)?;
    let text = |time: Option<Time>| time.map(|time| time.to_string()).unwrap_or_default();
    let (list, notes) = session.run(session.api().recordings(&text(from), &text(to), window.limit)).could("list the recordings")?;
    let mut table = Table::new(&["ID", "Type", "Participants", "Hostname", "Timestamp"]);
    for one in &list {
        table.row([
            one.session.to_string(),
            one.kind.clone(),
            one.user.clone(),
            one.hostname.clone(),
            one.started.whole_seconds().to_string(),
        ]);
    }
    show(format, &table, "No recordings.", &list).could("print the recordings")?;
    notes.iter().for_each(|note| eprintln!("warning: {note}"));
    Ok(ExitCode::SUCCESS)
}

fn bounds(window: &Window, now: Time) -> Result<(Option<Time>, Option<Time>), Failure> {
    let parse = |text: &Option<String>| text.as_deref().map(str::parse::<Time>).transpose().could("read the time");
    match window.last {
        Some(last) => Ok((Some(now.minus(last.0)), None)),
        None => Ok((parse(&window.from_utc)?, parse(&window.to_utc)?)),
    }
}

/// `tsh play`
pub(crate) fn play(global: &Global, session: &str, speed: f64, max_pause: Option<Ttl>, format: PlayFormat) -> Outcome {
    if !(0.01..=1000.0).contains(&speed) {
        return Err(Failure::new("play the session", crate::exit::usage("--speed is between 0.01 and 1000")));
    }
    let entries = load(global, session)?;
    match format {
        PlayFormat::Text => print_text(&entries).could("print the session")?,
        PlayFormat::Json => entries.iter().try_for_each(|entry| write_out(&format!("{}\n", as_json(entry)))).could("print the session")?,
        PlayFormat::Yaml => {
            crate::output::show_value(Format::Yaml, &entries.iter().map(as_json).collect::<Vec<_>>()).could("print the session")?
        }
        PlayFormat::Pty => perform(&entries, speed, max_pause.map(|pause| pause.0)).could("play the session")?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `tsh recordings export`
pub(crate) fn export(global: &Global, session: &str, out: Option<&Path>) -> Outcome {
    let text = asciicast(&load(global, session)?);
    match out {
        None => write_out(&text).could("print the recording")?,
        Some(path) => {
            std::fs::write(path, text).could(format!("write {}", path.display()))?;
            write_out(&format!("Wrote {}\n", path.display())).could("print")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A whole recording: a file when one of that name exists, else from the cluster.
fn load(global: &Global, session: &str) -> Result<Vec<Entry>, Failure> {
    let mut reader = Reader::new();
    let mut entries = Vec::new();
    let mut take = |bytes: &[u8]| -> Result<(), Public> {
        reader.push(bytes);
        while let Some(entry) = reader.next().map_err(|error| Public::new(Code::RecordingBroken, error.to_string()))? {
            entries.push(entry);
        }
        Ok(())
    };
    if Path::new(session).is_file() {
        let mut file = std::fs::File::open(session).could(format!("open {session}"))?;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let count = file.read(&mut buffer).could(format!("read {session}"))?;
            if count == 0 {
                break;
            }
            take(buffer.get(..count).unwrap_or_default()).could(format!("read {session}"))?;
        }
    } else {
        let id = session.parse().could("find the session")?;
        let opened = profile::open(global)?;
        let read = async {
            let mut chunks = opened.api().read_recording(id, 0).await?;
            while let Some(bytes) = chunks.next().await? {
                take(&bytes)?;
            }
            Ok::<_, Public>(())
        };
        opened.run(read).could(format!("read the recording of session {session}"))?;
    }
    Ok(entries)
}

fn print_text(entries: &[Entry]) -> Result<(), Public> {
    let mut out = std::io::stdout().lock();
    for entry in entries {
        let written = match &entry.what {
            What::Output(bytes) | What::Stderr(bytes) => out.write_all(bytes),
            What::Omitted { bytes } => writeln!(out, "\n[{bytes} bytes were not recorded]"),
            What::Header(_) | What::Resize { .. } | What::End(_) | What::Unknown(_) => Ok(()),
        };
        written.map_err(|error| Public::new(Code::Internal, error.to_string()))?;
    }
    out.flush().map_err(|error| Public::new(Code::Internal, error.to_string()))
}

fn as_json(entry: &Entry) -> serde_json::Value {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let mut value = match &entry.what {
        What::Header(header) => json!({"type": "start", "header": header}),
        What::Output(bytes) => json!({"type": "print", "data": text(bytes)}),
        What::Stderr(bytes) => json!({"type": "stderr", "data": text(bytes)}),
        What::Resize { width, height } => json!({"type": "resize", "width": width, "height": height}),
        What::Omitted { bytes } => json!({"type": "omitted", "bytes": bytes}),
        What::End(end) => json!({"type": "end", "status": end.status, "signal": end.signal}),
        What::Unknown(kind) => json!({"type": "unknown", "kind": kind}),
    };
    if let Some(object) = value.as_object_mut() {
        object.insert("at_ms".into(), entry.at.into());
    }
    value
}

/// asciicast v2 (docs.asciinema.org/manual/asciicast/v2): a header line, then `[seconds, "o", text]`.
pub(crate) fn asciicast(entries: &[Entry]) -> String {
    let header = entries.iter().find_map(|entry| match &entry.what {
        What::Header(header) => Some(header.as_ref()),
        _ => None,
    });
    let mut out = format!("{}\n", asciicast_header(header));
    let mut decoder = Utf8::default();
    for entry in entries {
        let seconds = entry.at as f64 / 1000.0;
        let line = match &entry.what {
            What::Output(bytes) | What::Stderr(bytes) => json!([seconds, "o", decoder.text(bytes)]),
            What::Resize { width, height } => json!([seconds, "r", format!("{width}x{height}")]),
            What::Header(_) | What::Omitted { .. } | What::End(_) | What::Unknown(_) => continue,
        };
        out.push_str(&format!("{line}\n"));
    }
    out
}

fn asciicast_header(header: Option<&Header>) -> serde_json::Value {
    let or = |size: u32, default: u32| if size == 0 { default } else { size };
    match header {
        None => json!({"version": 2, "width": 80, "height": 24}),
        Some(header) => {
            let title = format!("{}@{} as {}", header.recording.user, header.recording.hostname, header.recording.login);
            json!({"version": 2, "width": or(header.width, 80), "height": or(header.height, 24), "timestamp": header.recording.started.unix(), "title": title, "env": {"TERM": header.term}})
        }
    }
}

/// Text out of bytes cut at any place: a character split between two entries is kept whole.
#[derive(Default)]
struct Utf8 {
    left: Vec<u8>,
}

impl Utf8 {
    fn text(&mut self, bytes: &[u8]) -> String {
        self.left.extend_from_slice(bytes);
        let mut out = String::new();
        loop {
            match std::str::from_utf8(&self.left) {
                Ok(text) => {
                    out.push_str(text);
                    self.left.clear();
                    return out;
                }
                Err(error) => {
                    let good = error.valid_up_to();
                    out.push_str(&String::from_utf8_lossy(self.left.get(..good).unwrap_or_default()));
                    let Some(bad) = error.error_len() else {
                        self.left.drain(..good);
                        return out;
                    };
                    out.push('\u{fffd}');
                    self.left.drain(..good.saturating_add(bad));
                }
            }
        }
    }
}

/// What the player waits for.
#[derive(Debug, PartialEq)]
enum Step {
    /// Show the next entry after so long, unless a key comes first.
    Wait(Duration),
    /// Paused: only a key goes on.
    Paused,
    Done,
}

/// Where a playback is: which entry comes next, and how much of the pause before it is left.
struct Player<'a> {
    entries: &'a [Entry],
    next: usize,
    left: Duration,
    speed: f64,
    paused: bool,
    max_pause: Option<Duration>,
}

impl<'a> Player<'a> {
    fn new(entries: &'a [Entry], speed: f64, max_pause: Option<Duration>) -> Self {
        Self { entries, next: 0, left: Duration::ZERO, speed, paused: false, max_pause }
    }
    fn step(&self) -> Step {
        if self.next >= self.entries.len() {
            Step::Done
        } else if self.paused {
            Step::Paused
        } else {
            Step::Wait(self.left.div_f64(self.speed))
        }
    }
    /// The entry that is due; the pause before the one after it begins.
    fn advance(&mut self) -> Option<&'a Entry> {
        let entry = self.entries.get(self.next)?;
        self.next = self.next.saturating_add(1);
        let pause = self.entries.get(self.next).map_or(0, |after| after.at.saturating_sub(entry.at));
        self.left = Duration::from_millis(pause).min(self.max_pause.unwrap_or(Duration::MAX));
        Some(entry)
    }
    /// So much wall-clock time passed before a key came.
    fn elapsed(&mut self, wall: Duration) {
        if !self.paused {
            self.left = self.left.saturating_sub(wall.mul_f64(self.speed));
        }
    }
    /// Returns false when the playback should end.
    fn key(&mut self, key: u8) -> bool {
        match key {
            b' ' => self.paused = !self.paused,
            b'+' | b'=' => self.speed = (self.speed * 2.0).min(1000.0),
            b'-' => self.speed = (self.speed / 2.0).max(0.01),
            b'.' => self.left = Duration::ZERO,
            b'q' | 3 | 4 => return false,
            _ => {}
        }
        true
    }
}

/// Plays on the terminal; keys are read when standard input is one.
fn perform(entries: &[Entry], speed: f64, max_pause: Option<Duration>) -> Result<(), Public> {
    let raw = terminal::interactive().then(terminal::Raw::enter).flatten();
    let mut player = Player::new(entries, speed, max_pause);
    let broken = |error: std::io::Error| Public::new(Code::Internal, error.to_string());
    let mut out = std::io::stdout();
    loop {
        let wait = match player.step() {
            Step::Done => break,
            Step::Paused => None,
            Step::Wait(wait) => Some(wait),
        };
        if raw.is_some() {
            let began = std::time::Instant::now();
            if let Some(key) = wait_for_key(wait).map_err(broken)? {
                player.elapsed(began.elapsed());
                if !player.key(key) {
                    break;
                }
                continue;
            }
        } else if let Some(wait) = wait {
            pause(wait);
        }
        if let Some(Entry { what: What::Output(bytes) | What::Stderr(bytes), .. }) = player.advance() {
            out.write_all(bytes).and_then(|()| out.flush()).map_err(broken)?;
        }
    }
    drop(raw);
    // The prompt begins on a line of its own; a file or a pipe gets the output as it was.
    if std::io::stdout().is_terminal() { write_out("\n") } else { Ok(()) }
}

/// As long as the recorded person paused.
#[allow(clippy::disallowed_methods, reason = "a player waits for time to pass, and for nothing else")]
fn pause(length: Duration) {
    std::thread::sleep(length);
}

/// A key within that time, or `None`.
fn wait_for_key(wait: Option<Duration>) -> std::io::Result<Option<u8>> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let stdin = std::io::stdin();
    let mut fds = [PollFd::new(&stdin, PollFlags::IN)];
    let limit =
        wait.map(|wait| Timespec { tv_sec: i64::try_from(wait.as_secs()).unwrap_or(i64::MAX), tv_nsec: i64::from(wait.subsec_nanos()) });
    if poll(&mut fds, limit.as_ref())? == 0 {
        return Ok(None);
    }
    let mut key = [0];
    match rustix::io::read(&stdin, &mut key)? {
        0 => Ok(Some(b'q')),
        _ => Ok(key.first().copied()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    fn output(at: u64, text: &'static str) -> Entry {
        Entry { at, what: What::Output(Bytes::from_static(text.as_bytes())) }
    }

    #[test]
    fn pauses_are_as_recorded_divided_by_the_speed() {
        let entries = [output(0, "a"), output(4000, "b")];
        let mut player = Player::new(&entries, 2.0, None);
        assert_eq!(player.step(), Step::Wait(Duration::ZERO));
        player.advance();
        assert_eq!(player.step(), Step::Wait(Duration::from_secs(2)));
        player.advance();
        assert_eq!(player.step(), Step::Done);
    }

    #[test]
    fn a_paused_playback_waits_for_a_key_and_goes_on_where_it_was() {
        let entries = [output(0, "a"), output(4000, "b")];
        let mut player = Player::new(&entries, 1.0, None);
        player.advance();
        player.elapsed(Duration::from_secs(1));
        assert!(player.key(b' '));
        assert_eq!(player.step(), Step::Paused);
        player.elapsed(Duration::from_secs(60));
        assert!(player.key(b' '));
        assert_eq!(player.step(), Step::Wait(Duration::from_secs(3)));
        assert!(!player.key(b'q'));
    }

    #[test]
    fn long_pauses_are_shortened_on_request() {
        let entries = [output(0, "a"), output(3_600_000, "b")];
        let mut player = Player::new(&entries, 1.0, Some(Duration::from_secs(2)));
        player.advance();
        assert_eq!(player.step(), Step::Wait(Duration::from_secs(2)));
    }

    #[test]
    fn an_export_is_asciicast_and_keeps_split_characters_whole() {
        let euro = "€".as_bytes();
        let entries = [
            Entry { at: 0, what: What::Output(Bytes::copy_from_slice(&euro[..1])) },
            Entry { at: 1500, what: What::Output(Bytes::copy_from_slice(&euro[1..])) },
            Entry { at: 2000, what: What::Resize { width: 100, height: 30 } },
        ];
        let text = asciicast(&entries);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(serde_json::from_str::<serde_json::Value>(lines[0]).unwrap()["version"], 2);
        assert_eq!(&lines[1..], [r#"[0.0,"o",""]"#, r#"[1.5,"o","€"]"#, r#"[2.0,"r","100x30"]"#]);
    }
}
