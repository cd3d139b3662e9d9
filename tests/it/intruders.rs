//! Intruders of another user bind all the time, while slots change hands: none ever gets in.

use std::net::{IpAddr, SocketAddr};

use crate::exchange::{ask, ask_by_datagram};
use crate::host::{Agent, Host, NOBODY, OTHER_ADDRESS, Process, on_a_host, wait_until};

/// How often a slot is handed to somebody.
const HAND_OFFS: u32 = 2000;

/// How often in one round of a slot's life.
const A_ROUND: u32 = 3;

/// A pool on one address, on all of IPv4, on ::1, on all addresses, and for datagrams on one and all.
const POOLS: [(&str, u16, &str, &str); 6] = [
    ("one", 9000, "127.0.0.1", "tcp"),
    ("four", 9001, "0.0.0.0", "tcp"),
    ("six", 9002, "::1", "tcp"),
    ("both", 9003, "[::]", "tcp"),
    ("datagrams", 9004, "127.0.0.1", "udp"),
    ("all-datagrams", 9005, "[::]", "udp"),
];

fn plan() -> String {
    let pool = |(name, port, address, protocol): (&str, u16, &str, &str)| {
        format!(
            "[pool.{name}]\nports = {port}\naddress = \"{address}\"\nprotocol = \"{protocol}\"\n"
        )
    };
    POOLS.map(pool).concat()
}

fn intruder(host: &Host) -> Process {
    let addresses = format!("127.0.0.1,127.0.0.2,0.0.0.0,::1,::,{OTHER_ADDRESS}");
    let aim = |(_, port, _, protocol): (&str, u16, &str, &str)| match protocol {
        "udp" => format!("{port}-udp"),
        _ => port.to_string(),
    };
    let aims = POOLS.map(aim);
    let mut arguments = vec!["press", addresses.as_str()];
    arguments.extend(aims.iter().map(String::as_str));
    let intruder = host.role(&arguments, NOBODY);
    intruder.wait_for("pressing");
    intruder
}

/// The number in `got NUMBER: ...` of a score.
fn got(score: &str) -> u32 {
    let number = score
        .split_once("got ")
        .and_then(|(_, rest)| rest.split_once(':'));
    number
        .and_then(|(number, _)| number.parse().ok())
        .expect("a score")
}

/// The lease in `leased ID:PORT:GENERATION`.
#[track_caller]
fn lease_of(answer: &str) -> &str {
    let lease = answer
        .strip_prefix("leased ")
        .and_then(|rest| rest.split_once(':'));
    lease.unwrap_or_else(|| panic!("{answer}")).0
}

/// Parked, leased, taken over, healed, revoked, leased, given back, parked.
fn a_round(
    agent: &Agent,
    tenants: &mut [Process; 2],
    pool: &str,
    protocol: &str,
    place: SocketAddr,
) {
    let who = || match protocol {
        "udp" => ask_by_datagram(place),
        _ => ask(place),
    };
    let take = format!(
        r#"acquire {{"pools":[{{"pool":"{pool}"}}],"takeover":"now","onRevoke":"none","program":"tenant"}}"#
    );
    let [first, second] = tenants;
    lease_of(&first.ask(&take));
    let answer = second.ask(&take);
    let lease = lease_of(&answer);
    assert_eq!(who(), Ok(second.id()), "{pool}");
    if protocol == "tcp" {
        assert_eq!(second.ask("shutdown"), "shutdown");
        wait_until("the listener is healed", || who() == Ok(second.id()));
    }
    let mut raw = agent.raw();
    let revoked = raw.call("Revoke", &format!(r#"{{"leaseId":{lease}}}"#));
    assert_eq!(revoked.and_then(|()| raw.error()).expect("an answer"), "");
    assert_eq!(first.ask("leave"), "leaving");
    let answer = first.ask(&take);
    assert_eq!(who(), Ok(first.id()), "{pool}");
    assert_eq!(first.ask(&format!("release {}", lease_of(&answer))), "done");
    for tenant in tenants {
        assert_eq!(tenant.ask("leave"), "leaving");
    }
}

fn nobody_gets_in(steers: bool) {
    on_a_host(move |host| {
        let agent = host.agent_that(steers, &plan());
        let mut intruders = [intruder(host), intruder(host)];
        let tenant = |_| {
            let tenant = host.role(&["tenant", host.socket().to_str().expect("text")], 0);
            tenant.wait_for("connected");
            tenant
        };
        let mut tenants = [0, 1].map(tenant);
        let rounds = HAND_OFFS.div_ceil(A_ROUND);
        for (_, (pool, port, address, protocol)) in (0..rounds).zip(POOLS.iter().cycle()) {
            let address: IpAddr = match *address {
                "::1" | "[::]" => std::net::Ipv6Addr::LOCALHOST.into(),
                _ => std::net::Ipv4Addr::LOCALHOST.into(),
            };
            let place = SocketAddr::new(address, *port);
            a_round(&agent, &mut tenants, pool, protocol, place);
        }
        for intruder in &mut intruders {
            let score = intruder.ask("score");
            println!("steering {steers}, {} hand-offs: {score}", rounds * A_ROUND);
            assert_eq!(got(&score), 0, "{score}");
            assert!(
                score.ends_with("; "),
                "the kernel says something else: {score}"
            );
        }
        // They can bind: without the agent and its holders they do.
        drop((tenants, agent));
        wait_until("an intruder has a port", || {
            let scores = intruders
                .iter_mut()
                .map(|intruder| got(&intruder.ask("score")));
            // Whichever is first keeps the ports from the others.
            scores.sum::<u32>() > 0
        });
    });
}

#[test]
fn no_intruder_gets_in_while_slots_are_handed_off_taken_over_healed_and_revoked() {
    nobody_gets_in(true);
}

#[test]
fn no_intruder_gets_in_meanwhile_without_steering_either() {
    nobody_gets_in(false);
}
