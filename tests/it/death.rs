//! Death: a lease ends with its holder, at once, and whatever the holder leaves behind.

use std::io::{BufRead, BufReader, ErrorKind};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use crate::host::{Agent, Host, Process, ask_server, on_a_host, wait_until};

const ONE_PORT: &str = "[pool.api]\nports = 9000\n";

const ADDRESS: SocketAddr =
    SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9000);

/// How often an end is measured.
const ENDS: usize = 50;

/// From the end of a holder to the slot in the next one's hands, for many holders of the role
/// `obey`, in ascending order.
fn times_to_the_next_holder(agent: &Agent, end: impl Fn(&mut Process)) -> Vec<Duration> {
    let client = agent.client();
    let mut times = Vec::with_capacity(ENDS);
    for _ in 0..ENDS {
        let mut holder = agent.role(&["api"], &["obey"]);
        let started = Instant::now();
        end(&mut holder);
        let lease = loop {
            match client.acquire("api") {
                Ok(lease) => break lease,
                Err(portpool::Error::Refused(_)) => {
                    assert!(
                        started.elapsed() < Duration::from_secs(5),
                        "it stays leased"
                    );
                }
                Err(error) => panic!("{error}"),
            }
        };
        times.push(started.elapsed());
        assert_eq!(lease.port(), 9000);
        lease.release().expect("it is ours");
    }
    times.sort_unstable();
    times
}

#[track_caller]
fn assert_fast(what: &str, times: &[Duration]) {
    let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: handed out again after {median:?} (median of {ENDS}), {worst:?} at worst");
    assert!(median < Duration::from_millis(20), "{what}: {times:?}");
}

#[test]
fn a_killed_holders_port_is_handed_out_again_within_20_ms() {
    on_a_host(|host| {
        let agent = host.agent(ONE_PORT);
        let times = times_to_the_next_holder(&agent, |holder| holder.signal(Signal::SIGKILL));
        assert_fast("SIGKILL", &times);
    });
}

#[test]
fn a_terminated_holders_port_is_handed_out_again_within_20_ms() {
    on_a_host(|host| {
        let agent = host.agent(ONE_PORT);
        let times = times_to_the_next_holder(&agent, |holder| holder.signal(Signal::SIGTERM));
        assert_fast("SIGTERM", &times);
    });
}

#[test]
fn the_port_of_a_holder_that_exits_is_handed_out_again_within_20_ms() {
    on_a_host(|host| {
        let agent = host.agent(ONE_PORT);
        let times = times_to_the_next_holder(&agent, Process::end_input);
        assert_fast("exit", &times);
    });
}

/// Runs a test with an agent that steers, and with one that does not.
fn at_both_levels(test: fn(&Host, &Agent)) {
    on_a_host(move |host| {
        for steers in [true, false] {
            let agent = host.agent_that(steers, ONE_PORT);
            // What the test before has left may be on its way out.
            agent.wait_until("it is parked", |slots| slots[0].state == "parked");
            test(host, &agent);
        }
    });
}

/// A holder that has been killed and has left a child with a copy of its sockets.
fn killed_with_a_child(agent: &Agent, role: &[&str]) -> Process {
    let mut holder = agent.role(&["api"], role);
    let child = holder.ask("fork");
    assert!(child.starts_with("child "), "{child}");
    holder.signal(Signal::SIGKILL);
    assert_eq!(holder.wait(), None);
    holder
}

#[test]
fn a_child_that_keeps_the_listener_gets_no_further_connection() {
    at_both_levels(|_, agent| {
        let holder = killed_with_a_child(agent, &["obey"]);
        // The child hears of it: its accept(2) fails.
        assert_eq!(holder.line(), "refused InvalidInput");
        let refused = TcpStream::connect(ADDRESS).expect_err("nobody has the port");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let next = agent.serve(&["api"]);
        for _ in 0..100 {
            assert_eq!(ask_server(ADDRESS).expect("an answer").0, next.id());
        }
        // It lives on, and so does its copy.
        drop(next);
        agent.wait_until("it is parked again", |slots| slots[0].state == "parked");
        let last = agent.serve(&["api"]);
        assert_eq!(ask_server(ADDRESS).expect("an answer").0, last.id());
        drop(holder);
    });
}

#[test]
fn a_child_that_blocks_the_address_with_its_copy_does_not_keep_the_port_from_the_next() {
    on_a_host(|host| {
        let agent = host.agent(ONE_PORT);
        let mut holder = agent.role(&["api"], &["obey"]);
        assert_eq!(holder.ask("block"), "blocked");
        assert!(holder.ask("fork").starts_with("child "));
        holder.signal(Signal::SIGKILL);
        assert_eq!(holder.wait(), None);
        agent.wait_until("it is parked", |slots| slots[0].state == "parked");
        for _ in 0..3 {
            let next = agent.serve(&["api"]);
            for _ in 0..20 {
                assert_eq!(ask_server(ADDRESS).expect("an answer").0, next.id());
            }
            drop(next);
            agent.wait_until("it is parked", |slots| slots[0].state == "parked");
        }
    });
}

#[test]
fn a_client_that_waits_in_a_dead_holders_queue_is_reset_and_not_served_by_a_child() {
    at_both_levels(|_, agent| {
        // A child has a copy of the listener until the holder's input ends.
        let script = "exec 9<&0; cat <&9 & echo ready; wait";
        let holder = agent.exec(&["api"], &["sh", "-c", script]);
        holder.wait_for("ready");
        let waiting = TcpStream::connect(ADDRESS).expect("the queue takes it");
        let patience = Some(Duration::from_secs(10));
        waiting.set_read_timeout(patience).expect("a timeout");
        holder.signal(Signal::SIGKILL);
        let mut answer = String::new();
        let outcome = BufReader::new(waiting).read_line(&mut answer);
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::ConnectionReset);
        let next = agent.serve(&["api"]);
        assert_eq!(ask_server(ADDRESS).expect("an answer").0, next.id());
    });
}

#[test]
fn a_listener_that_its_holder_shut_listens_again_and_the_port_is_nobody_elses_meanwhile() {
    at_both_levels(|host, agent| {
        let mut holder = agent.role(&["api"], &["obey"]);
        assert_eq!(ask_server(ADDRESS).expect("an answer").0, holder.id());
        // Its own accept may have failed meanwhile, or have noticed nothing.
        let answer = holder.ask("shutdown");
        assert!(["shut", "refused InvalidInput"].contains(&answer.as_str()));
        wait_until("it listens again", || TcpStream::connect(ADDRESS).is_ok());
        let slot = agent.slots("api").remove(0);
        assert_eq!(slot.state, "leased");
        assert_eq!(slot.holder.map(|it| it.pid), Some(holder.id()));
        // The port is nobody else's, whatever the listener is now.
        let mut intruder = host.role(&["intrude"], crate::host::NOBODY);
        for mode in ["plain", "reuseaddr", "reuseport", "both"] {
            for address in ["127.0.0.1", "0.0.0.0", "::"] {
                let outcome = intruder.ask(&format!("{address} 9000 {mode}"));
                assert_eq!(outcome, "AddrInUse", "{address} {mode}");
            }
        }
        let refused = agent.run(&["exec", "api", "--", "true"]);
        assert_eq!(refused.status.code(), Some(75));

        holder.end_input();
        assert_eq!(holder.wait(), Some(0));
        agent.wait_until("it is parked again", |slots| slots[0].state == "parked");
        let next = agent.serve(&["api"]);
        assert_eq!(ask_server(ADDRESS).expect("an answer").0, next.id());
    });
}

#[test]
fn connections_that_a_dead_holder_left_to_a_child_do_not_keep_the_port() {
    at_both_levels(|_, agent| {
        let mut holder = agent.role(&["api"], &["obey", "keep"]);
        let connect = |_| {
            let stream = TcpStream::connect(ADDRESS).expect("a connection");
            let mut answer = String::new();
            let mut stream = BufReader::new(stream);
            stream.read_line(&mut answer).expect("an answer");
            assert_eq!(answer, format!("{} 9000\n", holder.id()));
            stream.into_inner()
        };
        let streams: Vec<TcpStream> = (0..200).map(connect).collect();
        assert!(holder.ask("fork").starts_with("child "));
        holder.signal(Signal::SIGKILL);
        assert_eq!(holder.wait(), None);
        agent.wait_until("it is parked", |slots| slots[0].state == "parked");

        let next = agent.serve(&["api"]);
        assert_eq!(ask_server(ADDRESS).expect("an answer").0, next.id());
        for stream in &streams {
            stream.set_nonblocking(true).expect("a flag");
            let nothing = stream.peek(&mut [0]);
            assert_eq!(nothing.unwrap_err().kind(), ErrorKind::WouldBlock);
        }
    });
}

#[test]
fn connections_in_time_wait_do_not_keep_the_port() {
    at_both_levels(|host, agent| {
        let holder = agent.serve(&["api"]);
        for _ in 0..200 {
            // The server closes first, so what is left is at its port.
            assert_eq!(ask_server(ADDRESS).expect("an answer").0, holder.id());
        }
        drop(holder);
        agent.wait_until("it is parked", |slots| slots[0].state == "parked");
        assert!(
            host.in_time_wait(9000) >= 100,
            "{}",
            host.in_time_wait(9000)
        );
        let next = agent.serve(&["api"]);
        assert_eq!(ask_server(ADDRESS).expect("an answer").0, next.id());
    });
}

#[test]
fn a_child_that_keeps_a_udp_socket_gets_no_further_datagram() {
    on_a_host(|host| {
        let udp = "[pool.api]\nports = 9000\nprotocol = \"udp\"\n";
        for steers in [true, false] {
            let agent = host.agent_that(steers, udp);
            agent.wait_until("it is parked", |slots| slots[0].state == "parked");
            let holder = killed_with_a_child(&agent, &["obey", "udp"]);
            agent.wait_until("it is parked", |slots| slots[0].state == "parked");
            let client = std::net::UdpSocket::bind("127.0.0.1:0").expect("a socket");
            let ask = || client.send_to(b"?", ADDRESS).expect("it is sent");
            for _ in 0..50 {
                ask();
            }
            let patience = |time| client.set_read_timeout(Some(time)).expect("a timeout");
            patience(Duration::from_millis(200));
            let outcome = client.recv(&mut [0; 64]);
            assert_eq!(outcome.unwrap_err().kind(), ErrorKind::WouldBlock);

            let next = agent.role(&["api"], &["obey", "udp"]);
            patience(Duration::from_secs(5));
            for _ in 0..50 {
                ask();
                let mut answer = [0; 64];
                let length = client.recv(&mut answer).expect("an answer");
                let expected = format!("{} 9000\n", next.id());
                assert_eq!(answer[..length], *expected.as_bytes());
            }
            drop(holder);
        }
    });
}
