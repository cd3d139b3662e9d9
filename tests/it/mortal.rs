//! An agent that may be killed at any moment: nothing is lost by it, and nothing doubled.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use portpool::protocol::Slot;

use crate::exchange::{Failure, ask};
use crate::host::{Host, Process, on_a_host};
use crate::survive::Managed;

/// How often the agent is killed.
const KILLS: u64 = 220;

/// The longest it lives under load before that.
const LIFE: Duration = Duration::from_millis(12);

const PLAN: &str = r#"
    [pool.calm]
    ports = "9000-9003"
    [pool.kept]
    ports = "9010-9011"
    restart_window = "100ms"
    [pool.queue]
    ports = "9020-9021"
    unleased = "queue"
    [pool.wild]
    ports = "9030-9031"
"#;

const MORE: &str = r#"
    [pool.sometimes]
    ports = "9040-9043"
"#;

/// What a process believes to have.
#[derive(Debug)]
struct Belief {
    pid: u32,
    leases: BTreeMap<u64, u16>,
    /// Pools of which it may have a slot, and leases that it may have given back.
    unsure: BTreeSet<String>,
}

fn belief(pid: u32, answer: &str) -> Belief {
    let mut belief = Belief {
        pid,
        leases: BTreeMap::new(),
        unsure: BTreeSet::new(),
    };
    for word in answer.split_whitespace() {
        match word.split_once(':') {
            Some((id, port)) => {
                let (id, port) = (id.parse().expect("a number"), port.parse().expect("a port"));
                belief.leases.insert(id, port);
            }
            None => drop(
                belief
                    .unsure
                    .insert(word.trim_start_matches('?').to_owned()),
            ),
        }
    }
    belief
}

/// Compares what processes believe, what the agent says, and what clients find.
fn agree(slots: &[Slot], beliefs: &[Belief], when: &str) {
    let mut seen = BTreeSet::new();
    for slot in slots {
        let port = slot.port;
        let state = slot.state.as_str();
        let known = ["parked", "leased", "queueing", "restarting", "draining"];
        assert!(known.contains(&state), "{when}: {port} is {state}");
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        let Some(lease) = slot.lease_id else {
            if state == "parked" {
                assert_eq!(ask(address), Err(Failure::Refused), "{when}: {port}");
            }
            continue;
        };
        assert!(seen.insert(lease), "{when}: lease {lease} twice");
        let holder = slot.holder.as_ref().expect("a holder").pid;
        let belief = beliefs
            .iter()
            .find(|belief| belief.pid == holder)
            .expect("a process of ours");
        let is_sure = belief.leases.contains_key(&lease);
        let may_be =
            belief.unsure.contains(&slot.pool) || belief.unsure.contains(&lease.to_string());
        assert!(is_sure || may_be, "{when}: {slot:?} is not of {belief:?}");
        if is_sure {
            assert_eq!(ask(address), Ok(holder), "{when}: {port}");
        }
    }
    let wild = 9030u16..=9031;
    for belief in beliefs {
        // What was taken over was never given back.
        let leases = belief
            .leases
            .iter()
            .filter(|(_, port)| !wild.contains(*port));
        for (lease, port) in leases {
            assert!(
                seen.contains(lease),
                "{when}: {} has lost {port}",
                belief.pid
            );
        }
    }
}

fn is_killed_at_random_moments(host: &Host, more: &[&str]) {
    let mut agent = Managed::start_that(host, PLAN, more);
    let socket = host.socket();
    let socket = socket.to_str().expect("text");
    let time = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970");
    let mut dice = u64::from(time.subsec_nanos());
    println!("seed {dice}");
    let mut roll = |limit: u64| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (dice >> 33) % limit
    };
    let start = |seed: u64| {
        let seed = seed.to_string();
        let pools = ["calm", "kept", "queue", "calm", "+wild"];
        let words = [&["churn", socket, &seed], &pools[..]].concat();
        let process = host.role(&words, 0);
        process.wait_for("churning");
        process
    };
    let mut churns: Vec<Process> = (0..4).map(|_| start(roll(1 << 30))).collect();
    let configurations = [PLAN.to_owned(), format!("{PLAN}{MORE}")];
    for kill in 0..KILLS {
        if roll(4) == 0 {
            let at = usize::try_from(roll(2)).expect("a bit");
            host.file("portpool.toml", &configurations[at]);
            agent.signal(nix::sys::signal::Signal::SIGHUP);
        }
        std::thread::sleep(
            LIFE.mul_f64(f64::from(u32::try_from(roll(1000)).expect("few")) / 1000.0),
        );
        assert_eq!(agent.tell("kill"), "ended");
        if roll(4) == 0 {
            // A holder dies while nobody watches.
            let nth = usize::try_from(roll(4)).expect("few");
            churns[nth] = start(roll(1 << 30));
        }
        agent.start_again();
        let beliefs: Vec<Belief> = churns
            .iter_mut()
            .map(|churn| belief(churn.id(), &churn.ask("pause")))
            .collect();
        agent.settle();
        agree(&agent.slots(), &beliefs, &format!("kill {kill}"));
        for churn in &mut churns {
            assert_eq!(churn.ask("go"), "going");
        }
    }
}

#[test]
fn an_agent_killed_at_two_hundred_random_moments_loses_and_doubles_nothing() {
    on_a_host(|host| is_killed_at_random_moments(host, &[]));
}

#[test]
fn an_agent_killed_at_random_moments_loses_and_doubles_nothing_without_steering_either() {
    on_a_host(|host| is_killed_at_random_moments(host, &["--no-steering"]));
}
