//! Exclusive: while the agent runs, nobody else binds a pool port.

use std::net::{SocketAddr, TcpStream};

use crate::host::{NOBODY, OTHER_ADDRESS, Process, example_configuration, on_a_host};

const ADDRESSES: [&str; 6] = [
    "0.0.0.0",
    "127.0.0.1",
    "127.0.0.2",
    OTHER_ADDRESS,
    "::",
    "::1",
];
const MODES: [&str; 4] = ["plain", "reuseaddr", "reuseport", "both"];

/// The 21 ports of Qwen-Valencia's first instance, and those of its second.
fn ports() -> Vec<u16> {
    let pools = [
        6000..=6002,
        6010..=6012,
        6020..=6022,
        6030..=6033,
        7000..=7004,
        9000..=9002,
    ];
    pools
        .into_iter()
        .flatten()
        .flat_map(|port| [port, port + 100])
        .collect()
}

/// Every way in that this intruder finds, for every port.
fn ways_in(intruder: &mut Process, ports: &[u16]) -> Vec<String> {
    let mut ways = Vec::new();
    for port in ports {
        for address in ADDRESSES {
            for mode in MODES {
                let way = format!("{address} {port} {mode}");
                let outcome = intruder.ask(&way);
                if outcome != "AddrInUse" {
                    ways.push(format!("{way}: {outcome}"));
                }
            }
        }
    }
    ways
}

#[test]
fn no_intruder_of_any_user_gets_a_parked_or_a_leased_port_on_any_address() {
    nobody_gets_in(true);
}

#[test]
fn no_intruder_gets_in_without_steering_either() {
    nobody_gets_in(false);
}

fn nobody_gets_in(steers: bool) {
    on_a_host(move |host| {
        let agent = host.agent_that(steers, &example_configuration("qwen-valencia.toml"));
        let ports = ports();
        assert_eq!(ports.len(), 42);
        let mut same_user = host.role(&["intrude"], 0);
        let mut other_user = host.role(&["intrude"], NOBODY);
        // The intruder's tools work: a port that is nobody's can be had.
        assert_eq!(other_user.ask("127.0.0.1 9500 plain"), "listening");

        assert_eq!(
            ways_in(&mut same_user, &ports),
            Vec::<String>::new(),
            "parked"
        );
        assert_eq!(
            ways_in(&mut other_user, &ports),
            Vec::<String>::new(),
            "parked"
        );
        let mut holders = Vec::new();
        for instance in ["1", "2"] {
            for pool in [
                "mcp-universal*3",
                "ollama-mcp*3",
                "groq-api*3",
                "sandra-ia*4",
            ]
            .into_iter()
            .chain(["conversational*5", "api-server*3"])
            {
                holders.push(agent.serve(&["--instance", instance, pool]));
            }
        }
        let client = agent.client();
        assert_eq!(client.status().expect("a status").leased, 42);
        assert_eq!(
            ways_in(&mut same_user, &ports),
            Vec::<String>::new(),
            "leased"
        );
        assert_eq!(
            ways_in(&mut other_user, &ports),
            Vec::<String>::new(),
            "leased"
        );
        drop(holders);
        agent.wait_until("all slots are parked again", |slots| {
            slots.iter().all(|slot| slot.state == "parked")
        });
        assert_eq!(
            ways_in(&mut same_user, &ports),
            Vec::<String>::new(),
            "parked again"
        );
    });
}

#[test]
fn a_parked_port_refuses_its_clients_at_once() {
    on_a_host(|host| {
        for steers in [true, false] {
            let qwen_valencia = example_configuration("qwen-valencia.toml");
            let _agent = host.agent_that(steers, &qwen_valencia);
            all_refuse();
        }
    });
}

fn all_refuse() {
    for port in ports() {
        let refused = TcpStream::connect(SocketAddr::from(([127, 0, 0, 1], port)));
        let kind = refused.expect_err("it is parked").kind();
        assert_eq!(kind, std::io::ErrorKind::ConnectionRefused, "{port}");
    }
}
