//! `tctl upgrade …`: an upgrade in one command, and everything that people say about it on the way (docs/upgrading.md).
//!
//! The Auth Service plans and carries out; here it is shown and asked for. `plan` writes nothing. `apply` accepts a plan by the id of what
//! was read. There is no force: a check that may be waived has a name, and the waiver a reason and an end. Statuses for scripts: 0 ready or
//! done, 10 it waits for something that comes by itself or for consent, 3 blocked, 4 refused, 5 it failed and paused itself.

use super::{Global, connect, windows};
use crate::{
    connection::Connection,
    exit::{Could as _, Failure, Outcome as Ended, Status as Exit, usage},
    output::{Format, Style, Table, show, show_value, write_out},
};
use clap::{Args, Subcommand};
use serde_json::Value;
use std::{
    io::{BufRead as _, IsTerminal as _},
    process::ExitCode,
    time::Duration,
};
use types::{Code, Event, Public, Ttl, Version};
use upgrade::{
    plan::{Gate, Outcome, Release, Stage, Verdict},
    render::{Status, explain, headline, status_text},
};
use wire::api::{
    ApplyUpgrade, Empty, OfUpgrade, PlanUpgradeReply, PlanUpgradeRequest, SearchEventsRequest, SteerUpgradeRequest, WaiveCheck,
    steer_upgrade_request::Order,
};

#[derive(Subcommand, Debug)]
pub(crate) enum Upgrade {
    /// Shows what an upgrade would do, stage by stage, and what stands against it; writes nothing
    #[command(
        after_help = "Examples:\n  tctl upgrade plan --to 2.0.0\n  tctl upgrade plan --to 2.0.0 --format json\n\nExit status: 0 ready, 10 it waits, 3 blocked; each block names its cure."
    )]
    Plan {
        /// The release to go to
        #[arg(long)]
        to: Version,
        /// With all that was looked at, for a support bundle; json or yaml only
        #[arg(long)]
        with_view: bool,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Begins the upgrade that a plan showed; the cluster carries it out by itself
    #[command(
        after_help = "Without --plan the plan is shown, and you are asked for its id. When the cluster has changed since it was read, nothing begins.\n\nExamples:\n  tctl upgrade apply --to 2.0.0\n  tctl upgrade apply --to 2.0.0 --plan 7f3a19c2-2 --wait\n\nExit status: 0 begun (with --wait: done), 4 refused; without --plan 3 blocked; with --wait also 10 it waits for consent, 3 blocked, 5 failed and paused."
    )]
    Apply(ApplyArgs),
    /// Shows where the upgrade stands, what it waits for, and what is next
    #[command(after_help = "Exit status: 0 under way or done, 10 it waits, 3 blocked, 5 failed and paused.")]
    Status {
        /// Shows it anew every two seconds, until the upgrade is done or stands still
        #[arg(short, long)]
        watch: bool,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Begins nothing more; what is under way comes to its end
    Pause {
        /// Why, for whoever comes next
        #[arg(long)]
        reason: String,
    },
    /// Goes on after a pause, and tries again what failed
    Resume,
    /// Takes everybody back to the release before; what was written meanwhile is kept
    #[command(
        after_help = "Possible until the upgrade is finalized.\n\nExamples:\n  tctl upgrade rollback --plan\n  tctl upgrade rollback --yes"
    )]
    Rollback(ConsentArgs),
    /// Ends the way back: the old form of the data is given up, and only a backup leads back
    #[command(
        after_help = "Examples:\n  tctl upgrade finalize\n  tctl upgrade finalize --yes\n\nRefused before everything is moved and holds."
    )]
    Finalize(ConsentArgs),
    /// Says what a code means, and what it says of this cluster now
    #[command(after_help = "Examples:\n  tctl upgrade explain B-07\n  tctl upgrade explain G-07")]
    Explain {
        /// The code
        code: String,
    },
    /// Says of members that fell silent that no window waits for them; rescue takes them up when they come back
    Evict {
        /// Their names or ids
        #[arg(required = true)]
        members: Vec<String>,
        /// Why, for the audit log
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Takes one check away, by name, for some time
    #[command(
        after_help = "A block that may be waived names its check.\n\nExamples:\n  tctl upgrade waive rehearsal --reason='no spare disk' --for=4h\n  tctl upgrade waive leaf:berlin --reason='closes next week'"
    )]
    Waive {
        /// The check
        check: String,
        /// Why
        #[arg(long)]
        reason: String,
        /// How long, at most 30 days
        #[arg(long = "for", default_value = "24h", value_name = "TIME")]
        lasts: Ttl,
    },
    /// Takes a waiver back
    Unwaive {
        /// The check
        check: String,
    },
    /// Shows the releases that the cluster may move to
    Releases {
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Shows what was done and said in upgrades, newest first
    History {
        /// How many lines at most
        #[arg(long, default_value_t = 50)]
        limit: u32,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
}

#[derive(Args, Debug)]
pub(crate) struct ApplyArgs {
    /// The release to go to
    #[arg(long)]
    to: Version,
    /// The id of the plan that was read
    #[arg(long)]
    plan: Option<String>,
    /// Waits until it is done, or stands still
    #[arg(short, long)]
    wait: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
}

#[derive(Args, Debug)]
pub(crate) struct ConsentArgs {
    /// Only shows what it would do
    #[arg(long)]
    plan: bool,
    /// Does not ask
    #[arg(short, long)]
    yes: bool,
    /// How to print
    #[arg(short, long, value_enum, default_value_t)]
    format: Format,
}

/// Between two looks while somebody waits.
const LOOK: Duration = Duration::from_secs(2);
/// Events of upgrades, for their history.
const EVENTS: [&str; 8] = [
    "upgrade.begin",
    "upgrade.steer",
    "upgrade.step",
    "upgrade.pause",
    "upgrade.end",
    "upgrade.finalize",
    "upgrade.migration",
    "upgrade.evict",
];

pub(crate) fn run(global: &Global, what: &Upgrade) -> Ended {
    match what {
        Upgrade::Plan { to, with_view, format } => plan(global, to, *with_view, *format),
        Upgrade::Apply(args) => apply(global, args),
        Upgrade::Status { watch, format } => status(global, *watch, *format),
        Upgrade::Pause { reason } => {
            say(global, "pause the upgrade", Order::Pause(reason.clone()), "Paused: nothing more is begun. Go on with: tctl upgrade resume")
        }
        Upgrade::Resume => say(global, "resume the upgrade", Order::Resume(OfUpgrade::default()), "It goes on. See: tctl upgrade status"),
        Upgrade::Rollback(args) => rollback(global, args),
        Upgrade::Finalize(args) => finalize(global, args),
        Upgrade::Explain { code } => explained(global, code),
        Upgrade::Evict { members, reason } => {
            members.iter().try_for_each(|member| windows::evict(global, member, (reason, true), Format::Text).map(drop))?;
            Ok(ExitCode::SUCCESS)
        }
        Upgrade::Waive { check, reason, lasts } => {
            let waive = WaiveCheck { check: check.clone(), reason: reason.clone(), seconds: lasts.0.as_secs() };
            say(global, "waive the check", Order::Waive(waive), &format!("The check {check} is waived for {lasts}."))
        }
        Upgrade::Unwaive { check } => {
            say(global, "take the waiver back", Order::Unwaive(check.clone()), &format!("The check {check} counts again."))
        }
        Upgrade::Releases { format } => releases(global, *format),
        Upgrade::History { limit, format } => history(global, *limit, *format),
    }
}

/// What the Auth Service says of an upgrade.
struct Seen {
    outcome: Outcome,
    status: Status,
    text: String,
    view: Option<Value>,
}

impl Seen {
    fn read(reply: PlanUpgradeReply) -> Result<Self, Public> {
        let bad = |error: serde_json::Error| {
            Public::new(Code::Malformed, format!("the plan cannot be read: {error}")).hint("use the tctl of the Auth Service's release")
        };
        Ok(Self {
            outcome: serde_json::from_slice(&reply.outcome).map_err(bad)?,
            status: serde_json::from_slice(&reply.status).map_err(bad)?,
            text: reply.text,
            view: if reply.view.is_empty() { None } else { Some(serde_json::from_slice(&reply.view).map_err(bad)?) },
        })
    }

    fn ask(connection: &Connection, ask: PlanUpgradeRequest) -> Result<Self, Public> {
        Self::read(connection.run(connection.api().plan_upgrade(ask))?)
    }

    /// The upgrade that somebody saw when he said something of it.
    fn meant(&self) -> OfUpgrade {
        OfUpgrade { upgrade: self.outcome.decision.upgrade.as_ref().map(|upgrade| upgrade.id.clone()).unwrap_or_default() }
    }

    fn exit(&self) -> ExitCode {
        exit(self.outcome.decision.verdict())
    }

    /// The plan, as it is asked for.
    fn print_plan(&self, format: Format) -> Result<(), Failure> {
        if format == Format::Text {
            return write_out(&self.text).could("print the plan");
        }
        let mut value = serde_json::to_value(&self.outcome).unwrap_or_default();
        if let (Some(value), Some(view)) = (value.as_object_mut(), &self.view) {
            value.insert("view".into(), view.clone());
        }
        if let Some(value) = value.as_object_mut() {
            value.insert("verdict".into(), self.outcome.decision.verdict().as_str().into());
        }
        show_value(format, &value).could("print the plan")
    }
}

fn exit(verdict: Verdict) -> ExitCode {
    match verdict {
        Verdict::Ready | Verdict::Done => Exit::Done,
        Verdict::Waiting => Exit::Waiting,
        Verdict::Blocked => Exit::Blocked,
        Verdict::FailedAndPaused => Exit::Paused,
    }
    .into()
}

fn plan(global: &Global, to: &Version, with_view: bool, format: Format) -> Ended {
    const COULD: &str = "plan the upgrade";
    if with_view && format == Format::Text {
        return Err(usage("--with-view is for --format=json or yaml")).could(COULD);
    }
    let connection = connect::open(global)?;
    let seen = Seen::ask(&connection, PlanUpgradeRequest { target: to.to_string(), rollback: false, with_view }).could(COULD)?;
    seen.print_plan(format)?;
    let decision = &seen.outcome.decision;
    if format == Format::Text
        && decision.verdict() == Verdict::Ready
        && seen.status.rollback.blockers.is_empty()
        && !decision.next.is_empty()
    {
        write_out(&format!("\nBegin it with: tctl upgrade apply --to {to} --plan {}\n", seen.outcome.id)).could(COULD)?;
    }
    Ok(seen.exit())
}

fn apply(global: &Global, args: &ApplyArgs) -> Ended {
    const COULD: &str = "begin the upgrade";
    let connection = connect::open(global)?;
    let target = args.to.to_string();
    let id = match &args.plan {
        Some(id) => id.clone(),
        None => {
            let seen =
                Seen::ask(&connection, PlanUpgradeRequest { target: target.clone(), ..PlanUpgradeRequest::default() }).could(COULD)?;
            seen.print_plan(Format::Text)?;
            if seen.outcome.decision.verdict() != Verdict::Ready {
                return Ok(seen.exit());
            }
            let id = seen.outcome.id;
            if asked(&format!("\nType the id of this plan, {id}, to begin: ")).could(COULD)?.as_ref() != Some(&id) {
                return Err(Public::new(Code::Usage, "the plan was not accepted; nothing has begun")).could(COULD);
            }
            id
        }
    };
    let order = Order::Apply(ApplyUpgrade { target, plan: id });
    let seen = steer(&connection, order).could(COULD)?;
    if args.wait {
        return follow(&connection, args.format);
    }
    if args.format != Format::Text {
        show_value(args.format, &seen.status).could(COULD)?;
        return Ok(ExitCode::SUCCESS);
    }
    let done = Style::of_stdout().green("Begun.");
    write_out(&format!("{done} The cluster carries it out by itself. See: tctl upgrade status --watch\n")).could(COULD)?;
    Ok(ExitCode::SUCCESS)
}

/// A line that somebody types; none where nobody is asked.
fn asked(question: &str) -> Result<Option<String>, Public> {
    if !std::io::stdin().is_terminal() {
        return Err(usage("there is no terminal to ask on: give --plan with the id, or --yes"));
    }
    eprint!("{question}");
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).map_err(|error| Public::new(Code::Usage, error.to_string()))?;
    Ok(Some(line.trim().to_owned()).filter(|typed| !typed.is_empty()))
}

fn steer(connection: &Connection, order: Order) -> Result<Seen, Public> {
    Seen::read(connection.run(connection.api().steer_upgrade(SteerUpgradeRequest { order: Some(order) }))?)
}

/// Says one thing, and prints one line.
fn say(global: &Global, could: &'static str, order: Order, done: &str) -> Ended {
    let connection = connect::open(global)?;
    steer(&connection, order).could(could)?;
    write_out(&format!("{done}\n")).could(could)?;
    Ok(ExitCode::SUCCESS)
}

fn status(global: &Global, watch: bool, format: Format) -> Ended {
    const COULD: &str = "show the upgrade";
    let connection = connect::open(global)?;
    if watch {
        return follow(&connection, format);
    }
    let seen = Seen::ask(&connection, PlanUpgradeRequest::default()).could(COULD)?;
    print_status(&seen, format)?;
    Ok(seen.exit())
}

fn print_status(seen: &Seen, format: Format) -> Result<(), Failure> {
    match format {
        Format::Text => write_out(&status_text(&seen.status)).could("print the status"),
        _ => show_value(format, &seen.status).could("print the status"),
    }
}

/// Shows how it goes until it is done or stands still: on a terminal the screen, else a line whenever something else is said.
fn follow(connection: &Connection, format: Format) -> Ended {
    const COULD: &str = "follow the upgrade";
    let screen = format == Format::Text && std::io::stdout().is_terminal();
    let mut told = String::new();
    loop {
        let seen = match Seen::ask(connection, PlanUpgradeRequest::default()) {
            Ok(seen) => seen,
            // The Auth Service that answered is being replaced: another one, or the next process, will.
            Err(error) if error.is(Code::Unavailable) || error.is(Code::Unreachable) || error.is(Code::Timeout) => {
                rest(connection);
                continue;
            }
            Err(error) => return Err(error).could(COULD),
        };
        let decision = &seen.outcome.decision;
        if screen {
            write_out(&format!("\x1b[H\x1b[J{}", status_text(&seen.status))).could(COULD)?;
        } else if format == Format::Text {
            let line = format!("{}: {}", decision.stage.as_str(), headline(decision));
            if line != told {
                write_out(&format!("{line}\n")).could(COULD)?;
                told = line;
            }
        }
        if stands(&seen) {
            if format != Format::Text {
                print_status(&seen, format)?;
            }
            return Ok(seen.exit());
        }
        rest(connection);
    }
}

fn rest(connection: &Connection) {
    connection.run(async { tokio::time::sleep(LOOK).await });
}

/// Whether nothing more comes by itself.
fn stands(seen: &Seen) -> bool {
    let decision = &seen.outcome.decision;
    let consent = |code: Gate| matches!(code, Gate::Consent | Gate::Paused | Gate::Soak);
    match decision.verdict() {
        Verdict::Blocked | Verdict::FailedAndPaused => true,
        Verdict::Done => decision.stage == Stage::Done,
        Verdict::Waiting => decision.waits.iter().all(|wait| consent(wait.code)),
        Verdict::Ready => false,
    }
}

fn rollback(global: &Global, args: &ConsentArgs) -> Ended {
    const COULD: &str = "take the upgrade back";
    let connection = connect::open(global)?;
    let seen = Seen::ask(&connection, PlanUpgradeRequest { rollback: true, ..PlanUpgradeRequest::default() }).could(COULD)?;
    if args.plan {
        seen.print_plan(args.format)?;
        return Ok(seen.exit());
    }
    if !args.yes {
        seen.print_plan(Format::Text)?;
        let id = &seen.outcome.id;
        if asked(&format!("\nType the id of this plan, {id}, to go back: ")).could(COULD)?.as_ref() != Some(id) {
            return Err(Public::new(Code::Usage, "it was not accepted; the upgrade goes on")).could(COULD);
        }
    }
    let seen = steer(&connection, Order::Rollback(seen.meant())).could(COULD)?;
    if args.format != Format::Text {
        print_status(&seen, args.format)?;
        return Ok(ExitCode::SUCCESS);
    }
    write_out("It goes back. See: tctl upgrade status --watch\n").could(COULD)?;
    Ok(ExitCode::SUCCESS)
}

fn finalize(global: &Global, args: &ConsentArgs) -> Ended {
    const COULD: &str = "finalize the upgrade";
    let connection = connect::open(global)?;
    let seen = Seen::ask(&connection, PlanUpgradeRequest::default()).could(COULD)?;
    if args.plan || !args.yes {
        print_status(&seen, args.format)?;
    }
    if args.plan {
        return Ok(seen.exit());
    }
    if !args.yes {
        let cluster = &seen.status.cluster;
        let question = format!("\nThis ends the way back. Type the name of the cluster, {cluster}, to continue: ");
        if asked(&question).could(COULD)?.as_ref() != Some(cluster) {
            return Err(Public::new(Code::Usage, "it was not accepted; there is still a way back")).could(COULD);
        }
    }
    steer(&connection, Order::Finalize(seen.meant())).could(COULD)?;
    write_out("The way back ends as soon as every gate is green. See: tctl upgrade status --watch\n").could(COULD)?;
    Ok(ExitCode::SUCCESS)
}

fn explained(global: &Global, code: &str) -> Ended {
    const COULD: &str = "explain the code";
    let connection = connect::open(global)?;
    let seen = Seen::ask(&connection, PlanUpgradeRequest::default()).could(COULD)?;
    let unknown = || usage(format!("\"{code}\" is no code of an upgrade: codes are B-01 and on, G-01 and on, N-1 and on"));
    let text = explain(&seen.outcome.decision, code).ok_or_else(unknown).could(COULD)?;
    write_out(&text).could(COULD)?;
    Ok(ExitCode::SUCCESS)
}

fn releases(global: &Global, format: Format) -> Ended {
    const COULD: &str = "list the releases";
    let connection = connect::open(global)?;
    let reply = connection.run(connection.api().list_releases(Empty {})).could(COULD)?;
    let releases: Vec<Release> = reply.releases.iter().filter_map(|json| serde_json::from_slice(json).ok()).collect();
    let mut table = Table::new(&["Version", "Genuine", "In the mirror", "Upgrades from", "Withdrawn"]);
    for release in &releases {
        let yes = |is: bool| if is { "yes" } else { "NO" };
        table.row([
            release.version.to_string(),
            yes(release.verified).to_owned(),
            yes(release.mirrored).to_owned(),
            release.min_source.as_ref().map_or_else(|| "-".into(), |least| format!("{least} on")),
            release.withdrawn.clone().unwrap_or_else(|| "-".into()),
        ]);
    }
    show(format, &table, "No releases.", &releases).could(COULD)?;
    if !reply.fault.is_empty() {
        eprintln!("{}", crate::output::one_line(reply.fault));
        return Ok(Exit::Failed.into());
    }
    Ok(ExitCode::SUCCESS)
}

fn history(global: &Global, limit: u32, format: Format) -> Ended {
    const COULD: &str = "show the history";
    let connection = connect::open(global)?;
    let names = EVENTS.map(str::to_owned).to_vec();
    let ask = SearchEventsRequest { names, limit: limit.min(1000), ..SearchEventsRequest::default() };
    let reply = connection.run(connection.api().search_events(ask)).could(COULD)?;
    let events: Vec<Event> = reply.events.iter().filter_map(|json| serde_json::from_slice(json).ok()).collect();
    let mut table = Table::new(&["Time (UTC)", "Code", "Who", "What"]);
    for event in &events {
        let who = ["user", "by", "server_hostname"].map(|field| event.text(field)).into_iter().find(|text| !text.is_empty());
        table.row([event.time.whole_seconds().to_string(), event.code.clone(), who.unwrap_or("-").to_owned(), told(event)]);
    }
    show(format, &table, "Nothing yet.", &events).could(COULD)?;
    Ok(ExitCode::SUCCESS)
}

/// One event of an upgrade in words.
fn told(event: &Event) -> String {
    let of = |field: &str| event.text(field);
    let list = |field: &str| {
        let items = event.fields.get(field).and_then(Value::as_array);
        items.map(|items| items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join("; ")).unwrap_or_default()
    };
    match event.event.as_str() {
        "upgrade.begin" => format!("{} to {} began, by plan {}", of("from"), of("to"), of("plan")),
        "upgrade.end" => format!("{} to {} is done", of("from"), of("to")),
        "upgrade.step" => list("steps"),
        "upgrade.pause" => format!("paused itself: {}", of("error")),
        "upgrade.finalize" => format!("cluster version {}: no way back but a backup", of("version")),
        "upgrade.migration" => format!("{}: {} to {}", of("name"), of("from"), of("to")),
        "upgrade.evict" => format!("evicted {} {}", of("name"), of("reason")),
        _ if of("error").is_empty() => format!("{} {}", of("order"), of("detail")),
        _ => format!("{} {} was refused: {}", of("order"), of("detail"), of("error")),
    }
}
