//! Every change of a slot in the log: one entry each, with fields that stay what they are.

use super::core::Agent;
use crate::ledger::{Change, LeaseId, Obstacle, Reason, State};
use crate::protocol::printable;
use crate::sys::process;

/// One entry. The fields are those of docs/deploy.md.
macro_rules! entry {
    ($level:ident, $of:ident, $text:expr) => {
        tracing::$level!(
            target: "portpool::slot",
            pool = $of.pool,
            instance = $of.instance,
            port = $of.port,
            from = $of.from,
            to = $of.to,
            reason = $of.reason.word(),
            generation = $of.generation,
            lease = $of.lease,
            holder_pid = $of.pid,
            holder_uid = $of.uid,
            error = $of.error,
            message_id = message_id($of.reason),
            "{}",
            $text
        )
    };
}

/// What an entry says.
struct Entry {
    reason: Reason,
    pool: String,
    instance: u16,
    port: u16,
    from: &'static str,
    to: &'static str,
    generation: u64,
    lease: Option<u64>,
    pid: Option<u32>,
    uid: Option<u32>,
    error: Option<String>,
}

impl Agent {
    /// Writes a change into the log.
    pub(super) fn log(&self, change: Change) {
        let Change {
            slot,
            from,
            to,
            reason,
            holder,
        } = change;
        let is_usual = matches!(to, State::Parked) && reason == Reason::Held;
        if is_usual && !self.conflicts.is_known(slot) {
            // Thousands at the start, of which a line tells.
            return;
        }
        let is_trouble = matches!(to, State::Unheld(_) | State::Hostage);
        if !is_trouble && !tracing::enabled!(target: "portpool::slot", tracing::Level::DEBUG) {
            if is_usual {
                self.log_held(change);
            }
            return;
        }
        let planned = &self.slots[slot.0 as usize];
        let holder = holder.and_then(|holder| self.holders.get(holder));
        let entry = Entry {
            reason,
            pool: planned.name(),
            instance: planned.instance.get(),
            port: planned.port.get(),
            from: super::report::word(from),
            to: super::report::word(to),
            generation: self.ledger.generation(slot),
            lease: match (to, from) {
                (State::Leased(LeaseId(lease)), _) | (_, State::Leased(LeaseId(lease))) => {
                    Some(lease)
                }
                _ => None,
            },
            pid: holder.map(|holder| holder.pid),
            uid: holder.map(|holder| holder.uid),
            error: self.conflicts.error(slot).filter(|_| is_trouble),
        };
        let Entry {
            pool,
            instance,
            port,
            ..
        } = &entry;
        match to {
            State::Unheld(Obstacle::Untried) => entry!(info, entry, "given up"),
            State::Unheld(obstacle) => {
                let obstacle = match obstacle {
                    Obstacle::Conflict => "conflict: somebody else has the port",
                    Obstacle::Unavailable | Obstacle::Untried => "unavailable",
                };
                entry!(
                    warn,
                    entry,
                    format_args!("{obstacle}; trying again until it is free")
                );
            }
            State::Hostage => entry!(
                warn,
                entry,
                "hostage: a former holder's copy of the socket is in the way; see portpool list"
            ),
            _ if is_usual => entry!(info, entry, "held now"),
            _ => {
                let program = holder.and_then(|holder| process::program(holder.pid));
                let by = match (entry.pid, program) {
                    (Some(pid), Some(program)) => format!(", {}[{pid}]", printable(&program)),
                    (Some(pid), None) => format!(", process {pid}"),
                    (None, _) => String::new(),
                };
                let (from, to, reason) = (entry.from, entry.to, reason.word());
                entry!(
                    debug,
                    entry,
                    format_args!("{pool}/{instance} {port}: {from}, now {to}: {reason}{by}")
                );
            }
        }
    }

    fn log_held(&self, change: Change) {
        let planned = &self.slots[change.slot.0 as usize];
        let (pool, port) = (planned.name(), planned.port.get());
        tracing::info!(pool, port, "held now");
    }
}

/// Tells programs what kind of entry it is: `MESSAGE_ID` of systemd.journal-fields(7). They never
/// change.
fn message_id(reason: Reason) -> &'static str {
    match reason {
        Reason::Held => "4020a928b2764eec931293659fcdc5e8",
        Reason::Obstructed => "35ad07dda30143eab9e3cf00725211da",
        Reason::Hostage => "71d8a81497a6463b964c3d664b7ca142",
        Reason::Freed => "d3d0e0f3dbc244dc8be87ce5db86faf2",
        Reason::Queueing => "c19ade6fa0304c7199dea754c891e0fd",
        Reason::Acquired => "833f641376db481aa7a8b8680555aecd",
        Reason::Resumed => "1902be6418934b8ba0464a466ba7d30b",
        Reason::Released => "1cff997e02124430b0816b15d11a7c25",
        Reason::Revoked => "cc604cde970041a28ca1fddd34950ca9",
        Reason::HolderDied => "ca30d0d15b6248b2aa7dac90b1e01857",
        Reason::Undelivered => "5b97e4fb037f4fee8ae1a9a3f6f2f996",
        Reason::WindowOver => "2e81da72b16a45b0a5ede2edbf2d93c0",
        Reason::Orphaned => "f88cf2f0e02e4008a15a9116fdfeb1eb",
        Reason::TakeoverBegun => "2c712a6f2fef4d0c8a4b3c5bdbf63e14",
        Reason::TakeoverFailed => "6c4de9641f9c48b997882525b54dcbc0",
        Reason::TakenOver => "21376c2e3aca433c91774c81f1c23391",
        Reason::Healed => "25c8d8d4522c4fc4a22c2aac7488cc69",
        Reason::InstanceOver => "7299cbf80c1242c5982cd581bdeac86e",
        Reason::Drained => "b2e0e3f8726d4e25b7ceebfeb0ef5627",
        Reason::Reloaded => "af1536c69d7045f5b79d6041989dd5bb",
    }
}
