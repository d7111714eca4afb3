//! `tctl windows …`: which majors the cluster admits in each role, and moving that one step at a time (docs/high-availability.md).
//!
//! The Auth Service decides every step; here is asked again while it says that waiting helps. Statuses for scripts: 0 done, 10 what
//! it waits for has not passed yet, 4 refused, with the step that comes first as the hint. While an upgrade is under way every step is
//! refused, since the upgrade moves the windows itself; `--force-during-upgrade` insists, and the audit log says so.

use super::{Global, connect, inventory};
use crate::{
    exit::{Could as _, Failure, Outcome},
    output::{Format, Style, Table, show, show_value, write_out},
};
use clap::Subcommand;
use serde_json::json;
use std::{
    collections::BTreeMap,
    process::ExitCode,
    time::{Duration, Instant},
};
use types::{Code, ControlRecord, Labels, Public, Resource, SystemRole, Ttl, kind::Member};
use upgrade::windows::ROLES;
use wire::api::{AuthSeat, Empty, EvictMemberRequest, MoveWindowRequest, WindowsReply, move_window_request::Move};

#[derive(Subcommand, Debug)]
pub(crate) enum Windows {
    /// Shows the majors admitted in each role, who is there, and which Auth Services admit by it
    Ls {
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Admits one more major in a role, the next above or, on the way back, below
    #[command(
        after_help = "Roles are auth, proxy, agent, draining and leaf.\n\nExamples:\n  tctl windows widen auth 9\n\nExit status: 0 done, 10 Auth Services have not acknowledged the last move yet, 4 refused."
    )]
    Widen {
        /// The role
        role: String,
        /// The major to admit
        major: u64,
        /// How long to wait for Auth Services that have not acknowledged the last move
        #[arg(long, default_value = "90s")]
        wait: Ttl,
        /// Also while an upgrade is under way, which moves the windows itself; audited
        #[arg(long)]
        force_during_upgrade: bool,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Closes a role to every major but one; whoever runs another one must have moved, or be evicted
    #[command(
        after_help = "Closing auth fences the Auth Services left outside: the store refuses their writes from then on.\n\nExamples:\n  tctl windows narrow agent 8\n\nExit status: 0 done, 4 refused."
    )]
    Narrow {
        /// The role
        role: String,
        /// The major to keep
        major: u64,
        /// Also while an upgrade is under way, which moves the windows itself; audited
        #[arg(long)]
        force_during_upgrade: bool,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
    /// Says of a member that fell silent that no window waits for it; void as soon as it reports again
    #[command(after_help = "Examples:\n  tctl windows evict web-17 --reason='scrapped'\n\nExit status: 0 done, 4 refused.")]
    Evict {
        /// Its name, or its id as `tctl inventory ls` shows it
        member: String,
        /// Why, for the audit log
        #[arg(long, default_value = "")]
        reason: String,
        /// Also while an upgrade is under way, which evicts by itself; audited
        #[arg(long)]
        force_during_upgrade: bool,
        /// How to print
        #[arg(short, long, value_enum, default_value_t)]
        format: Format,
    },
}

/// How long the Auth Service waits in one call, in seconds.
const CALL: u32 = 5;

pub(crate) fn run(global: &Global, what: &Windows) -> Outcome {
    match what {
        Windows::Ls { format } => ls(global, *format),
        Windows::Widen { role, major, wait, force_during_upgrade, format } => {
            step(global, &Step { role, wanted: Move::Widen(*major), wait: wait.0, during_upgrade: *force_during_upgrade }, *format)
        }
        Windows::Narrow { role, major, force_during_upgrade, format } => {
            step(global, &Step { role, wanted: Move::Narrow(*major), wait: Duration::ZERO, during_upgrade: *force_during_upgrade }, *format)
        }
        Windows::Evict { member, reason, force_during_upgrade, format } => evict(global, member, (reason, *force_during_upgrade), *format),
    }
}

/// The windows with what is known of who is there.
struct Seen {
    control: ControlRecord,
    seats: Vec<AuthSeat>,
    members: Vec<Resource<Member>>,
}

impl Seen {
    fn read(reply: WindowsReply, members: Vec<Resource<Member>>) -> Result<Self, Public> {
        let control = serde_json::from_slice(&reply.control)
            .map_err(|error| Public::new(Code::Malformed, format!("the control record cannot be read: {error}")))?;
        Ok(Self { control, seats: reply.seats, members })
    }

    /// How many members of a role run each major.
    fn majors(&self, role: &str) -> BTreeMap<u64, usize> {
        let mut counts = BTreeMap::new();
        for member in self.members.iter().filter(|member| stands_in(member, role)) {
            *counts.entry(member.spec.version.major()).or_insert(0) += 1;
        }
        counts
    }

    /// Names of members of a role that are not admitted any more.
    fn outside(&self, role: &str) -> Vec<String> {
        let Some(window) = self.control.windows.get(role) else { return Vec::new() };
        let out = |member: &&Resource<Member>| stands_in(member, role) && !window.contains(member.spec.version.major());
        self.members.iter().filter(out).map(|member| format!("{} ({})", member.spec.hostname, member.spec.version)).collect()
    }

    fn value(&self) -> serde_json::Value {
        let roles: Vec<_> = self
            .control
            .windows
            .iter()
            .map(|(role, window)| {
                let members: Vec<_> = self.majors(role).iter().map(|(major, count)| json!({"major": major, "count": count})).collect();
                json!({"role": role, "lo": window.lo, "hi": window.hi, "shut": window.shut, "members": members, "outside": self.outside(role)})
            })
            .collect();
        let seats: Vec<_> = self
            .seats
            .iter()
            .map(|seat| json!({"host_id": seat.host_id, "name": seat.name, "version": seat.version, "acknowledged": seat.acknowledged}))
            .collect();
        let level = self.control.cluster_version;
        json!({"generation": self.control.window_gen, "cluster_version": format!("{}.{}", level.major, level.step),
            "windows": roles, "auth_services": seats, "evictions": self.control.evictions})
    }

    fn print(&self, format: Format) -> Result<(), Failure> {
        if format != Format::Text {
            return show_value(format, &self.value()).could("print the windows");
        }
        let mut table = Table::new(&["Role", "Admits", "Members", "Outside"]);
        let known = ROLES.into_iter().filter(|role| self.control.windows.contains_key(*role));
        let others = self.control.windows.keys().map(String::as_str).filter(|role| !ROLES.contains(role));
        for role in known.chain(others) {
            let Some(window) = self.control.windows.get(role) else { continue };
            let admits = if window.lo == window.hi { window.lo.to_string() } else { format!("{}, {}", window.lo, window.hi) };
            let majors = self.majors(role).iter().map(|(major, count)| format!("{count} at {major}")).collect::<Vec<_>>().join(", ");
            table.row([role.to_owned(), admits, majors, self.outside(role).join(", ")]);
        }
        show(format, &table, "No windows.", &()).could("print the windows")?;
        let level = self.control.cluster_version;
        let mut text = format!("\nGeneration {}, cluster version {}.{}\n", self.control.window_gen, level.major, level.step);
        for seat in &self.seats {
            let heard = if seat.acknowledged == self.control.window_gen { "admits by these" } else { "has not acknowledged these yet" };
            text.push_str(&format!("{} ({}): {heard}\n", seat.name, seat.version));
        }
        for eviction in &self.control.evictions {
            let of = |field: &str| eviction.get(field).and_then(|value| value.as_str()).unwrap_or("?");
            text.push_str(&format!("Evicted: {} ({}) by {}\n", of("hostname"), of("version"), of("by")));
        }
        write_out(&text).could("print the windows")
    }
}

fn stands_in(member: &Resource<Member>, role: &str) -> bool {
    let in_window = |system: &SystemRole| system.window(member.spec.state == "draining") == Some(role);
    member.spec.state != Member::QUARANTINED && member.spec.roles.iter().any(in_window)
}

fn ls(global: &Global, format: Format) -> Outcome {
    let connection = connect::open(global)?;
    let seen = connection
        .run(async {
            let reply = connection.api().get_windows(Empty {}).await?;
            let members = connection.api().list::<Member>(&Labels::new()).await?.items;
            Seen::read(reply, members)
        })
        .could("read the windows")?;
    seen.print(format)?;
    Ok(ExitCode::SUCCESS)
}

/// One move of a window.
struct Step<'a> {
    role: &'a str,
    wanted: Move,
    wait: Duration,
    during_upgrade: bool,
}

fn step(global: &Global, step: &Step<'_>, format: Format) -> Outcome {
    let Step { role, wanted, wait, during_upgrade } = *step;
    let connection = connect::open(global)?;
    let could = match wanted {
        Move::Widen(major) => format!("open {role} to {major}"),
        Move::Narrow(major) => format!("close {role} to all but {major}"),
    };
    let end = Instant::now() + wait;
    let mut told = false;
    let reply = loop {
        let patience = u32::try_from(end.saturating_duration_since(Instant::now()).as_secs()).unwrap_or(CALL).min(CALL);
        let request = MoveWindowRequest { role: role.to_owned(), r#move: Some(wanted), patience, during_upgrade };
        match connection.run(connection.api().move_window(request)) {
            Err(public) if public.is(Code::UpgradeWaits) && Instant::now() < end => {
                if !std::mem::replace(&mut told, true) {
                    eprintln!("waiting: {}", crate::output::one_line(public.message));
                }
            }
            Err(public) => return Err(Failure::new(could, public)),
            Ok(reply) => break reply,
        }
    };
    let seen = Seen::read(reply, Vec::new()).could(could)?;
    if format != Format::Text {
        return seen.print(format).map(|()| ExitCode::SUCCESS);
    }
    let admits = seen.control.windows.get(role).map_or_else(String::new, |window| {
        if window.lo == window.hi { window.lo.to_string() } else { format!("{} and {}", window.lo, window.hi) }
    });
    let done = Style::of_stdout().green("Done.");
    write_out(&format!("{done} {role} admits {admits} now, generation {}.\n", seen.control.window_gen)).could("print the windows")?;
    Ok(ExitCode::SUCCESS)
}

pub(super) fn evict(global: &Global, member: &str, (reason, during_upgrade): (&str, bool), format: Format) -> Outcome {
    let connection = connect::open(global)?;
    let could = || format!("evict {member}");
    let members = connection.run(connection.api().list::<Member>(&Labels::new())).could(could())?.items;
    let found = inventory::called(&members, member).could(could())?;
    let request = EvictMemberRequest { host_id: found.name().to_string(), reason: reason.to_owned(), during_upgrade };
    match connection.run(connection.api().evict_member(request)) {
        Err(public) => Err(Failure::new(could(), public)),
        Ok(reply) if format != Format::Text => {
            Seen::read(reply, members).could(could())?.print(format)?;
            Ok(ExitCode::SUCCESS)
        }
        Ok(_) => {
            write_out(&format!("{} is evicted: no window waits for it until it reports again.\n", found.spec.hostname)).could("print")?;
            Ok(ExitCode::SUCCESS)
        }
    }
}
