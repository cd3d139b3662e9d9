//! Conflict: somebody had a port before the agent came. They are named and left alone, and the
//! slot is held as soon as they leave.

use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use crate::host::{Agent, Host, NOBODY, Process, ask_server, on_a_host, said};

/// How soon a slot is promised to be held once its intruder has left.
const PROMISE: Duration = Duration::from_millis(100);

fn pool(protocol: &str) -> String {
    format!("[pool.api]\nports = \"9000-9001\"\nprotocol = \"{protocol}\"\n")
}

/// A process that has a port and serves it, once it does.
fn squat(host: &Host, arguments: &[&str], uid: u32) -> Process {
    let process = host.role(&[&["squat"], arguments].concat(), uid);
    process.wait_for("ready");
    process
}

fn state_of(agent: &Agent, port: u16) -> String {
    let slots = agent.slots("api");
    let slot = slots.iter().find(|slot| slot.port == port);
    slot.expect("a slot").state.clone()
}

/// Ends an intruder and gives how long the slot then was not held.
fn time_until_held(agent: &Agent, mut intruder: Process) -> Duration {
    intruder.signal(nix::sys::signal::Signal::SIGKILL);
    intruder.wait();
    let left = Instant::now();
    agent.wait_until("every slot is held", |slots| {
        slots.iter().all(|slot| slot.state == "parked")
    });
    left.elapsed()
}

#[track_caller]
fn assert_named(agent: &Agent, intruder: &Process, user: &str) {
    let list = agent.run(&["list"]);
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let who = format!(
        "CONFLICT  api/1 9000: held by test_roles[{}] {user}, for ",
        intruder.id()
    );
    assert!(list.contains(&who), "{who}\n{list}");
    let slot = agent.slots("api").remove(0);
    let conflict = slot.conflict.expect("an intruder");
    assert_eq!(
        (slot.state.as_str(), conflict.pid),
        ("conflict", intruder.id())
    );
    assert_eq!(conflict.program.as_deref(), Some("test_roles"));
}

/// Fails unless the intruder answers on port 9000 of that address.
#[track_caller]
fn assert_answers(intruder: &Process, address: &str, protocol: &str) {
    let address = SocketAddr::new(address.parse().expect("an address"), 9000);
    let pid = match protocol {
        "tcp" => ask_server(address).expect("an answer").0,
        _ => {
            let any: IpAddr = match address.ip() {
                IpAddr::V4(_) => [0; 4].into(),
                IpAddr::V6(_) => [0; 16].into(),
            };
            let client = UdpSocket::bind((any, 0)).expect("a socket");
            client.send_to(b"?", address).expect("it is sent");
            let patience = Some(Duration::from_secs(5));
            client.set_read_timeout(patience).expect("a timeout");
            let mut buffer = [0; 64];
            let length = client.recv(&mut buffer).expect("an answer");
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let pid = text.split(' ').next().and_then(|pid| pid.parse().ok());
            pid.expect("a pid")
        }
    };
    assert_eq!(pid, intruder.id());
}

/// An intruder that came first is named, works on, and is followed by the agent when it leaves.
#[track_caller]
fn is_named_and_waited_for(
    address: &'static str,
    mode: &'static str,
    reached_at: Option<&'static str>,
) {
    on_a_host(move |host| {
        let protocol = if mode.ends_with("-udp") { "udp" } else { "tcp" };
        let mut times = Vec::new();
        for (uid, user) in [(0, "root"), (NOBODY, "nobody")]
            .into_iter()
            .cycle()
            .take(6)
        {
            let intruder = squat(host, &[address, "9000", mode], uid);
            let agent = host.agent(&pool(protocol));
            assert_named(&agent, &intruder, user);
            assert_eq!(state_of(&agent, 9001), "parked");
            // Only the other port is given, and a second taker is told why.
            if protocol == "tcp" {
                let other = agent.serve(&["api"]);
                let answer = ask_server(SocketAddr::from(([127, 0, 0, 1], 9001)));
                assert_eq!(answer.expect("an answer").0, other.id());
                let refused = agent.run(&["exec", "api", "--", "true"]);
                let text = said(&refused);
                assert_eq!(refused.status.code(), Some(75), "{text}");
                let who = format!("9000 in conflict: test_roles[{}] {user}", intruder.id());
                assert!(text.contains(&who), "{text}");
            }
            if let Some(reached_at) = reached_at {
                assert_answers(&intruder, reached_at, protocol);
            }
            times.push(time_until_held(&agent, intruder));
        }
        times.sort_unstable();
        println!(
            "{address} {mode}: held {:?} (median of {}) after the intruder left, {:?} at worst",
            times[times.len() / 2],
            times.len(),
            times[times.len() - 1]
        );
        assert!(times[times.len() / 2] < PROMISE, "{times:?}");
    });
}

#[test]
fn an_intruder_that_listens_on_the_pools_address_is_named_and_waited_for() {
    is_named_and_waited_for("127.0.0.1", "reuseaddr", Some("127.0.0.1"));
}

#[test]
fn an_intruder_that_listens_on_every_ipv4_address_is_named_and_waited_for() {
    is_named_and_waited_for("0.0.0.0", "reuseaddr", Some("127.0.0.1"));
}

#[test]
fn an_intruder_that_listens_on_every_address_is_named_and_waited_for() {
    is_named_and_waited_for("::", "both", Some("127.0.0.1"));
}

#[test]
fn an_intruder_that_listens_on_another_address_is_named_and_waited_for() {
    is_named_and_waited_for("127.0.0.2", "both", Some("127.0.0.2"));
}

#[test]
fn an_intruder_that_listens_on_ipv6_only_is_named_and_waited_for() {
    is_named_and_waited_for("::1", "reuseaddr-v6only", Some("::1"));
}

#[test]
fn an_intruder_that_is_only_bound_is_named_and_waited_for() {
    is_named_and_waited_for("127.0.0.1", "reuseaddr-bindonly", None);
}

#[test]
fn an_intruder_that_is_only_bound_to_every_address_is_named_and_waited_for() {
    is_named_and_waited_for("::", "both-bindonly", None);
}

#[test]
fn an_intruder_on_a_udp_port_is_named_and_waited_for() {
    is_named_and_waited_for("127.0.0.1", "plain-udp", Some("127.0.0.1"));
}

#[test]
fn an_intruder_that_shares_a_udp_port_is_named_and_waited_for() {
    is_named_and_waited_for("0.0.0.0", "both-udp", Some("127.0.0.1"));
}

#[test]
fn a_port_of_the_other_protocol_is_no_conflict() {
    on_a_host(|host| {
        let _udp = squat(host, &["0.0.0.0", "9000", "plain-udp"], NOBODY);
        let agent = host.agent(&pool("tcp"));
        assert_eq!(state_of(&agent, 9000), "parked");
    });
}

#[test]
fn a_strict_agent_does_not_start_beside_an_intruder_and_leaves_nothing_behind() {
    on_a_host(|host| {
        let intruder = squat(host, &["127.0.0.1", "9001", "reuseaddr"], NOBODY);
        let strict = format!("[agent]\nstrict = true\n{}", pool("tcp"));
        let file = host.file("strict.toml", &strict);
        let mut start = host.portpool(&["agent", "--announce", "--config"]);
        start.arg(&file).arg("--socket").arg(host.socket());
        let outcome = start.output().expect("it ends");
        let text = said(&outcome);
        assert_eq!(outcome.status.code(), Some(75), "{text}");
        let who = format!("api/1 9001: held by test_roles[{}] nobody", intruder.id());
        assert!(text.contains(&who), "{text}");
        assert!(outcome.stdout.is_empty());
        assert!(!host.socket().exists());
        // 9000 was free, and is again, for anybody.
        let mut other = host.role(&["intrude"], NOBODY);
        assert_eq!(other.ask("0.0.0.0 9000 plain"), "listening");
        let answer = ask_server(SocketAddr::from(([127, 0, 0, 1], 9001)));
        assert_eq!(answer.expect("an answer").0, intruder.id());

        drop(intruder);
        let agent = host.agent(&strict);
        assert_eq!(state_of(&agent, 9001), "parked");
    });
}

#[test]
fn three_hundred_conflicts_are_resolved_at_once_and_slow_nobody_down() {
    on_a_host(|host| {
        let mut whole = Vec::new();
        for _ in 0..3 {
            let intruder = squat(host, &["127.0.0.1", "20000", "plain", "300"], NOBODY);
            let agent =
                host.agent("[pool.many]\nports = \"20000-20299\"\n[pool.api]\nports = 9000\n");
            let status = agent.client().status().expect("a status");
            assert_eq!((status.conflicts, status.parked), (300, 1));
            let all_named = agent.slots("many").iter().all(|slot| {
                let pid = slot.conflict.as_ref().map(|conflict| conflict.pid);
                pid == Some(intruder.id())
            });
            assert!(all_named);

            // Long enough for the agent to look for the intruders again.
            let client = agent.client();
            let mut calls = Vec::new();
            let begun = Instant::now();
            while begun.elapsed() < Duration::from_secs(3) {
                let call = Instant::now();
                let lease = client.acquire("api").expect("a lease");
                lease.release().expect("it is ours");
                calls.push(call.elapsed());
            }
            calls.sort_unstable();
            let (median, worst) = (calls[calls.len() / 2], calls[calls.len() - 1]);
            println!(
                "beside 300 conflicts: acquire and release take {median:?} (median of {}), {worst:?} at worst",
                calls.len()
            );
            assert!(median < Duration::from_millis(10), "{median:?}");

            let held = time_until_held(&agent, intruder);
            whole.push(held);
        }
        whole.sort_unstable();
        println!("300 conflicts: all held {whole:?} after their end");
        assert!(whole[1] < PROMISE + Duration::from_millis(50), "{whole:?}");
    });
}

#[test]
fn an_address_that_appears_makes_its_slots_available() {
    on_a_host(|host| {
        let agent = host.agent("[pool.api]\nports = 9000\naddress = \"10.88.0.1\"\n");
        assert_eq!(state_of(&agent, 9000), "unavailable");
        let refused = agent.run(&["exec", "api", "--", "true"]);
        assert_eq!(refused.status.code(), Some(75), "{}", said(&refused));
        // It is nobody else's meanwhile.
        let mut intruder = host.role(&["intrude"], NOBODY);
        assert_eq!(intruder.ask("0.0.0.0 9000 plain"), "AddrInUse");

        host.ip(&["address", "add", "10.88.0.1/32", "dev", "lo"]);
        let appeared = Instant::now();
        agent.wait_until("the slot is held", |slots| slots[0].state == "parked");
        println!("held {:?} after its address appeared", appeared.elapsed());
        let holder = agent.serve(&["api"]);
        let address = SocketAddr::from(([10, 88, 0, 1], 9000));
        assert_eq!(ask_server(address).expect("an answer").0, holder.id());
        drop(holder);

        // Gone again while it is parked: noticed by whoever wants it next, and forgotten again.
        agent.wait_until("it is parked", |slots| slots[0].state == "parked");
        host.ip(&["address", "del", "10.88.0.1/32", "dev", "lo"]);
        let refused = agent.run(&["exec", "api", "--", "true"]);
        assert_eq!(refused.status.code(), Some(75), "{}", said(&refused));
        assert_eq!(state_of(&agent, 9000), "unavailable");
        host.ip(&["address", "add", "10.88.0.1/32", "dev", "lo"]);
        agent.wait_until("the slot is held", |slots| slots[0].state == "parked");
        let holder = agent.serve(&["api"]);
        assert_eq!(ask_server(address).expect("an answer").0, holder.id());
    });
}

/// A server with this mode answers 20 connections at 9000 and is gone.
fn leave_time_wait(host: &Host, mode: &str) {
    let server = squat(host, &["127.0.0.1", "9000", mode], 0);
    let address = SocketAddr::from(([127, 0, 0, 1], 9000));
    for _ in 0..20 {
        assert_eq!(ask_server(address).expect("an answer").0, server.id());
    }
    drop(server);
    assert!(host.in_time_wait(9000) > 0);
}

#[test]
fn connections_in_time_wait_are_no_conflict_at_the_start() {
    on_a_host(|host| {
        leave_time_wait(host, "reuseaddr");
        let agent = host.agent(&pool("tcp"));
        assert_eq!(state_of(&agent, 9000), "parked");
        let holder = agent.serve(&["api"]);
        let address = SocketAddr::from(([127, 0, 0, 1], 9000));
        assert_eq!(ask_server(address).expect("an answer").0, holder.id());
        let mut intruder = host.role(&["intrude"], NOBODY);
        for mode in ["plain", "reuseaddr", "reuseport", "both"] {
            assert_eq!(intruder.ask(&format!("127.0.0.2 9000 {mode}")), "AddrInUse");
        }
    });
}

/// The kernel lets nobody bind beside them, for a minute: no conflict that could be blamed on a
/// process, but one.
#[test]
fn connections_in_time_wait_of_a_server_without_so_reuseaddr_are_waited_for() {
    on_a_host(|host| {
        leave_time_wait(host, "plain");
        let agent = host.agent(&pool("tcp"));
        assert_eq!(state_of(&agent, 9000), "conflict");
        assert_eq!(agent.slots("api")[0].conflict, None);
        let list = agent.run(&["list"]);
        let list = String::from_utf8_lossy(&list.stdout).into_owned();
        assert!(list.contains("a minute"), "{list}");
        // The pool goes on without it.
        let holder = agent.serve(&["api"]);
        let address = SocketAddr::from(([127, 0, 0, 1], 9001));
        assert_eq!(ask_server(address).expect("an answer").0, holder.id());
    });
}

#[test]
fn what_a_former_agent_left_in_time_wait_is_no_conflict_for_the_next() {
    on_a_host(|host| {
        let address = SocketAddr::from(([127, 0, 0, 1], 9000));
        for _ in 0..3 {
            let agent = host.agent(&pool("tcp"));
            assert_eq!(state_of(&agent, 9000), "parked");
            let holder = agent.serve(&["api"]);
            for _ in 0..50 {
                assert_eq!(ask_server(address).expect("an answer").0, holder.id());
            }
        }
        assert!(host.in_time_wait(9000) > 0);
    });
}

#[test]
fn an_established_connection_of_an_intruder_that_no_longer_listens_is_no_conflict() {
    on_a_host(|host| {
        let mut server = squat(host, &["127.0.0.1", "9000", "reuseaddr-keep"], NOBODY);
        let address = SocketAddr::from(([127, 0, 0, 1], 9000));
        let stream = TcpStream::connect(address).expect("a connection");
        let mut stream = BufReader::new(stream);
        let mut line = String::new();
        stream.read_line(&mut line).expect("an answer");
        assert_eq!(server.ask("unlisten"), "unlistened");
        let refused = TcpStream::connect(address).expect_err("nobody listens");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let agent = host.agent(&pool("tcp"));
        assert_eq!(state_of(&agent, 9000), "parked");
        let holder = agent.serve(&["api"]);
        assert_eq!(ask_server(address).expect("an answer").0, holder.id());
    });
}
