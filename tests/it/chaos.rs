//! The ledger's promises against the real kernel: processes of two users take slots, lose them, and misuse what
//! they have in random order; after each step what the agent lists is compared with what clients find.
//!
//! `PORTPOOL_CHAOS_SEED` repeats a run (but for what the kernel's scheduler does), `PORTPOOL_CHAOS_STEPS` makes it
//! longer.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use portpool::protocol::Slot;

use crate::exchange::{Failure, ask, ask_by_datagram};
use crate::host::{Agent, Host, NOBODY, Process, lives, on_a_host, wait_until};
use crate::revoked::{SOMEBODY, is_refused};

const STEPS: u32 = 300;

/// Tenants at a time.
const TENANTS: usize = 6;

/// How many of those that are gone are remembered: as long as they are, their children live.
const GHOSTS: usize = 3;

/// How many processes at a time try for ever to listen again: each takes a whole CPU.
const LOOPS: usize = 2;

/// How long a listener may take to be healed that somebody shut again and again.
const HEALED: Duration = Duration::from_secs(5);

const PLAN: &str = r#"
    [defaults]
    allow = { users = ["65534", "65533"] }
    [pool.many]
    ports = "9000-9002"
    [pool.all]
    ports = "9010-9011"
    address = "[::]"
    [pool.kept]
    ports = 9020
    restart_window = "50ms"
    [pool.datagrams]
    ports = "9030-9031"
    protocol = "udp"
"#;

const POOLS: [&str; 4] = ["many", "all", "kept", "datagrams"];

/// What a holder does to its own sockets by accident, and what only a hostile one does.
const ACCIDENTS: [&str; 4] = ["shutdown", "filter", "options", "fork"];
const HOSTILE: [&str; 6] = ["block", "share", "device", "lock", "fork rejoin", "rejoin"];

/// Random numbers that a seed repeats: splitmix64.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let limit = u64::try_from(limit).expect("few");
        usize::try_from((mixed ^ (mixed >> 31)) % limit).expect("few")
    }

    fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

struct Tenant {
    process: Process,
    uid: u32,
}

/// What the tenants were told, and did.
struct World<'a> {
    host: &'a Host,
    agent: &'a Agent<'a>,
    dice: Dice,
    /// Else it is level held, which promises nothing against hostile holders.
    is_enforced: bool,
    tenants: Vec<Tenant>,
    ghosts: Vec<Process>,
    loops: usize,
    /// Whose leases there are: the tenant's pid and the port.
    leases: BTreeMap<u64, (u32, u16)>,
    /// Ports and generations whose hostile holder keeps its own listener from being healed: nobody else's
    /// harm, and not waited for twice.
    ruined: Vec<(u16, u64)>,
    /// Which sockets each process has: port and generation.
    sockets: BTreeMap<u32, Vec<(u16, u64)>>,
    /// The ports that somebody may have shut.
    shut: Vec<u16>,
    intruder: Process,
}

impl World<'_> {
    fn step(&mut self) -> String {
        match self.dice.below(100) {
            0..10 => self.arrive(),
            10..45 => self.acquire(),
            45..55 => self.release(),
            55..65 => self.revoke(),
            65..88 => self.misuse(),
            88..95 => self.kill(),
            _ => self.forget_a_ghost(),
        }
    }

    fn arrive(&mut self) -> String {
        if self.tenants.len() >= TENANTS {
            return self.kill();
        }
        let uid = self.dice.one_of(&[NOBODY, SOMEBODY]);
        let socket = self.host.socket();
        let arguments = ["tenant", socket.to_str().expect("text")];
        let process = self.host.role(&arguments, uid);
        process.wait_for("connected");
        let what = format!("{} of {uid} arrives", process.id());
        self.tenants.push(Tenant { process, uid });
        what
    }

    fn a_tenant(&mut self) -> usize {
        if self.tenants.is_empty() {
            self.arrive();
        }
        self.dice.below(self.tenants.len())
    }

    fn acquire(&mut self) -> String {
        let tenant = self.a_tenant();
        let pool = self.dice.one_of(&POOLS);
        let count = 1 + self.dice.below(2);
        let takeover = self.dice.one_of(&["", "", r#","takeover":"now""#]);
        // With several slots of which one is taken over it would not be seen which had been free.
        let count = if takeover.is_empty() { count } else { 1 };
        let slots = self.agent.slots(pool);
        let free = slots.iter().filter(|slot| slot.state == "parked").count();
        let tenant = &mut self.tenants[tenant];
        let (pid, uid) = (tenant.process.id(), tenant.uid);
        let answer = tenant.process.ask(&format!(
            r#"acquire {{"pools":[{{"pool":"{pool}","count":{count}}}],"onRevoke":"none","program":"tenant"{takeover}}}"#
        ));
        let what = format!("{pid} of {uid} acquires {count} of {pool}{takeover}: {answer}");
        let Some(leases) = answer.strip_prefix("leased ") else {
            assert!(free < count, "{what}, and {free} are free");
            return what;
        };
        for lease in leases.split(' ') {
            let numbers: Vec<u64> = lease
                .split(':')
                .map(|n| n.parse().expect("a number"))
                .collect();
            let port = u16::try_from(numbers[1]).expect("a port");
            let its = self.sockets.entry(pid).or_default();
            if !its.contains(&(port, numbers[2])) {
                self.shut.retain(|shut| *shut != port);
                its.push((port, numbers[2]));
            }
            self.leases.retain(|_, (_, taken)| {
                assert!(
                    *taken != port || !takeover.is_empty(),
                    "{what}: it is leased"
                );
                *taken != port
            });
            self.leases.insert(numbers[0], (pid, port));
        }
        what
    }

    fn a_lease(&mut self) -> Option<(u64, u32, u16)> {
        let leases: Vec<_> = self
            .leases
            .iter()
            .map(|(id, it)| (*id, it.0, it.1))
            .collect();
        (!leases.is_empty()).then(|| self.dice.one_of(&leases))
    }

    fn release(&mut self) -> String {
        let Some((lease, pid, port)) = self.a_lease() else {
            return self.acquire();
        };
        let mut tenants = self.tenants.iter_mut();
        let tenant = tenants.find(|tenant| tenant.process.id() == pid);
        let answer = tenant
            .expect("it lives")
            .process
            .ask(&format!("release {lease}"));
        assert_eq!(answer, "done");
        self.leases.remove(&lease);
        format!("{pid} gives {port} back")
    }

    fn revoke(&mut self) -> String {
        let Some((lease, pid, port)) = self.a_lease() else {
            return self.acquire();
        };
        let mut raw = self.agent.raw();
        let call = raw.call("Revoke", &format!(r#"{{"leaseId":{lease}}}"#));
        assert_eq!(call.and_then(|()| raw.error()).expect("an answer"), "");
        self.leases.remove(&lease);
        format!("{port} is taken back from {pid}")
    }

    fn misuse(&mut self) -> String {
        let tenant = self.a_tenant();
        let word = match self.is_enforced && self.dice.below(2) == 0 {
            true => self.dice.one_of(&HOSTILE),
            false => self.dice.one_of(&ACCIDENTS),
        };
        if word.ends_with("rejoin") {
            if self.loops >= LOOPS {
                return self.kill();
            }
            self.loops += 1;
        }
        let tenant = &mut self.tenants[tenant];
        let answer = tenant.process.ask(word);
        let pid = tenant.process.id();
        // It has old sockets as well, and so it may shut or hinder its own successors', not other slots'.
        let theirs = self.leases.values().filter(|it| it.0 == pid);
        self.shut.extend(theirs.map(|it| it.1));
        if let Some(child) = answer.strip_prefix("child ") {
            let born_with = self.sockets.get(&pid).cloned().unwrap_or_default();
            self.sockets
                .insert(child.parse().expect("a pid"), born_with);
        }
        format!("{pid} does {word}: {answer}")
    }

    fn kill(&mut self) -> String {
        let tenant = self.a_tenant();
        let mut tenant = self.tenants.swap_remove(tenant).process;
        let pid = tenant.id();
        tenant.signal(Signal::SIGKILL);
        tenant.wait();
        self.ghosts.push(tenant);
        self.leases.retain(|_, (holder, _)| *holder != pid);
        if self.ghosts.len() > GHOSTS {
            return format!("{pid} is killed; {}", self.forget_a_ghost());
        }
        format!("{pid} is killed")
    }

    fn forget_a_ghost(&mut self) -> String {
        if self.ghosts.is_empty() {
            return self.kill();
        }
        let ghost = self.ghosts.remove(0);
        // Those that loop may be tenants' own: then there are fewer for a while.
        self.loops = self.loops.saturating_sub(1);
        format!("the children of {} end", ghost.id())
    }

    /// The agent's list, the tenants and the kernel agree.
    fn check(&mut self, what: &str) {
        let expected: BTreeMap<u64, (u32, u16)> = self.leases.clone();
        let mut slots = Vec::new();
        wait_until(&format!("the list is as it must be after: {what}"), || {
            slots = self
                .agent
                .client()
                .list(&Default::default())
                .expect("a list");
            let leased = slots.iter().filter(|slot| slot.state == "leased");
            let of = |slot: &Slot| {
                let holder = slot.holder.as_ref().map_or(0, |holder| holder.pid);
                (slot.lease_id.unwrap_or(0), (holder, slot.port))
            };
            leased.map(of).collect::<BTreeMap<_, _>>() == expected
        });
        for slot in &slots {
            if let Some(holder) = &slot.holder {
                assert!(lives(holder.pid), "{what}: {slot:?} has a dead holder");
            }
            match slot.state.as_str() {
                "leased" if self.ruined.contains(&(slot.port, slot.generation)) => {}
                "leased" if self.is_served(slot, what) => {}
                "leased" => self.ruined.push((slot.port, slot.generation)),
                // At level held a parked UDP port is silent: nothing refuses what the reservation swallows.
                "parked" if slot.protocol == "udp" && !self.is_enforced => {}
                "parked" => {
                    for place in places(slot) {
                        let begun = Instant::now();
                        assert!(
                            is_refused(place, &slot.protocol),
                            "{what}: {place} is parked"
                        );
                        assert!(begun.elapsed() < Duration::from_secs(1), "{what}: {place}");
                    }
                }
                "restarting" => {}
                other => panic!("{what}: {} is {other}: {slot:?}", slot.port),
            }
            let suffix = if slot.protocol == "udp" { "-udp" } else { "" };
            let address = self.dice.one_of(&["127.0.0.1", "0.0.0.0", "::1", "::"]);
            let mode = self
                .dice
                .one_of(&["plain", "reuseaddr", "reuseport", "both"]);
            let way = format!("{address} {} {mode}{suffix}", slot.port);
            assert_eq!(self.intruder.ask(&way), "AddrInUse", "{what}: {way}");
        }
    }

    /// The holder answers there, or its child, and nobody else ever does. Whether anybody does: what a
    /// hostile one has shut and hindered itself, the agent cannot heal.
    fn is_served(&self, slot: &Slot, what: &str) -> bool {
        let holder = slot.holder.as_ref().expect("it is leased").pid;
        // A child shares the listener it was born with, for as long as that is the slot's: also when
        // its parent gave the lease back, and took it again at once.
        let is_theirs = |pid| {
            let sockets = self.sockets.get(&pid).map_or(&[][..], Vec::as_slice);
            pid == holder || sockets.contains(&(slot.port, slot.generation))
        };
        let may_be_shut = self.shut.contains(&slot.port);
        for place in places(slot) {
            let begun = Instant::now();
            for _ in 0..2 {
                loop {
                    let outcome = match slot.protocol.as_str() {
                        "udp" => ask_by_datagram(place),
                        _ => ask(place),
                    };
                    match outcome {
                        Ok(pid) if is_theirs(pid) => break,
                        Err(Failure::Refused | Failure::Reset)
                            if may_be_shut && begun.elapsed() < HEALED => {}
                        Err(Failure::Refused | Failure::Reset)
                            if may_be_shut && self.is_enforced =>
                        {
                            return false;
                        }
                        other => panic!("{what}: {place} is {holder}'s, and there is {other:?}"),
                    }
                }
            }
        }
        true
    }
}

/// Where clients reach a slot.
fn places(slot: &Slot) -> Vec<SocketAddr> {
    let mut places = vec![SocketAddr::from(([127, 0, 0, 1], slot.port))];
    if slot.addresses.iter().any(|address| address.contains("::")) {
        places.push(SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, slot.port)));
    }
    places
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

fn chaos(steers: bool) {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let now = now.map_or(0, |since| u64::from(since.subsec_nanos()));
    let seed = number("PORTPOOL_CHAOS_SEED").unwrap_or(now);
    let steps = number("PORTPOOL_CHAOS_STEPS").unwrap_or(u64::from(STEPS));
    println!("chaos, steering {steers}: PORTPOOL_CHAOS_SEED={seed} PORTPOOL_CHAOS_STEPS={steps}");
    on_a_host(move |host| {
        let agent = host.agent_that(steers, PLAN);
        let client = agent.client();
        client.status().expect("a status");
        let fds = agent.open_fds();
        drop(client);
        let mut world = World {
            host,
            agent: &agent,
            dice: Dice(seed),
            is_enforced: steers,
            tenants: Vec::new(),
            ghosts: Vec::new(),
            loops: 0,
            leases: BTreeMap::new(),
            ruined: Vec::new(),
            sockets: BTreeMap::new(),
            shut: Vec::new(),
            intruder: host.role(&["intrude"], NOBODY),
        };
        for step in 0..steps {
            let done = world.step();
            let what = format!("seed {seed}, step {step}: {done}");
            if number("PORTPOOL_CHAOS_TALK").is_some() {
                println!("{what}");
            }
            world.check(&what);
        }
        drop(world);
        agent.wait_until("everything is parked, and nobody has anything", |slots| {
            slots
                .iter()
                .all(|slot| slot.state == "parked" && slot.orphans.is_empty())
        });
        let client = agent.client();
        client.status().expect("a status");
        wait_until("the agent has as many descriptors as at the start", || {
            agent.open_fds() == fds
        });
    });
}

#[test]
fn the_list_the_holders_and_the_kernel_agree_whatever_hostile_holders_do() {
    chaos(true);
}

#[test]
fn the_list_the_holders_and_the_kernel_agree_without_steering_whatever_accidents_happen() {
    chaos(false);
}
