//! `tctl migrations …`: how far changes of what is stored are, and the few decisions about them that are a person's (docs/migrations.md).
//!
//! They run by themselves. A person looks at rows that cannot be migrated and consents to the repair of each by name, or wants one
//! back. Statuses for scripts: 0 done, 10 still under way, 3 it waits for somebody, 4 refused.

use super::{Global, connect};
use crate::{
    connection::Connection,
    exit::{Could as _, Failure, Outcome, Status},
    output::{Format, Style, Table, show, show_value, write_out},
};
use clap::Subcommand;
use serde_json::json;
use std::{
    io::{BufRead as _, IsTerminal as _},
    process::ExitCode,
    time::{Duration, Instant},
};
use types::{Code, Public, Ttl};
use wire::api::{BadRow, Empty, ListBadRowsRequest, MigrationStatus, RepairRowRequest, TurnMigrationRequest};

#[derive(Subcommand, Debug)]
pub(crate) enum Migrations {
    /// Shows each migration that this cluster's release knows: state, rows, rate, time left, and what it waits for
    Ls {
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Shows the rows that a migration cannot change, with what is proposed for each
    Bad {
        /// The migration
        migration: String,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Repairs one row, as `bad` shows it; what it was is kept for thirty days
    #[command(
        after_help = "Without --proposal the row and the fix are shown, and you are asked.\n\nExamples:\n  tctl migrations repair 9-widget-size doc/widget/w7\n  tctl migrations repair 9-widget-size doc/widget/w7 --proposal=5f0c..."
    )]
    Repair {
        /// The migration
        migration: String,
        /// The row's key
        key: String,
        /// The proposal that you consent to, as `bad --format=json` shows it
        #[arg(long)]
        proposal: Option<String>,
    },
    /// Takes a migration back: the former form is the only one again, and it does not begin anew until `retry`
    #[command(after_help = "Exit status: 0 it is undone, 10 it is under way still, 3 it waits for somebody, 4 refused.")]
    Undo {
        /// The migration
        migration: String,
        /// How long to wait until it is undone
        #[arg(long, default_value = "60s")]
        wait: Ttl,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Lets a migration go forward again, after `undo` or when it was held by rows that differ
    Retry {
        /// The migration
        migration: String,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
}

const LOOK: Duration = Duration::from_millis(300);

pub(crate) fn run(global: &Global, what: &Migrations) -> Outcome {
    match what {
        Migrations::Ls { format } => ls(global, *format),
        Migrations::Bad { migration, format } => bad(global, migration, *format),
        Migrations::Repair { migration, key, proposal } => repair(global, migration, key, proposal.as_deref()),
        Migrations::Undo { migration, wait, format } => undo(global, migration, wait.0, *format),
        Migrations::Retry { migration, format } => retry(global, migration, *format),
    }
}

fn value(status: &MigrationStatus) -> serde_json::Value {
    json!({"id": status.id, "about": status.about, "class": status.class, "state": status.state, "phase": status.phase, "cursor": status.cursor,
        "done": status.done, "total": status.total, "rate": status.rate, "left_seconds": status.left, "waiting": status.waiting, "held": status.held,
        "bad": status.bad, "differences": status.differences, "different": status.different, "attempt": status.attempt,
        "holder": status.holder, "undo": status.undo})
}

fn ls(global: &Global, format: Format) -> Outcome {
    let connection = connect::open(global)?;
    let all = connection.run(connection.api().list_migrations(Empty {})).could("list the migrations")?.migrations;
    let mut table = Table::new(&["Migration", "State", "Phase", "Rows", "Rows/s", "Left", "Waits For"]);
    for status in &all {
        let state = if status.undo && status.state != "undoing" { format!("{} (undone)", status.state) } else { status.state.clone() };
        let (rate, left) = (some(status.rate), status.left.map_or_else(String::new, length));
        let rows = format!("{}/{}", status.done, status.total);
        table.row([status.id.clone(), state, status.phase.clone(), rows, rate, left, status.waiting.clone()]);
    }
    let values: Vec<_> = all.iter().map(value).collect();
    show(format, &table, "This release has no migrations.", &values).could("print the migrations")?;
    Ok(ExitCode::SUCCESS)
}

fn some(rate: f64) -> String {
    if rate > 0.0 { format!("{rate:.0}") } else { String::new() }
}

fn length(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h", seconds / 3600),
    }
}

fn rows(connection: &Connection, migration: &str) -> Result<(Vec<BadRow>, u64), Failure> {
    let request = ListBadRowsRequest { migration: migration.to_owned() };
    let reply = connection.run(connection.api().list_bad_rows(request)).could(format!("list the bad rows of {migration}"))?;
    Ok((reply.rows, reply.count))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn bad(global: &Global, migration: &str, format: Format) -> Outcome {
    let connection = connect::open(global)?;
    let (rows, count) = rows(&connection, migration)?;
    if format != Format::Text {
        let rows: Vec<_> = rows
            .iter()
            .map(|row| json!({"key": row.key, "why": row.why, "fix": row.fix, "now": text(&row.now), "then": text(&row.then), "proposal": row.proposal}))
            .collect();
        return show_value(format, &json!({"rows": rows, "count": count})).could("print the rows").map(|()| ExitCode::SUCCESS);
    }
    let mut table = Table::new(&["Row", "Fix", "Why"]);
    rows.iter().for_each(|row| table.row([row.key.as_str(), row.fix.as_str(), row.why.as_str()]));
    show(format, &table, "No bad rows.", &()).could("print the rows")?;
    let more = count.saturating_sub(rows.len() as u64);
    if more > 0 {
        write_out(&format!("and {more} more\n")).could("print the rows")?;
    }
    if let Some(row) = rows.first() {
        write_out(&format!("\nOne by one: tctl migrations repair {migration} {}\n", row.key)).could("print the rows")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn repair(global: &Global, migration: &str, key: &str, proposal: Option<&str>) -> Outcome {
    let could = || format!("repair {key}");
    let connection = connect::open(global)?;
    let proposal = match proposal {
        Some(given) => given.to_owned(),
        None => match ask(&connection, migration, key)? {
            Some(agreed) => agreed,
            None => {
                write_out("Nothing was changed.\n").could("print")?;
                return Ok(ExitCode::FAILURE);
            }
        },
    };
    let request = RepairRowRequest { migration: migration.to_owned(), key: key.to_owned(), proposal };
    match connection.run(connection.api().repair_row(request)) {
        Ok(_) => {
            write_out(&format!("{} {key}; the check begins anew.\n", Style::of_stdout().green("Repaired"))).could("print")?;
            Ok(ExitCode::SUCCESS)
        }
        Err(public) => Err(Failure::new(could(), public)),
    }
}

/// Shows the row and what would become of it; the proposal, if somebody says yes.
fn ask(connection: &Connection, migration: &str, key: &str) -> Result<Option<String>, Failure> {
    let could = || format!("repair {key}");
    let (rows, _) = rows(connection, migration)?;
    let row = rows.into_iter().find(|row| row.key == key).ok_or_else(|| {
        let none = Public::new(Code::NotFound, format!("{key} is not among the bad rows of {migration}"));
        Failure::new(could(), none.hint(format!("see: tctl migrations bad {migration}")))
    })?;
    if row.proposal.is_empty() {
        return Err(Failure::new(could(), Public::new(Code::UpgradeRefused, row.why).hint("correct the document itself: tctl edit")));
    }
    let then = match row.fix.as_str() {
        "remove" => "it is removed, and kept for thirty days".to_owned(),
        _ => text(&row.then),
    };
    let shown = |text: String| if text.is_empty() { "(not shown: it may be a secret)".to_owned() } else { crate::output::one_line(text) };
    write_out(&format!("Row   {}\nWhy   {}\nNow   {}\nThen  {}\n", row.key, row.why, shown(text(&row.now)), shown(then))).could("print")?;
    if !std::io::stdin().is_terminal() {
        let cause = Public::new(Code::Usage, "nobody is there to consent").hint(format!("to consent: --proposal={}", row.proposal));
        return Err(Failure::new(could(), cause));
    }
    write_out("Type yes to do that to this row: ").could("print")?;
    let mut line = String::new();
    std::io::stdin().lock().read_line(&mut line).could("read the answer")?;
    Ok((line.trim() == "yes").then_some(row.proposal))
}

fn turn(connection: &Connection, migration: &str, back: bool) -> Result<MigrationStatus, Public> {
    connection.run(connection.api().turn_migration(TurnMigrationRequest { migration: migration.to_owned(), back }))
}

fn print(status: &MigrationStatus, format: Format) -> Result<(), Failure> {
    if format != Format::Text {
        return show_value(format, &value(status)).could("print the migration");
    }
    let waits = if status.waiting.is_empty() { String::new() } else { format!("; waits: {}", status.waiting) };
    write_out(&crate::output::one_line(format!("{} is {}{waits}", status.id, status.state))).could("print the migration")?;
    write_out("\n").could("print the migration")
}

fn undo(global: &Global, migration: &str, wait: Duration, format: Format) -> Outcome {
    let connection = connect::open(global)?;
    let could = || format!("undo {migration}");
    let mut status = match turn(&connection, migration, true) {
        Ok(status) => status,
        Err(public) => return Err(Failure::new(could(), public)),
    };
    let end = Instant::now() + wait;
    while status.state != "absent" && !status.held && Instant::now() < end {
        // Made inside, where there are timers.
        connection.run(async { tokio::time::sleep(LOOK).await });
        let all = connection.run(connection.api().list_migrations(Empty {})).could(could())?.migrations;
        let gone = || Failure::new(could(), Public::new(Code::NotFound, "the Auth Service does not know it any more"));
        status = all.into_iter().find(|status| status.id == migration).ok_or_else(gone)?;
    }
    print(&status, format)?;
    Ok(undone(&status).into())
}

/// How far the way back is, for scripts.
fn undone(status: &MigrationStatus) -> Status {
    match (status.state.as_str(), status.held) {
        ("absent", _) => Status::Done,
        (_, true) => Status::Blocked,
        (_, false) => Status::Waiting,
    }
}

fn retry(global: &Global, migration: &str, format: Format) -> Outcome {
    let connection = connect::open(global)?;
    match turn(&connection, migration, false) {
        Ok(status) => print(&status, format).map(|()| ExitCode::SUCCESS),
        Err(public) => Err(Failure::new(format!("begin {migration} again"), public)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_can_tell_an_undo_that_is_under_way_from_one_that_is_held() {
        let check = |state: &str, held, expected| {
            assert_eq!(undone(&MigrationStatus { state: state.to_owned(), held, ..MigrationStatus::default() }), expected);
        };
        check("absent", false, Status::Done);
        check("undoing", false, Status::Waiting);
        check("undoing", true, Status::Blocked);
    }

    #[test]
    fn lengths_are_told_in_the_unit_that_fits() {
        let check = |seconds, expected: &str| assert_eq!(length(seconds), expected);
        check(0, "0 s");
        check(119, "119 s");
        check(150, "2 min");
        check(8000, "2 h");
    }
}
