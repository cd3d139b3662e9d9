//! An agent that is killed where nobody keeps anything for it: what its holders still have, the next takes
//! back.

use std::net::{SocketAddr, TcpListener};

use nix::sys::signal::Signal;

use crate::exchange::Clients;
use crate::host::{Host, NOBODY, on_a_host, roles, server_of, wait_until};

const PLAN: &str = r#"
    [defaults]
    allow = { users = ["65534"] }
    [pool.api]
    ports = "9000-9003"
    extra = { metrics = "9500-9503" }
    [pool.any]
    ports = 9020
    address = ["0.0.0.0", "::"]
    [pool.datagrams]
    ports = 9030
    protocol = "udp"
    [pool.others]
    ports = 9040
    allow = { users = ["65533"] }
"#;

fn takes_back(host: &Host, steers: bool) {
    let mut first = host.agent_that(steers, PLAN);
    let api = first.role(&["api"], &["exchange", "leave"]);
    let mut of_user = first.portpool(&["exec", "api", "--"]);
    of_user.arg(roles()).arg("serve");
    let of_user = host.start_as(of_user, NOBODY);
    of_user.wait_for("ready");
    let any = first.serve(&["any"]);
    let datagrams = first.role(&["datagrams"], &["show"]);
    // One that has its listener by the library, and one that may not have it any more.
    let socket = host.socket();
    let library = host.role(&["tenant", socket.to_str().expect("text")], 0);
    let mut library = library;
    library.wait_for("connected");
    assert!(
        library
            .ask(r#"acquire {"pools":[{"pool":"api"}]}"#)
            .starts_with("leased")
    );
    let mut other = first.portpool(&["exec", "others", "--"]);
    other.arg(roles()).arg("serve");
    let other = host.start_as(other, 65533);
    other.wait_for("ready");

    let clients = Clients::start(4, SocketAddr::from(([127, 0, 0, 1], 9000)));
    first.process.signal(Signal::SIGKILL);
    assert_eq!(first.process.wait(), None);
    let forbidden = PLAN.replace("65533", "65532");
    let agent = host.agent_that(steers, &forbidden);
    let tally = clients.stop();
    assert_eq!(tally.failed(), 0, "{tally}");

    let slots = agent.client().list(&Default::default()).expect("a list");
    let standing: Vec<_> = slots
        .iter()
        .filter(|slot| slot.state != "parked")
        .map(|slot| {
            let process = slot.holder.as_ref().or(slot.conflict.as_ref());
            (
                slot.port,
                slot.state.as_str(),
                process.expect("a process").pid,
            )
        })
        .collect();
    let expected = [
        (9000, "leased", api.id()),
        (9500, "leased", api.id()),
        (9001, "leased", of_user.id()),
        (9501, "leased", of_user.id()),
        (9002, "conflict", library.id()),
        (9502, "conflict", library.id()),
        (9020, "leased", any.id()),
        (9030, "leased", datagrams.id()),
        (9040, "conflict", other.id()),
    ];
    assert_eq!(standing, expected);
    assert_eq!(
        [server_of(9001), server_of(9020), server_of(9040)],
        [of_user.id(), any.id(), other.id()]
    );
    for port in [9000, 9001, 9020, 9500] {
        let outcome = TcpListener::bind(("127.0.0.7", port));
        assert!(outcome.is_err(), "{port} is held on every address again");
    }
    drop(api);
    drop(any);
    drop(other);
    wait_until("what ends is free", || {
        let slots = agent.client().list(&Default::default()).expect("a list");
        let is_free = |port| {
            slots
                .iter()
                .any(|slot| slot.port == port && slot.state == "parked")
        };
        [9000, 9500, 9020, 9040].into_iter().all(is_free)
    });
    let next = agent.serve(&["api"]);
    assert_eq!(server_of(9000), next.id());
}

#[test]
fn what_holders_still_have_is_taken_back_from_them_and_the_rest_is_in_conflict() {
    on_a_host(|host| takes_back(host, true));
}

#[test]
fn it_is_taken_back_without_steering_too() {
    on_a_host(|host| takes_back(host, false));
}

#[test]
fn nobody_gets_a_lease_by_saying_that_it_had_one() {
    on_a_host(|host| {
        let mut liar = host.command(roles());
        liar.args(["squat", "127.0.0.1", "9000", "plain"]);
        liar.envs([
            ("LISTEN_FDNAMES", "api"),
            ("PORTPOOL_INSTANCE", "1"),
            ("LISTEN_FDS", "1"),
        ]);
        let liar = host.start_as(liar, NOBODY);
        liar.wait_for("ready");
        let agent = host.agent(PLAN);
        let slot = agent.slots("api").remove(0);
        assert_eq!(slot.state, "conflict", "a socket that its own user made");
        assert_eq!(slot.conflict.expect("a process").pid, liar.id());
    });
}
