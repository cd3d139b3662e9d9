//! Faults and slots in words. What another process calls itself is hostile text: nothing of it
//! reaches a terminal or a log but through [`printable`].

use std::fmt::{self, Write};

use super::{Fault, Process, Slot, Transition};

/// The most characters shown of a name that somebody else chose.
const MAX_SHOWN: usize = 64;

/// The longest line of an explanation that is shown, in characters.
const MAX_LINE: usize = 1000;

/// A name that somebody else chose, safe to show: at most 64 characters, and those that a
/// terminal would obey or a reader would not see (controls, direction marks, separators) escaped.
pub fn printable(text: &str) -> String {
    shown(text, MAX_SHOWN)
}

/// A text of any length, safe to show.
#[cfg(feature = "cli")]
pub(crate) fn visible(text: &str) -> String {
    shown(text, usize::MAX)
}

/// A line of somebody else's explanation, safe to show.
fn printable_line(text: &str) -> String {
    shown(text, MAX_LINE)
}

fn shown(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == most {
            shown.push('…');
            break;
        }
        match is_harmless(character) {
            true => shown.push(character),
            false => shown.extend(character.escape_unicode()),
        }
    }
    shown
}

fn is_harmless(character: char) -> bool {
    // Formatting characters of Unicode that move or hide text; letters and marks stay.
    let invisible = matches!(character,
        '\u{00ad}' | '\u{061c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
        | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}');
    !character.is_control() && !invisible
}

/// `nginx[812]`, with `?` for what is not known.
pub fn program_and_pid(process: &Process) -> String {
    let program = process.program.as_deref().map_or("?".to_owned(), printable);
    match process.pid {
        0 => format!("{program}[?]"),
        pid => format!("{program}[{pid}]"),
    }
}

/// The user's name, else the number.
pub fn user(process: &Process) -> String {
    process
        .user
        .as_deref()
        .map_or_else(|| process.uid.to_string(), printable)
}

/// `node[4121] ana api@1.service, since 2026-11-25T13:00:00Z`.
fn process(process: &Process) -> String {
    let mut text = format!("{} {}", program_and_pid(process), user(process));
    if let Some(unit) = &process.unit {
        let _ = write!(text, " {}", printable(unit));
    }
    if let Some(label) = &process.label {
        let _ = write!(text, " \"{}\"", printable(label));
    }
    if let Some(since) = &process.since {
        let _ = write!(text, ", since {since}");
    }
    text
}

/// `api-server/1 9002: held by nginx[812] root nginx.service`.
pub fn describe_conflict(slot: &Slot) -> String {
    let who = match &slot.conflict {
        Some(intruder) => {
            let since = None;
            let intruder = Process {
                since,
                ..intruder.clone()
            };
            format!("held by {}", process(&intruder))
        }
        None => {
            "held by a process that the agent may not see, or for a minute by connections that \
                 one has closed; see: ss -tuanp"
                .to_owned()
        }
    };
    format!("{}/{} {}: {who}", slot.pool, slot.instance, slot.port)
}

/// `2026-11-25T13:00:00Z api-server/1 9002 leased -> parked (holder-died) node[4121] ana`.
pub fn describe_transition(transition: &Transition) -> String {
    let Transition {
        pool,
        instance,
        port,
        from,
        to,
        reason,
        time,
        ..
    } = transition;
    let mut text = format!("{time} {pool}/{instance} {port} {from} -> {to} ({reason})");
    if let Some(holder) = &transition.holder {
        let since = None;
        let holder = Process {
            since,
            ..holder.clone()
        };
        let _ = write!(text, " {}", process(&holder));
    }
    text
}

/// A slot of an exhausted pool, and why it cannot be had.
fn taken(slot: &Slot) -> String {
    match (&slot.holder, slot.state.as_str()) {
        (Some(holder), _) => format!("{} leased to {}", slot.port, process(holder)),
        (None, "conflict") => match &slot.conflict {
            Some(intruder) => format!(
                "{} in conflict: {} had it first",
                slot.port,
                process(intruder)
            ),
            None => format!("{} in conflict: somebody else had it first", slot.port),
        },
        (None, "unavailable") => format!(
            "{} unavailable: its address does not exist (yet)",
            slot.port
        ),
        (None, state) => match &slot.restarting_until {
            Some(until) => format!(
                "{} {state}: kept for its former holder's successor until {until}",
                slot.port
            ),
            None => format!("{} {state}", slot.port),
        },
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Fault::UnknownPool {
                pool,
                nearest: Some(nearest),
            } => {
                write!(
                    f,
                    "there is no pool {:?}; did you mean {nearest:?}?",
                    printable(pool)
                )
            }
            Fault::UnknownPool {
                pool,
                nearest: None,
            } => {
                write!(
                    f,
                    "there is no pool {:?}; see: portpool list",
                    printable(pool)
                )
            }
            Fault::UnknownInstance {
                pool,
                instance,
                instances,
            } => write!(
                f,
                "{pool} has no instance {instance}: the agent holds {instances}; claim the next one with \
                 --instance auto, or raise `instances` in [agent]"
            ),
            Fault::PoolExhausted {
                pool,
                instance,
                slots,
            } => {
                let why = match slots.iter().any(|slot| slot.state == "parked") {
                    true => "fewer ports are free than asked for",
                    false => "every port is taken",
                };
                write!(f, "pool {pool} is exhausted in instance {instance}: {why}")?;
                for slot in slots {
                    write!(f, "\n  {}", taken(slot))?;
                }
                write!(
                    f,
                    "\nend one of these, or add ports to [pool.{pool}]; nothing outside the pool is used"
                )
            }
            Fault::PermissionDenied {
                pool,
                uid,
                rule,
                fix,
            } => {
                write!(f, "user {uid} is denied")?;
                if !pool.is_empty() {
                    write!(f, " {pool}")?;
                }
                write!(f, ": {rule}\nwhat would allow it: {fix}")
            }
            Fault::Claimed { instance, holder } => {
                let who = holder
                    .as_ref()
                    .map_or("another process".to_owned(), |holder| process(holder));
                write!(
                    f,
                    "instance {instance} is claimed by {who}\nask for another one with --instance N, \
                     or for one of your own with --instance auto; the claim ends with that process"
                )
            }
            Fault::NoInstance { instances } => write!(
                f,
                "every instance, from 1 to {instances}, is claimed or in use; see: portpool list\n\
                 end one, or raise `max_instances` in [agent]"
            ),
            Fault::TakeoverUnderWay {
                pool,
                instance,
                port,
            } => write!(
                f,
                "{pool}/{instance} {port}: another successor is taking it over; see: portpool list \
                 {pool}\ntry again once that one is ready, or end it"
            ),
            Fault::CannotListen {
                pool,
                instance,
                port,
                reason,
            } => write!(
                f,
                "{pool}/{instance} {port}: no listener can be made for the successor: {}\n\
                 its holder has it as before",
                printable(reason)
            ),
            Fault::ConnectionsRemain { lease_id, reason } => write!(
                f,
                "lease {lease_id} is revoked, but connections of its holder go on: {}\n\
                 they end with that process",
                printable(reason)
            ),
            Fault::ReloadRefused { reason } | Fault::UpgradeRefused { reason } => {
                // Diagnostics have several lines, whose layout is their own.
                let lines: Vec<String> = reason.lines().map(printable_line).collect();
                f.write_str(&lines.join("\n"))
            }
            Fault::Draining { pool } => write!(
                f,
                "pool {pool} is being removed from the plan: it gives no new lease"
            ),
            Fault::Lagged { missed } => write!(
                f,
                "{missed} changes were missed, and the watch has ended: it was read too slowly\n\
                 see how things stand with: portpool list; then watch again"
            ),
            Fault::TooManySockets { sockets, limit } => {
                write!(
                    f,
                    "that is {sockets} sockets, and one message carries {limit}: ask for fewer at once"
                )
            }
            Fault::UnknownLease { lease_id } => {
                write!(f, "lease {lease_id} is not yours, or has ended already")
            }
            Fault::Busy { limit } => write!(
                f,
                "the agent is at a limit: {}; try again later",
                printable(limit)
            ),
            Fault::ProtocolError { reason } => {
                write!(f, "the agent did not understand: {}", printable(reason))
            }
            Fault::InterfaceNotFound { interface } => {
                write!(f, "the agent has no interface {:?}", printable(interface))
            }
            Fault::MethodNotFound { method } => write!(
                f,
                "the agent has no method {:?}; it may be older than this program: portpool status",
                printable(method)
            ),
            Fault::InvalidParameter { parameter } => {
                write!(
                    f,
                    "the agent does not accept a parameter: {}",
                    printable(parameter)
                )
            }
            Fault::ExpectedMore {} => {
                write!(f, "the answer takes several replies: call with `more`")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_is_shown_and_not_obeyed() {
        assert_eq!(printable("no\u{1b}[2Jde"), "no\\u{1b}[2Jde");
        assert_eq!(printable("a\nb\u{202e}c"), "a\\u{a}b\\u{202e}c");
        assert_eq!(printable("naïve-日本"), "naïve-日本");
        assert_eq!(printable(&"x".repeat(5000)).chars().count(), 65);
    }

    #[test]
    fn an_exhausted_pool_names_every_port_and_holder() {
        let holder = Process {
            pid: 7,
            uid: 1000,
            user: Some("ana".into()),
            program: Some("node".into()),
            since: Some("2026-11-25T13:00:00Z".into()),
            ..Process::default()
        };
        let slot = |port| Slot {
            pool: "api".into(),
            instance: 1,
            port,
            protocol: "tcp".into(),
            addresses: vec![],
            category: None,
            state: "leased".into(),
            generation: 1,
            lease_id: Some(1),
            holder: Some(holder.clone()),
            queue: None,
            conflict: None,
            orphans: vec![],
            restarting_until: None,
            successor: None,
        };
        let fault = Fault::PoolExhausted {
            pool: "api".into(),
            instance: 1,
            slots: vec![slot(90), slot(91)],
        };
        let text = fault.to_string();
        assert!(
            text.contains("90 leased to node[7] ana, since 2026-11-25T13:00:00Z"),
            "{text}"
        );
        assert!(text.contains("91 leased to node[7] ana"), "{text}");
    }
}
