//! `portpool list`: every slot, trouble first, runs of parked ports on one line.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde::Serialize;
use tabled::builder::Builder;
use tabled::settings::{Padding, Style};

use super::failure::{FINDINGS, Failure, print};
use crate::protocol::{
    ListParameters, Process, Slot, describe_conflict, printable, program_and_pid, user,
};

/// Show every slot: its state, who has it, since when.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Only this pool
    #[arg(value_name = "POOL")]
    pool: Option<String>,

    /// Only this instance
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    instance: Option<u16>,

    /// Every slot on a line of its own
    #[arg(short, long)]
    all: bool,

    /// Only slots that are leased
    #[arg(long)]
    leased: bool,

    /// As JSON, an array of slots
    #[arg(long)]
    json: bool,

    /// Ask the agent that `exec --config FILE` started for this file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments, socket: Option<PathBuf>) -> Result<u8, Failure> {
    let client = super::connect_to(arguments.config.as_deref(), socket)?;
    let wanted = ListParameters {
        pool: arguments.pool.clone(),
        instance: arguments.instance,
    };
    let mut slots = client.list(&wanted)?;
    if arguments.leased {
        slots.retain(|slot| slot.holder.is_some());
    }
    let text = match arguments.json {
        true => json(&slots)?,
        false => table(&slots, arguments.all, SystemTime::now()),
    };
    print(&text).map(|()| 0)
}

/// A value as JSON with a line feed after it.
pub(super) fn json(value: &impl Serialize) -> Result<String, Failure> {
    let text = serde_json::to_string_pretty(value);
    text.map(|text| text + "\n")
        .map_err(|error| Failure::new(FINDINGS, error))
}

fn table(slots: &[Slot], all: bool, now: SystemTime) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for slot in slots.iter().filter(|slot| slot.state == "conflict") {
        let age = slot.conflict.as_ref().and_then(|who| age(who, now));
        let age = age.map_or(String::new(), |age| format!(", for {age}"));
        let _ = writeln!(text, "CONFLICT  {}{age}", describe_conflict(slot));
    }
    for slot in slots.iter().filter(|slot| slot.state == "unavailable") {
        let addresses = slot.addresses.join(", ");
        let _ = writeln!(
            text,
            "UNAVAILABLE  {}/{} {}: {addresses} cannot be listened on (yet)",
            slot.pool, slot.instance, slot.port
        );
    }
    for slot in slots {
        let place = format!("{}/{} {}", slot.pool, slot.instance, slot.port);
        if let Some(successor) = &slot.successor {
            let who = named(successor);
            let _ = writeln!(
                text,
                "TAKEOVER  {place}: {who} takes it over once it is ready"
            );
        }
        for orphan in &slot.orphans {
            let who = named(orphan);
            let _ = writeln!(
                text,
                "ORPHAN  {place}: {who} has a listener of it without a lease,\n        \
                 and gets nothing: end it, or run services in the foreground"
            );
        }
    }
    if !text.is_empty() {
        text.push('\n');
    }
    let mut rows = Builder::default();
    rows.push_record([
        "POOL", "PORT", "STATE", "HOLDER", "USER", "UNIT", "AGE", "Q",
    ]);
    for run in runs(slots, all) {
        rows.push_record(row(run, now));
    }
    let mut table = rows.build();
    table.with(Style::empty()).with(Padding::new(0, 1, 0, 0));
    for line in table.to_string().lines() {
        let _ = writeln!(text, "{}", line.trim_end());
    }
    let _ = writeln!(text, "{}", summary(slots));
    text
}

/// `node[4121] ana`.
fn named(process: &Process) -> String {
    format!("{} {}", program_and_pid(process), user(process))
}

/// Slots that share a line: neighbours that are parked, of one pool and instance.
fn runs(slots: &[Slot], all: bool) -> impl Iterator<Item = &[Slot]> {
    slots.chunk_by(move |one, next| {
        let same_pool = one.pool == next.pool && one.instance == next.instance;
        let both_parked = one.state == "parked" && next.state == "parked";
        !all && same_pool && both_parked && one.port.checked_add(1) == Some(next.port)
    })
}

fn row(run: &[Slot], now: SystemTime) -> [String; 8] {
    let (Some(first), Some(last)) = (run.first(), run.last()) else {
        return Default::default();
    };
    let ports = match first.port == last.port {
        true => first.port.to_string(),
        false => format!("{}-{}", first.port, last.port),
    };
    let who: Option<&Process> = first.holder.as_ref().or(first.conflict.as_ref());
    let dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
    let blank_when_parked = |text: Option<String>| match first.state.as_str() {
        "parked" => String::new(),
        _ => dash(text),
    };
    let protocol = if first.protocol == "tcp" { "" } else { "/udp" };
    [
        format!("{}/{}", first.pool, first.instance),
        format!("{ports}{protocol}"),
        state(first, now),
        blank_when_parked(who.map(program_and_pid)),
        blank_when_parked(who.map(user)),
        blank_when_parked(who.and_then(|who| who.unit.as_deref()).map(printable)),
        blank_when_parked(who.and_then(|who| age(who, now))),
        blank_when_parked(first.queue.map(|queue| queue.length.to_string())),
    ]
}

/// The state, and for how long a restarting slot is kept.
fn state(slot: &Slot, now: SystemTime) -> String {
    let until = slot.restarting_until.as_deref();
    let until = until.and_then(|until| humantime::parse_rfc3339(until).ok());
    match until.map(|until| until.duration_since(now).unwrap_or(Duration::ZERO)) {
        Some(left) => format!("{} {}", slot.state, short(left)),
        None => slot.state.clone(),
    }
}

fn age(process: &Process, now: SystemTime) -> Option<String> {
    let since = humantime::parse_rfc3339(process.since.as_deref()?).ok()?;
    let age = now.duration_since(since);
    Some(short(age.unwrap_or(Duration::ZERO)))
}

/// A duration by its largest unit.
fn short(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..60 => format!("{seconds}s"),
        seconds @ 60..3_600 => format!("{}m", seconds / 60),
        seconds @ 3_600..86_400 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

fn summary(slots: &[Slot]) -> String {
    let mut text = match slots.len() {
        1 => "1 slot".to_owned(),
        count => format!("{count} slots"),
    };
    let states = [
        "leased",
        "queueing",
        "restarting",
        "parked",
        "conflict",
        "unavailable",
        "hostage",
    ];
    let counts = states.iter().filter_map(|state| {
        let count = slots.iter().filter(|slot| slot.state == *state).count();
        (count > 0).then(|| format!("{count} {state}"))
    });
    let counts: Vec<String> = counts.collect();
    if !counts.is_empty() {
        let _ = write!(text, ": {}", counts.join(", "));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(pool: &str, port: u16, state: &str) -> Slot {
        Slot {
            pool: pool.to_owned(),
            instance: 1,
            port,
            protocol: "tcp".to_owned(),
            addresses: vec!["127.0.0.1".to_owned()],
            category: None,
            state: state.to_owned(),
            generation: 0,
            lease_id: None,
            holder: None,
            queue: None,
            conflict: None,
            orphans: Vec::new(),
            restarting_until: None,
            successor: None,
        }
    }

    fn process(program: &str, pid: u32) -> Process {
        Process {
            pid,
            uid: 1000,
            user: Some("ana".to_owned()),
            program: Some(program.to_owned()),
            since: Some("1970-01-01T00:00:00Z".to_owned()),
            ..Process::default()
        }
    }

    #[test]
    fn a_list_puts_trouble_first_and_parked_runs_on_one_line() {
        let mut leased = slot("api-server", 9000, "leased");
        leased.holder = Some(process("node", 4121));
        leased.queue = Some(crate::protocol::Queue {
            length: 7,
            limit: 4096,
        });
        let mut conflict = slot("api-server", 9002, "conflict");
        conflict.conflict = Some(process("ngi\u{1b}[31mnx", 812));
        let mut taken_over = slot("api-server", 9003, "leased");
        taken_over.holder = Some(process("node", 4377));
        taken_over.successor = Some(process("node", 4411));
        let mut restarting = slot("api-server", 9004, "restarting");
        restarting.restarting_until = Some("1970-01-01T00:12:21Z".to_owned());
        restarting.orphans = vec![process("child", 4400)];
        let slots = [
            leased,
            slot("api-server", 9001, "parked"),
            conflict,
            taken_over,
            restarting,
            slot("voice", 7000, "parked"),
            slot("voice", 7001, "parked"),
            slot("voice", 7002, "parked"),
        ];
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(720);
        insta::assert_snapshot!(table(&slots, false, now));
    }
}
