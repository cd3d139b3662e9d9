//! Level enforced: whatever a former holder's copy of the socket does, it gets no connection.

use std::net::{IpAddr, SocketAddr};

use nix::sys::signal::Signal;

use crate::host::{Agent, Process, ask_server, on_a_host};

/// As many as an attacker would need to be lucky once.
const CONNECTIONS: u32 = 2000;

/// Pools on one address, on all of IPv4, on all of IPv6, and on both.
const PLAN: &str = r#"
    [pool.one]
    ports = 9000
    [pool.four]
    ports = 9001
    address = "0.0.0.0"
    [pool.six]
    ports = 9002
    address = "::1"
    [pool.both]
    ports = 9003
    address = "[::]"
"#;

/// How a client reaches each of them.
fn places() -> [(&'static str, SocketAddr); 5] {
    let at =
        |address: &str, port| SocketAddr::new(address.parse::<IpAddr>().expect("an address"), port);
    [
        ("one", at("127.0.0.1", 9000)),
        ("four", at("127.0.0.2", 9001)),
        ("six", at("::1", 9002)),
        ("both", at("::1", 9003)),
        ("both", at("127.0.0.1", 9003)),
    ]
}

/// A holder that was killed, whose child has a copy of the listener and listens on it again and
/// again: with SO_REUSEPORT, and on one device only, which no other socket is bound to.
fn killed_with_a_rejoining_child(agent: &Agent, pool: &str) -> Process {
    let mut holder = agent.role(&[pool], &["obey", "rejoin"]);
    let child = holder.ask("fork");
    assert!(child.starts_with("child "), "{child}");
    holder.signal(Signal::SIGKILL);
    assert_eq!(holder.wait(), None);
    agent.wait_until("it is parked again", |slots| {
        let of_pool = |slot: &&portpool::protocol::Slot| slot.pool == pool;
        slots
            .iter()
            .filter(of_pool)
            .all(|slot| slot.state == "parked")
    });
    holder
}

/// How many connections somebody else than the new holder got, or nobody.
fn lost(place: SocketAddr, holder: &Process, connections: u32) -> u32 {
    let is_lost = |_: &u32| ask_server(place).map(|(pid, _)| pid).ok() != Some(holder.id());
    u32::try_from((0..connections).filter(is_lost).count()).expect("few")
}

#[test]
fn an_ex_holder_that_rejoins_by_every_means_gets_no_connection() {
    on_a_host(|host| {
        let agent = host.agent(PLAN);
        for (pool, place) in places() {
            let attacker = killed_with_a_rejoining_child(&agent, pool);
            assert!(ask_server(place).is_err(), "{pool} is parked, and refuses");
            let holder = agent.serve(&[pool]);
            assert_eq!(lost(place, &holder, CONNECTIONS), 0, "{pool} at {place}");
            drop((attacker, holder));
        }
    });
}

#[test]
fn what_the_same_attack_gets_without_steering_is_printed() {
    on_a_host(|host| {
        let agent = host.agent_that(false, PLAN);
        let (pool, place) = places()[0];
        let _attacker = killed_with_a_rejoining_child(&agent, pool);
        let holder = agent.role(&[pool], &["obey"]);
        let lost = lost(place, &holder, 200);
        eprintln!("level held: an ex-holder that rejoins gets {lost} of 200 connections");
        let level = agent.client().status().expect("a status").level;
        assert_eq!(level, "held", "which promises nothing against it");
    });
}

#[test]
fn an_intruder_that_was_first_keeps_its_connections_beside_steering() {
    on_a_host(|host| {
        let mut intruder = host.role(&["intrude"], 0);
        assert_eq!(intruder.ask("127.0.0.1 9500 plain"), "listening");
        let bystander = std::net::TcpListener::bind("127.0.0.1:9500").expect("a free port");
        let first = std::net::TcpListener::bind("127.0.0.1:9000").expect("a free port");
        let _agent = host.agent(PLAN);
        for (listener, port) in [(first, 9000), (bystander, 9500)] {
            let client = std::net::TcpStream::connect(("127.0.0.1", port)).expect("it listens");
            let (_, peer) = listener.accept().expect("its client");
            assert_eq!(peer, client.local_addr().expect("an address"));
        }
    });
}
