//! `tctl audit …`: the log of what happened, the proof that nobody changed it, and a copy that proves itself. Guide: docs/audit.md.
//!
//! `ls` pages through what the Auth Service finds; `export` streams lines into a file that appears only when it is complete;
//! `verify` asks the Auth Service, or with `--file` reads an export where no cluster is needed (`wire::audit::Runs`).

use super::{Global, connect};
use crate::{
    exit::{Could as _, Failure, Outcome, usage},
    output::{Format, Style, Table, show, show_value, write_out},
};
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead as _, BufReader, BufWriter, Read as _, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};
use types::{Code, Event, Public, Time, Ttl};
use wire::{
    api::{ExportEventsRequest, SearchEventsRequest, VerifyAuditReply},
    audit::{MAX_LINE, Runs},
};

#[derive(Subcommand, Debug)]
pub(crate) enum Audit {
    /// Lists events, newest first
    #[command(
        after_help = "Examples:\n  tctl audit ls --last=1h --kind=user.login,session.start --user=alice\n  tctl audit ls --from=2026-11-01 --to=2026-12-01 --session=0192f0c1-... --format=json"
    )]
    Ls(LsArgs),
    /// Writes events as JSON lines that prove themselves: whole pieces of every chain
    #[command(
        after_help = "Of each Auth Service's chain everything from the first event of the period to the last is written.\n\nExamples:\n  tctl audit export --from=2026-10-01 --to=2026-11-01 --output=october.jsonl\n  tctl audit verify --file=october.jsonl"
    )]
    Export {
        /// From this time on: 2026-11-22 or 2026-11-22T18:00:00Z; from the beginning when absent
        #[arg(long, value_parser = moment)]
        from: Option<Time>,
        /// Before this time
        #[arg(long, value_parser = moment)]
        to: Option<Time>,
        /// File; replaced only by a complete export. Standard output when absent
        #[arg(short, long)]
        output: Option<PathBuf>,
    },
    /// Checks every chain in every place where it is kept, from its first event to its last, and that the places say the same
    Verify {
        /// Checks an export instead; needs no cluster. - is standard input
        #[arg(long)]
        file: Option<PathBuf>,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
}

/// Flags of `tctl audit ls`.
#[derive(Args, Debug)]
pub(crate) struct LsArgs {
    /// Within this length of time; 24h when no time is given
    #[arg(long, conflicts_with = "from")]
    pub(crate) last: Option<Ttl>,
    /// From this time on: 2026-11-22 or 2026-11-22T18:00:00Z
    #[arg(long, value_parser = moment)]
    pub(crate) from: Option<Time>,
    /// Before this time
    #[arg(long, value_parser = moment)]
    pub(crate) to: Option<Time>,
    /// Only events of these names or codes, e.g. user.login or L1000W
    #[arg(long, visible_alias = "event", value_delimiter = ',')]
    pub(crate) kind: Vec<String>,
    /// Only events of this user
    #[arg(long)]
    pub(crate) user: Option<String>,
    /// Only events of this session, by its id
    #[arg(long)]
    pub(crate) session: Option<String>,
    /// How many at most
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: u32,
    /// The oldest first
    #[arg(long)]
    pub(crate) oldest_first: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) format: Format,
}

/// A day or a moment, UTC.
fn moment(text: &str) -> Result<Time, String> {
    let whole = if text.len() == 10 { format!("{text}T00:00:00Z") } else { text.to_owned() };
    whole.parse().map_err(|_| format!("\"{text}\" is not a time; write it as 2026-11-22 or 2026-11-22T18:00:00Z"))
}

pub(crate) fn run(global: &Global, what: &Audit) -> Outcome {
    match what {
        Audit::Ls(args) => ls(global, args),
        Audit::Export { from, to, output } => export(global, *from, *to, output.as_deref()),
        Audit::Verify { file: None, format } => verify(global, *format),
        Audit::Verify { file: Some(file), format } => verify_file(file, *format),
    }
}

fn ls(global: &Global, args: &LsArgs) -> Outcome {
    let now = Time::from(std::time::SystemTime::now());
    let from = match (args.from, args.last) {
        (Some(from), _) => Some(from),
        (None, Some(last)) => Some(now.minus(last.0)),
        // Up to a given time: everything before.
        (None, None) => args.to.is_none().then(|| now.minus(Ttl::hours(24).0)),
    };
    let shown = |time: Option<Time>| time.map(|time| time.to_string()).unwrap_or_default();
    let mut request = SearchEventsRequest {
        from: shown(from),
        to: shown(args.to),
        names: args.kind.clone(),
        user: args.user.clone().unwrap_or_default(),
        session: args.session.clone().unwrap_or_default(),
        oldest_first: args.oldest_first,
        ..SearchEventsRequest::default()
    };
    let connection = connect::open(global)?;
    let (mut events, mut note): (Vec<Value>, String) = (Vec::new(), String::new());
    let wanted = usize::try_from(args.limit).unwrap_or(usize::MAX);
    while events.len() < wanted {
        request.limit = u32::try_from(wanted.saturating_sub(events.len()).min(1000)).unwrap_or(1000);
        let reply = connection.run(connection.api().search_events(request.clone())).could("list the events")?;
        events.extend(reply.events.iter().filter_map(|bytes| serde_json::from_slice(bytes).ok()));
        note = reply.note;
        if reply.next_page.is_empty() {
            break;
        }
        request.page = reply.next_page;
    }
    let mut table = Table::new(&["Time (UTC)", "Code", "Event", "User", "Details"]);
    for event in &events {
        match serde_json::from_value::<Event>(event.clone()) {
            Ok(event) => table.row([
                event.time.whole_seconds().to_string(),
                event.code.clone(),
                event.event.clone(),
                event.text("user").to_owned(),
                details(&event),
            ]),
            Err(_) => table.row(["", "", "", "", "an event that cannot be read here"]),
        }
    }
    show(args.format, &table, "No events.", &events).could("print the events")?;
    tell(&note);
    Ok(ExitCode::SUCCESS)
}

/// What an answer lacks, where it disturbs no script.
fn tell(note: &str) {
    if !note.is_empty() {
        eprintln!("{} {}", Style::of_stderr().dim("note:"), crate::output::one_line(note.to_owned()));
    }
}

/// The fields that tell most, in a fixed order.
fn details(event: &Event) -> String {
    const FIELDS: [&str; 10] =
        ["login", "server_hostname", "command", "kind", "name", "version", "addr.remote", "error", "sid", "exit_status"];
    let show = |field: &&str| {
        let value = event.fields.get(*field)?;
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        (!text.is_empty()).then(|| format!("{field}={text}"))
    };
    FIELDS.iter().filter_map(show).collect::<Vec<_>>().join(" ")
}

fn export(global: &Global, from: Option<Time>, to: Option<Time>, output: Option<&Path>) -> Outcome {
    let could = || "export the audit log";
    let shown = |time: Option<Time>| time.map(|time| time.to_string()).unwrap_or_default();
    let request = ExportEventsRequest { from: shown(from), to: shown(to) };
    let connection = connect::open(global)?;
    let Some(place) = output else {
        connection.run(receive(&connection, request, &mut io::stdout().lock())).could(could())?;
        return Ok(ExitCode::SUCCESS);
    };
    let beside = Beside::new(place).could(format!("write {}", place.display()))?;
    let mut file = BufWriter::with_capacity(1 << 20, &beside.file);
    let done = connection.run(receive(&connection, request, &mut file)).could(could())?;
    file.flush().could(format!("write {}", place.display()))?;
    drop(file);
    beside.settle().could(format!("write {}", place.display()))?;
    let mut table = Table::new(&["Auth Service", "Id", "First", "Last", "Hash of the last"]);
    for run in done.as_array().into_iter().flatten() {
        let text = |key: &str| run[key].as_str().map_or_else(|| run[key].to_string(), str::to_owned);
        table.row([text("name"), text("instance"), text("first"), text("last"), text("hash")]);
    }
    show(Format::Text, &table, "No events in that time.", &done).could("print the result")?;
    Ok(ExitCode::SUCCESS)
}

/// Writes the stream down; what its last piece says.
async fn receive(connection: &crate::connection::Connection, request: ExportEventsRequest, to: &mut dyn Write) -> Result<Value, Public> {
    let mut stream = connection.api().export_events(request).await?;
    loop {
        let chunk = stream.next().await?;
        to.write_all(&chunk.lines).and_then(|()| to.flush()).map_err(|error| crate::exit::io(&error))?;
        if !chunk.done.is_empty() {
            return serde_json::from_slice(&chunk.done)
                .map_err(|_| Public::new(Code::Malformed, "the Auth Service's summary of the export cannot be read"));
        }
    }
}

/// A file that is not yet in its place, and goes if it never gets there.
struct Beside<'a> {
    place: &'a Path,
    fresh: PathBuf,
    file: File,
}

impl<'a> Beside<'a> {
    fn new(place: &'a Path) -> io::Result<Self> {
        let mut name = place.as_os_str().to_owned();
        name.push(format!(".{}.new", uuid::Uuid::new_v4().simple()));
        let fresh = PathBuf::from(name);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&fresh)?;
        Ok(Self { place, fresh, file })
    }
    fn settle(&self) -> io::Result<()> {
        self.file.sync_all()?;
        fs::rename(&self.fresh, self.place)
    }
}

impl Drop for Beside<'_> {
    fn drop(&mut self) {
        // Already renamed, unless something failed.
        let _gone = fs::remove_file(&self.fresh);
    }
}

fn verify(global: &Global, format: Format) -> Outcome {
    let connection = connect::open(global)?;
    let reply = connection.run(connection.api().verify_audit()).could("verify the audit log")?;
    if format != Format::Text {
        let chains: Vec<Value> = reply
            .chains
            .iter()
            .map(|chain| {
                json!({"instance": chain.instance, "name": chain.name, "sink": chain.sink, "begin": chain.begin, "events": chain.events,
                       "head": chain.head, "fault": chain.fault, "note": chain.note})
            })
            .collect();
        let whole = json!({"intact": reply.intact, "events": reply.events, "head": reply.head, "fault": reply.fault, "note": reply.note, "chains": chains});
        show_value(format, &whole).could("print the result")?;
    } else if reply.intact || reply.chains.len() > 1 {
        print(&reply).could("print the result")?;
    }
    if !reply.intact {
        let cause = Public::new(Code::AuditBroken, reply.fault)
            .hint("compare with the other sink, or an export made earlier; the events before the fault still hold");
        return Err(Failure::new("verify the audit log", cause));
    }
    Ok(ExitCode::SUCCESS)
}

fn print(reply: &VerifyAuditReply) -> Result<(), Public> {
    if reply.intact {
        write_out(&format!("{}: {} events, head {}\n", Style::of_stdout().green("The audit log is intact"), reply.events, reply.head))?;
    }
    if reply.chains.len() > 1 {
        let mut table = Table::new(&["Auth Service", "Kept in", "First", "Last", "State"]);
        for chain in &reply.chains {
            let last = chain.events.checked_sub(1).map(|last| last.to_string()).unwrap_or_default();
            let state = if chain.fault.is_empty() { "intact" } else { &chain.fault };
            table.row([chain.name.clone(), chain.sink.clone(), chain.begin.to_string(), last, state.to_owned()]);
        }
        show(Format::Text, &table, "", &Value::Null)?;
    }
    if reply.note.is_empty() { Ok(()) } else { write_out(&format!("Note: {}\n", reply.note)) }
}

/// Without a cluster: whether each line follows on the one before.
fn verify_file(path: &Path, format: Format) -> Outcome {
    let shown = path.display();
    let what = format!("verify {shown}");
    let input: Box<dyn io::Read> =
        if path == Path::new("-") { Box::new(io::stdin()) } else { Box::new(File::open(path).could(format!("open {shown}"))?) };
    let broken = |why: String| {
        let cause = Public::new(Code::AuditBroken, why).hint("the lines before still hold; export again, or compare with another copy");
        Failure::new(what.clone(), cause)
    };
    let mut input = BufReader::with_capacity(1 << 20, input);
    let (mut runs, mut line) = (Runs::default(), Vec::new());
    loop {
        line.clear();
        let most = u64::try_from(2 * MAX_LINE).unwrap_or(u64::MAX);
        if input.by_ref().take(most).read_until(b'\n', &mut line).could(format!("read {shown}"))? == 0 {
            break;
        }
        let Some(whole) = line.strip_suffix(b"\n") else {
            return Err(broken(format!("line {} is not whole: the file ends too early", runs.lines().saturating_add(1))));
        };
        runs.take(whole).map_err(|error| broken(error.to_string()))?;
    }
    if runs.runs().is_empty() {
        return Err(Failure::new(what, usage("the file has no events")));
    }
    let rows: Vec<Value> = runs
        .runs()
        .iter()
        .map(|(chain, run)| {
            json!({"instance": chain.to_string(), "first": run.begin.events, "before": run.begin.hash.to_string(),
                   "last": run.end.events.saturating_sub(1), "hash": run.end.hash.to_string()})
        })
        .collect();
    if format != Format::Text {
        return show_value(format, &json!({"intact": true, "events": runs.lines(), "chains": rows}))
            .could("print the result")
            .map(|()| ExitCode::SUCCESS);
    }
    write_out(&format!("{}: {} events\n", Style::of_stdout().green("The export is intact"), runs.lines())).could("print the result")?;
    let mut table = Table::new(&["Auth Service", "First", "Last", "Hash of the last"]);
    for (chain, run) in runs.runs() {
        table.row([
            chain.to_string(),
            run.begin.events.to_string(),
            run.end.events.saturating_sub(1).to_string(),
            run.end.hash.to_string(),
        ]);
    }
    show(Format::Text, &table, "", &Value::Null).could("print the result")?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::audit::{Head, Line};

    #[test]
    fn times_are_days_or_moments() {
        assert_eq!(moment("2026-11-22").unwrap().to_string(), "2026-11-22T00:00:00Z");
        assert_eq!(moment("2026-11-22T18:00:00+01:00").unwrap().to_string(), "2026-11-22T17:00:00Z");
        assert!(moment("yesterday").unwrap_err().contains("2026-11-22"));
    }

    #[test]
    fn an_export_is_verified_without_a_cluster_and_a_cut_one_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("export.jsonl");
        let genesis = Head::genesis(&types::name::ClusterId::from_uuid(uuid::Uuid::nil()));
        let (mut head, mut text) = (genesis, Vec::new());
        for at in 0..5u64 {
            let prev = (at == 0).then_some(head.hash);
            let line = Line::chained(&mut head, format!("{{\"n\":{at}}}").into());
            text.extend(line.parts().export(types::HostId::from_uuid(uuid::Uuid::nil()), prev));
        }
        let check = |bytes: &[u8]| {
            fs::write(&path, bytes).unwrap();
            verify_file(&path, Format::Json).map_err(|failure| failure.cause().message.clone())
        };
        check(&text).unwrap();
        assert!(check(&text[..text.len() - 1]).unwrap_err().contains("ends too early"));
        assert!(check(&text[text.iter().position(|byte| *byte == b'\n').unwrap() + 1..]).unwrap_err().contains("without the hash"));
        assert!(check(b"").unwrap_err().contains("no events"));
    }
}
