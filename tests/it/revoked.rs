//! Once a lease is taken back, nothing that its holder does brings it another connection.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use crate::exchange::{ask, ask_by_datagram};
use crate::host::{Agent, Host, NOBODY, Process, ask_server, on_a_host, roles};

/// The next holder's user: neither root nor the one before.
pub(crate) const SOMEBODY: u32 = 65533;

/// How often the slot goes to somebody else after an attacker had it: with [`CLIENTS_EACH`], 2,000 connections.
const HAND_OFFS: u32 = 100;

/// Clients of each holder.
const CLIENTS_EACH: u32 = 20;

/// When so many are lost, it is clear who is to win.
const ENOUGH: u32 = 20;

/// What is tried, one after the other, and all of it at once; `fork` beside words of the roles' abuse.rs.
const ATTACKS: [(&str, &[&str]); 5] = [
    ("a holder that goes on", &[]),
    ("a child with a copy", &["fork"]),
    ("a loop that listens again", &["rejoin"]),
    ("a copy that blocks the address", &["block"]),
    (
        "all of it",
        &["lock", "block", "fork", "fork rejoin", "rejoin"],
    ),
];

/// Pools on one address of each family, on all of IPv4, on all of IPv6, and on both.
fn plan(protocol: &str) -> String {
    let pool = |(name, port, address): (&str, u16, &str)| {
        format!(
            "[pool.{name}]\nports = {port}\naddress = \"{address}\"\nprotocol = \"{protocol}\"\n\
             allow = {{ users = [\"{NOBODY}\", \"{SOMEBODY}\"] }}\n"
        )
    };
    let pools = [
        ("one", 9000, "127.0.0.1"),
        ("four", 9001, "0.0.0.0"),
        ("six", 9002, "::1"),
        ("both", 9003, "[::]"),
    ];
    pools.map(pool).concat()
}

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

/// `portpool exec OPTIONS POOL -- test_roles ROLE` of a user, not waited for.
pub(crate) fn holder(
    host: &Host,
    agent: &Agent,
    uid: u32,
    options: &[&str],
    role: &[&str],
) -> Process {
    let mut command = agent.portpool(&["exec"]);
    command.args(options).arg("--").arg(roles()).args(role);
    host.start_as(command, uid)
}

/// Takes the lease of a pool back, as an administrator does.
#[track_caller]
pub(crate) fn revoke(agent: &Agent, pool: &str) {
    let lease = agent.slots(pool)[0].lease_id.expect("it is leased");
    let mut raw = agent.raw();
    let call = raw.call("Revoke", &format!(r#"{{"leaseId":{lease}}}"#));
    let error = call.and_then(|()| raw.error());
    assert_eq!(error.expect("an answer"), "");
}

/// A former holder and what it has left behind. All of it ends with this value.
struct Attackers {
    _former: Process,
    _intruders: Vec<Process>,
}

/// Has a pool's slot leased to NOBODY, who is set on mischief, and takes it back while intruders of these users
/// press in.
fn revoked(
    host: &Host,
    agent: &Agent,
    pool: &str,
    protocol: &str,
    attack: &[&str],
    intruders: &[u32],
) -> Attackers {
    let role: &[&str] = match protocol {
        "udp" => &["obey", "udp"],
        _ => &["obey"],
    };
    let mut former = holder(host, agent, NOBODY, &["--on-revoke", "none", pool], role);
    former.wait_for("ready");
    for word in attack {
        let answer = former.ask(word);
        assert!(
            !answer.is_empty() && !answer.starts_with("refused"),
            "{word}: {answer}"
        );
    }
    let (port, suffix) = (
        agent.slots(pool)[0].port,
        ["", "-udp"][usize::from(protocol == "udp")],
    );
    let aims = format!("{port}{suffix}");
    let intruder = |uid: &u32| {
        let addresses = "127.0.0.1,127.0.0.2,0.0.0.0,::1,::";
        let intruder = host.role(&["press", addresses, &aims], *uid);
        intruder.wait_for("pressing");
        intruder
    };
    let intruders = intruders.iter().map(intruder).collect();
    revoke(agent, pool);
    Attackers {
        _former: former,
        _intruders: intruders,
    }
}

/// What became of the slot in the hands of those who had it next.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    /// How many clients somebody else than the holder served, or nobody.
    lost: u32,
    /// How often there was no next holder, and why at last.
    refused: u32,
    why: String,
}

/// Hands the slot to one process after the other, of another user than the attackers', and each time asks who is
/// there. Only at a hand-off can a former holder's copy join the new listener.
fn hand_offs(host: &Host, pool: &str, place: SocketAddr, protocol: &str, times: u32) -> Outcome {
    let mut tenants = [0, 1].map(|_| {
        let arguments = ["tenant", host.socket().to_str().expect("text")].map(str::to_owned);
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let tenant = host.role(&arguments, SOMEBODY);
        tenant.wait_for("connected");
        tenant
    });
    let ask = match protocol {
        "udp" => ask_by_datagram,
        _ => ask,
    };
    let mut outcome = Outcome::default();
    for turn in 0..times {
        let tenant = &mut tenants[usize::from(turn % 2 == 0)];
        let answer = tenant.ask(&format!(r#"acquire {{"pools":[{{"pool":"{pool}"}}]}}"#));
        let Some((lease, _)) = answer
            .strip_prefix("leased ")
            .and_then(|it| it.split_once(':'))
        else {
            outcome.refused += 1;
            outcome.why = answer;
            continue;
        };
        for _ in 0..CLIENTS_EACH {
            outcome.lost += u32::from(ask(place) != Ok(tenant.id()));
            if outcome.lost == ENOUGH {
                return outcome;
            }
        }
        assert_eq!(tenant.ask(&format!("release {lease}")), "done");
        assert_eq!(tenant.ask("leave"), "leaving");
    }
    outcome
}

/// Whether a client is told at once that nobody is there.
pub(crate) fn is_refused(place: SocketAddr, protocol: &str) -> bool {
    let asked = match protocol {
        "udp" => ask_connected(place),
        _ => ask_server(place).map(drop),
    };
    asked.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// A UDP socket that is connected hears of ICMP's "port unreachable": udp(7).
fn ask_connected(place: SocketAddr) -> std::io::Result<()> {
    let any: IpAddr = match place {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(place)?;
    socket.set_read_timeout(Some(Duration::from_secs(5)))?;
    socket.send(b"who?\n")?;
    socket.recv(&mut [0; 64]).map(drop)
}

/// The attackers at every place at once, then one attack after the other at one place.
fn nobody_gets_anything_after_revoke(protocol: &'static str) {
    on_a_host(move |host| {
        let agent = host.agent(&plan(protocol));
        let everywhere = places().map(|(pool, place)| (pool, place, ATTACKS.len() - 1));
        let [one, .., both] = places();
        let by_itself = |place: (&'static str, SocketAddr)| {
            (0..ATTACKS.len() - 1).map(move |attack| (place.0, place.1, attack))
        };
        for (pool, place, attack) in everywhere
            .into_iter()
            .chain(by_itself(one))
            .chain(by_itself(both))
        {
            let (name, words) = ATTACKS[attack];
            let attackers = revoked(host, &agent, pool, protocol, words, &[0, SOMEBODY]);
            let what = format!("{protocol} {pool} at {place}, {name}");
            assert!(is_refused(place, protocol), "{what}: it is parked");
            // It goes on being served, whatever they do.
            let outcome = hand_offs(host, pool, place, protocol, HAND_OFFS);
            assert_eq!(outcome, Outcome::default(), "{what}");
            drop(attackers);
            agent.wait_until("it is parked again", |slots| {
                slots.iter().all(|slot| slot.state == "parked")
            });
        }
    });
}

#[test]
fn after_revoke_no_attacker_gets_one_of_two_thousand_connections() {
    nobody_gets_anything_after_revoke("tcp");
}

#[test]
fn after_revoke_no_attacker_gets_one_of_two_thousand_datagrams() {
    nobody_gets_anything_after_revoke("udp");
}

#[test]
fn what_the_attackers_get_without_steering_is_printed() {
    on_a_host(|host| {
        for protocol in ["tcp", "udp"] {
            let agent = host.agent_that(false, &plan(protocol));
            let (pool, place) = places()[0];
            let of_another: &[u32] = &[SOMEBODY];
            let by_itself = ATTACKS.map(|(name, words)| (name, words, of_another));
            // One of the agent's own user can join wherever the agent can: this level is not against it.
            let of_the_agents = ("an intruder of the agent's user", &[][..], &[0][..]);
            for (name, words, intruders) in by_itself.into_iter().chain([of_the_agents]) {
                agent.wait_until("it is parked", |slots| slots[0].state == "parked");
                let attackers = revoked(host, &agent, pool, protocol, words, intruders);
                let Outcome { lost, refused, why } =
                    hand_offs(host, pool, place, protocol, HAND_OFFS);
                println!(
                    "level held, {protocol}, {name}: of {HAND_OFFS} next holders {refused} get nothing, and the \
                     others lose {lost} connections (at {ENOUGH} the test stops counting); {why}"
                );
                drop(attackers);
            }
            assert_eq!(agent.client().status().expect("a status").level, "held");
        }
    });
}
