//! What processes ask the agent's heart for, and how it answers: the requests of the protocol's
//! calls as events of the ledger.

use std::hash::{Hash, Hasher};
use std::io;

use siphasher::sip::SipHasher13;
use tokio::sync::oneshot;

use super::core::Agent;
use super::inspector;
use crate::config::OnRevoke;
use crate::ledger::{
    Asker, Event, HolderId, Instance, Kin, Label, LeaseId, Refusal, RequestId, Takeover, UnitId,
    UserId, Wait, Want,
};
use crate::sys::hold::Transport;
use crate::sys::process;
use crate::sys::sock_diag::{self, Connection};

/// What a process asks for.
#[derive(Debug)]
pub(crate) struct Demand {
    /// Of which instance.
    pub(crate) instance: Instance,
    /// So many slots of these pools.
    pub(crate) wants: Vec<Want>,
    /// How long it waits for what is taken.
    pub(crate) wait: Wait,
    /// Whether it replaces a living holder.
    pub(crate) takeover: Option<Takeover>,
    /// What it calls itself.
    pub(crate) label: Option<String>,
    /// What it is about to become: `portpool exec` is another program a moment later.
    pub(crate) program: Option<String>,
    /// The signal it gets, instead of the pool's, when it loses what it has.
    pub(crate) on_revoke: Option<OnRevoke>,
}

/// What became of a request.
#[derive(Debug)]
pub(crate) enum Answer {
    /// It has these leases, in the order asked for.
    Granted(Vec<LeaseId>),
    /// What it told of has its effect.
    Done,
    /// It has nothing.
    Refused(Refusal),
}

/// Answers come through this; it is closed unanswered only when the agent ends.
pub(crate) type Answers = oneshot::Receiver<Answer>;

/// Makes numbers of names, of which the ledger knows none. Two names have one number once in so
/// many agents' lifetimes that it does not matter, and nobody can find such two: the hash has a
/// secret. With the same secret they are the same in the next agent.
#[derive(Debug)]
pub(super) struct Numbers {
    secret: [u64; 2],
}

impl Numbers {
    pub(super) fn new(secret: [u64; 2]) -> Numbers {
        Numbers { secret }
    }

    pub(super) fn secret(&self) -> [u64; 2] {
        self.secret
    }

    fn of(&self, names: impl Hash) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.secret[0], self.secret[1]);
        names.hash(&mut hasher);
        hasher.finish()
    }

    fn kin(&self, user: u32, unit: Option<&str>, program: &str) -> Kin {
        Kin(match unit {
            Some(unit) => self.of(("unit", user, unit)),
            None => self.of(("program", user, program)),
        })
    }

    fn unit(&self, unit: &str) -> UnitId {
        UnitId(self.of(unit))
    }

    fn label(&self, label: &str) -> Label {
        Label(self.of(label))
    }
}

impl Agent {
    /// Asks for slots in the name of a process; the answer may take as long as it waits.
    pub(crate) fn acquire(&mut self, holder: HolderId, demand: Demand) -> (RequestId, Answers) {
        self.end_what_never_arrived(holder);
        let (request, answer) = self.new_request();
        let asker = self.asker(holder, &demand);
        if let Some(known) = self.holders.get_mut(holder) {
            // What it says last is what counts, for all it has.
            known.label = demand.label.or(known.label.take());
            known.on_revoke = demand.on_revoke.or(known.on_revoke);
        }
        self.take_in(Event::Acquire {
            request,
            asker,
            instance: demand.instance,
            wants: demand.wants,
            wait: demand.wait,
            takeover: demand.takeover,
        });
        (request, answer)
    }

    /// Ends the leases that an agent before this one granted to a process and could not send it any
    /// more: now that it asks again, it has read all that there ever was for it.
    fn end_what_never_arrived(&mut self, holder: HolderId) {
        let Some(pid) = self.holders.get(holder).map(|known| known.pid) else {
            return;
        };
        let uncertain = self.ledger.uncertain(holder);
        if uncertain.is_empty() {
            return;
        }
        let sockets: Vec<(LeaseId, Vec<u64>)> = uncertain
            .into_iter()
            .map(|lease| (lease, self.inodes_of(lease)))
            .collect();
        let all = sockets
            .iter()
            .flat_map(|(_, inodes)| inodes.iter().copied());
        let has = inspector::those_of(pid, &all.collect());
        if let Err(error) = &has {
            tracing::warn!(pid, %error, "whether this process has what it was granted is not to be seen; its leases are kept");
        }
        let mut never_arrived = Vec::new();
        for (lease, inodes) in sockets {
            match &has {
                Ok(has) if !inodes.iter().any(|inode| has.contains(inode)) => {
                    never_arrived.push(lease)
                }
                _ => {
                    self.ledger.confirm(lease);
                    self.sent(&[lease]);
                }
            }
        }
        if !never_arrived.is_empty() {
            self.take_in(Event::Undelivered(never_arrived));
        }
    }

    fn inodes_of(&self, lease: LeaseId) -> Vec<u64> {
        let slot = self.ledger.lease(lease).map(|lease| lease.slot);
        let generation = slot.and_then(|slot| self.ledger.generation_of(lease, slot));
        let known = slot.zip(generation);
        known.map_or(Vec::new(), |(slot, generation)| {
            self.kernel.inodes(slot, generation)
        })
    }

    fn asker(&mut self, holder: HolderId, demand: &Demand) -> Asker {
        let (unit, program, user) = self.facts(holder);
        let program = demand.program.clone().unwrap_or(program);
        Asker {
            holder,
            kin: self.numbers.kin(user, unit.as_deref(), &program),
            user: UserId(user),
            is_exempt: user == 0 || user == self.about.uid,
            unit: unit.map(|unit| self.numbers.unit(&unit)),
            label: demand.label.as_ref().map(|label| self.numbers.label(label)),
        }
    }

    /// What makes the successor of a process that has not said what it becomes, and its user.
    pub(super) fn kin_of(&mut self, holder: HolderId) -> (Kin, u32) {
        let (unit, program, user) = self.facts(holder);
        (self.numbers.kin(user, unit.as_deref(), &program), user)
    }

    /// The unit, the name and the user of a process, the first two as they were when it first asked.
    fn facts(&mut self, holder: HolderId) -> (Option<String>, String, u32) {
        let Some(known) = self.holders.get_mut(holder) else {
            return (None, String::new(), 0);
        };
        if known.facts.is_none() {
            let unit = process::system_unit(known.pid);
            let program = process::program(known.pid).unwrap_or_default();
            // The pid meant this process only if it still lives; if not, its end is on its way to the
            // ledger.
            let facts = process::is_alive(known.pidfd()).then_some((unit, program));
            known.facts = Some(facts.unwrap_or_default());
        }
        let (unit, program) = known.facts.clone().unwrap_or_default();
        (unit, program, known.uid)
    }

    /// Nobody waits for the answer any more.
    pub(crate) fn cancel(&mut self, request: RequestId) {
        self.take_in(Event::Cancel(request));
    }

    /// Gives a lease back in the name of a process.
    pub(crate) fn release(&mut self, holder: HolderId, lease: LeaseId) -> Answers {
        let (request, answer) = self.new_request();
        self.take_in(Event::Release {
            request,
            holder,
            lease,
        });
        answer
    }

    /// A successor that took a slot over can serve it from now on.
    pub(crate) fn ready(&mut self, holder: HolderId, lease: LeaseId) -> Answers {
        let (request, answer) = self.new_request();
        self.take_in(Event::Ready {
            request,
            holder,
            lease,
        });
        answer
    }

    /// Takes a lease back from whoever has it. That the asker may do so is known already.
    pub(crate) fn revoke(&mut self, lease: LeaseId) -> Answers {
        let (request, answer) = self.new_request();
        self.take_in(Event::Revoke { request, lease });
        answer
    }

    /// The connections that holders of a lease's ports have accepted. Asked right after it was
    /// revoked, these are all its holder's own, and those of who had the port before: no next
    /// holder can have any before the agent has gone on to other things.
    ///
    /// # Errors
    /// What the kernel's socket tables say.
    pub(crate) fn connections_at(ports: &[u16]) -> io::Result<Vec<Connection>> {
        let mut all = Vec::new();
        for port in ports {
            all.extend(sock_diag::connections_at(*port)?);
        }
        Ok(all)
    }

    /// The TCP ports that go with a lease.
    pub(crate) fn ports_of(&self, lease: LeaseId) -> Vec<u16> {
        let Some(lease) = self.ledger.lease(lease) else {
            return Vec::new();
        };
        let companions = self.ledger.companions(lease.slot).iter().copied();
        let ports = std::iter::once(lease.slot)
            .chain(companions)
            .filter_map(|slot| self.kernel.port(slot));
        ports
            .filter(|(_, transport)| *transport == Transport::Tcp)
            .map(|(port, _)| port)
            .collect()
    }

    fn new_request(&mut self) -> (RequestId, Answers) {
        self.requests += 1;
        let request = RequestId(self.requests);
        let (sender, answer) = oneshot::channel();
        self.waiting.insert(request, sender);
        (request, answer)
    }

    pub(super) fn answer(&mut self, request: RequestId, answer: Answer) {
        if let Some(waiting) = self.waiting.remove(&request) {
            // A connection that is gone by now has given up its leases in its own way.
            drop(waiting.send(answer));
        }
    }
}
