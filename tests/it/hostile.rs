//! Deny by default, bound everything: what a hostile client can do to the agent, and to others.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use portpool::Client;
use portpool::protocol::{AcquireParameters, Want};

use crate::host::{Agent, Host, NOBODY, Process, on_a_host, wait_until};
use crate::raw::{Raw, call, slots};

/// Three pools: the honest client's, one that the attackers may take, one that is exhausted.
const CONFIGURATION: &str = r#"
[pool.honest]
ports = "9000-9015"

[pool.open]
ports = "8000-8299"
allow = { users = ["65531", "65532", "65533", "65534"] }

[pool.scarce]
ports = "7000-7019"
allow = { users = ["65531", "65532", "65533", "65534"] }
"#;

/// What an honest client's call may take while others do their worst.
const BOUND: Duration = Duration::from_millis(50);

/// The agent's limits, as docs/protocol.md has them.
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_secs(5);

/// What "a little" after a limit is, on a machine that does other things as well.
const A_LITTLE: Duration = Duration::from_secs(2);

fn wanted(pool: &str, count: u16) -> AcquireParameters {
    let pool = pool.to_owned();
    let count = Some(count);
    AcquireParameters {
        pools: vec![Want { pool, count }],
        ..AcquireParameters::default()
    }
}

/// What the agent has open and what it knows: the same after every attack as before it.
#[derive(Debug, PartialEq, Eq)]
struct Footing {
    fds: usize,
    connections: u32,
    leased: u32,
}

fn footing(agent: &Agent, client: &Client) -> Footing {
    let status = client.status().expect("a status");
    Footing {
        fds: agent.open_fds(),
        connections: status.connections,
        leased: status.leased,
    }
}

/// The same for a client that has asked and given back before: the agent knows it, and keeps nothing
/// for it any more, because another process has had the slot since.
fn settled_footing(agent: &Agent, client: &Client) -> Footing {
    Times::default().measure(client);
    let other = agent.run(&["exec", "honest", "--", "true"]);
    assert!(other.status.success(), "{other:?}");
    // The last descriptors of the processes and clients before go a moment after they do.
    let mut settled = footing(agent, client);
    let mut looks = 0;
    wait_until("it is settled", || {
        let now = footing(agent, client);
        looks = if now == settled { looks + 1 } else { 0 };
        settled = now;
        looks >= LOOKS && settled.connections == 1
    });
    settled
}

/// So many looks in a row that show the same are no coincidence.
const LOOKS: u32 = 100;

#[track_caller]
fn wait_for_footing(agent: &Agent, client: &Client, before: &Footing) {
    wait_until(&format!("{before:?} is so again"), || {
        footing(agent, client) == *before
    });
}

/// How long an honest client's calls took.
#[derive(Debug, Default)]
struct Times {
    leases: Vec<Duration>,
    lists: Vec<Duration>,
}

impl Times {
    fn measure(&mut self, client: &Client) {
        let begin = Instant::now();
        let grants = client.acquire_all(wanted("honest", 1)).expect("a slot");
        client.release(grants[0].lease.lease_id).expect("its end");
        self.leases.push(begin.elapsed());
        let begin = Instant::now();
        client.list(&Default::default()).expect("a list");
        self.lists.push(begin.elapsed());
    }

    fn worst(&self) -> Duration {
        let all = self.leases.iter().chain(&self.lists);
        all.copied().max().expect("a time")
    }
}

fn measure_for(client: &Client, time: Duration) -> Times {
    let mut times = Times::default();
    let begin = Instant::now();
    while begin.elapsed() < time {
        times.measure(client);
    }
    times.leases.sort_unstable();
    times.lists.sort_unstable();
    times
}

impl std::fmt::Display for Times {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let worst = |times: &[Duration]| *times.last().expect("a time");
        let median = |times: &[Duration]| times[times.len() / 2];
        write!(
            f,
            "{} leases, median {:?}, worst {:?}; lists: median {:?}, worst {:?}",
            self.leases.len(),
            median(&self.leases),
            worst(&self.leases),
            median(&self.lists),
            worst(&self.lists)
        )
    }
}

/// Attackers at work until this is dropped.
fn attackers(host: &Host, name: &str, uids: &[u32]) -> Vec<Process> {
    let socket = host.socket();
    let socket = socket.to_str().expect("text");
    let start = |uid: &u32| host.role(&["attack", name, socket], *uid);
    let attackers: Vec<Process> = uids.iter().map(start).collect();
    for attacker in &attackers {
        attacker.wait_for("begun");
    }
    attackers
}

/// Every attack, and how many processes of which users do it at a time.
const STORMS: [(&str, &[u32]); 18] = [
    ("oversize", &[NOBODY]),
    ("stream-of-100-mib", &[NOBODY]),
    ("garbage", &[NOBODY]),
    ("pipeline", &[NOBODY]),
    ("pipeline-of-lists", &[NOBODY]),
    ("pipeline-of-refusals", &[NOBODY]),
    ("long-names", &[NOBODY]),
    ("long-wants", &[NOBODY]),
    ("descriptors", &[NOBODY]),
    ("deaf", &[NOBODY]),
    ("churn", &[NOBODY]),
    ("half-closed", &[NOBODY]),
    ("acquire-and-close", &[NOBODY]),
    ("acquire-50", &[NOBODY]),
    ("leases", &[NOBODY]),
    ("crowd", &[NOBODY]),
    ("crowd-of-listers", &[NOBODY; 3]),
    ("crowd-of-listers", &[65531, 65532, 65533, 65534]),
];

#[test]
fn whatever_others_do_an_honest_call_takes_less_than_50_ms_and_nothing_is_left_of_it() {
    on_a_host(|host| {
        let agent = host.agent(&CONFIGURATION.replace("8000-8299", "8000-8059"));
        let _holder = agent.serve(&["scarce*20"]);
        let client = agent.client();
        let before = settled_footing(&agent, &client);
        let memory = agent.resident_kib();
        for (attack, uids) in STORMS {
            let mut failures = 0;
            // Other work on the machine comes between as well. Two controls, the same calls with no
            // attack right before and right after, tell: a run counts if both are far below the bound.
            // An attack that is the agent's own weakness fails every run that counts.
            for run in 1..=8 {
                let calm = measure_for(&client, Duration::from_millis(100)).worst();
                let mut attackers = attackers(host, attack, uids);
                let times = measure_for(&client, Duration::from_millis(400));
                let resident = agent.resident_kib();
                attackers.iter_mut().for_each(Process::end_input);
                let done: Vec<_> = attackers.iter().map(Process::line).collect();
                drop(attackers);
                wait_for_footing(&agent, &client, &before);
                let calm = match times.worst() < BOUND {
                    true => calm,
                    false => calm.max(measure_for(&client, Duration::from_millis(100)).worst()),
                };
                println!(
                    "{attack} by {} ({}), run {run}: {times}; {resident} KiB resident; calm: {calm:?}",
                    uids.len(),
                    done.join(", "),
                );
                assert!(resident < memory + 64 * 1024, "{attack}: {resident} KiB");
                if times.worst() < BOUND {
                    break;
                }
                if calm < BOUND / 5 {
                    failures += 1;
                }
                assert!(failures < 3, "{attack}: three of {run} runs, {times}");
                if run == 8 {
                    eprintln!("NOT MEASURED: {attack}: this machine is too busy with other things");
                }
            }
        }
    });
}

#[test]
fn every_broken_message_gets_its_error_and_only_what_cannot_be_understood_ends_the_connection() {
    const INVALID: &str = "org.varlink.service.InvalidParameter";
    const BROKEN: &str = "org.portpool.Agent.ProtocolError";
    let brackets = "[".repeat(30_000) + &"]".repeat(30_000);
    let long = "x".repeat(60_000);
    let quotes = "\\\"".repeat(30_000);
    let acquire = |parameters: &str| call("Acquire", parameters, "");
    let text = |text: &str| format!("{text}\0").into_bytes();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("nothing but NUL", b"\0".to_vec(), BROKEN),
        ("no JSON", text("{"), BROKEN),
        ("no object", text("[]"), BROKEN),
        ("no method", text("{}"), BROKEN),
        ("a method that is none", text(r#"{"method":7}"#), BROKEN),
        (
            "two values",
            text(r#"{"method":"a.b"}{"method":"a.b"}"#),
            BROKEN,
        ),
        ("no UTF-8", b"{\"method\":\"a.\xff\"}\0".to_vec(), BROKEN),
        (
            "no UTF-8 within parameters",
            b"{\"method\":\"org.portpool.Agent.List\",\"parameters\":{\"pool\":\"\xc3\x28\"}}\0"
                .to_vec(),
            BROKEN,
        ),
        (
            "a flag that is none",
            call("List", "{}", r#","more":1"#),
            BROKEN,
        ),
        ("deep nesting", text(&brackets), BROKEN),
        ("deep parameters", call("List", &brackets, ""), INVALID),
        (
            "deep nesting in an unknown member",
            call("Status", "{}", &format!(r#","x":{brackets}"#)),
            "",
        ),
        ("an unknown member", call("Status", "{}", r#","x":1"#), ""),
        (
            "an unknown method",
            call("Steal", "{}", ""),
            "org.varlink.service.MethodNotFound",
        ),
        (
            "a method of an unknown interface",
            text(r#"{"method":"org.example.Steal"}"#),
            "org.varlink.service.InterfaceNotFound",
        ),
        (
            "a method without an interface",
            text(r#"{"method":"Steal"}"#),
            "org.varlink.service.InterfaceNotFound",
        ),
        (
            "a method's name that JSON makes longer",
            text(&format!(r#"{{"method":"org.portpool.Agent.{quotes}"}}"#)),
            "org.varlink.service.MethodNotFound",
        ),
        (
            "a method's name that leaves no room for the error around it",
            text(&format!(
                r#"{{"method":"org.portpool.Agent.{}"}}"#,
                "x".repeat(65_480)
            )),
            "org.varlink.service.MethodNotFound",
        ),
        (
            "a text that its error makes seven times as long",
            acquire(&format!(r#"{{"pools":"{}"}}"#, "\u{7f}".repeat(20_000))),
            INVALID,
        ),
        (
            "a long interface's name",
            text(&format!(r#"{{"method":"{long}.a"}}"#)),
            "org.varlink.service.InterfaceNotFound",
        ),
        ("no parameters", call("Acquire", "null", ""), INVALID),
        ("parameters that are none", acquire("7"), INVALID),
        (
            "a pool that is no text",
            acquire(r#"{"pools":[{"pool":7}]}"#),
            INVALID,
        ),
        ("pools that are no list", acquire(r#"{"pools":7}"#), INVALID),
        (
            "an unknown parameter",
            acquire(r#"{"pools":[],"force":true}"#),
            INVALID,
        ),
        (
            "a long unknown parameter",
            acquire(&format!(r#"{{"{quotes}":1}}"#)),
            INVALID,
        ),
        (
            "parameters where there are none",
            call("Status", r#"{"x":1}"#, ""),
            INVALID,
        ),
        ("no pool", acquire(r#"{"pools":[]}"#), INVALID),
        (
            "no slot",
            acquire(r#"{"pools":[{"pool":"open","count":0}]}"#),
            INVALID,
        ),
        (
            "less than no slot",
            acquire(r#"{"pools":[{"pool":"open","count":-1}]}"#),
            INVALID,
        ),
        (
            "half a slot",
            acquire(r#"{"pools":[{"pool":"open","count":0.5}]}"#),
            INVALID,
        ),
        (
            "254 slots",
            acquire(r#"{"pools":[{"pool":"open","count":254}]}"#),
            INVALID,
        ),
        (
            "a huge number",
            acquire(r#"{"pools":[{"pool":"open","count":99999999999999999999}]}"#),
            INVALID,
        ),
        (
            "a number without end",
            acquire(r#"{"pools":[{"pool":"open","count":1e999}]}"#),
            INVALID,
        ),
        (
            "a huge lease",
            call("Release", r#"{"leaseId":1e99}"#, ""),
            INVALID,
        ),
        (
            "a lease that is not there",
            call("Release", r#"{"leaseId":18446744073709551615}"#, ""),
            "org.portpool.Agent.UnknownLease",
        ),
        (
            "an instance that is not there",
            acquire(r#"{"pools":[{"pool":"open"}],"instance":65535}"#),
            "org.portpool.Agent.UnknownInstance",
        ),
        (
            "254 sockets",
            acquire(r#"{"pools":[{"pool":"open","count":253},{"pool":"honest"}]}"#),
            "org.portpool.Agent.TooManySockets",
        ),
        (
            "a long label",
            acquire(&format!(
                r#"{{"pools":[{{"pool":"open"}}],"label":"{}"}}"#,
                "x".repeat(129)
            )),
            INVALID,
        ),
        (
            "an unknown pool with a long name",
            call("List", &format!(r#"{{"pool":"{long}"}}"#), ""),
            "org.portpool.Agent.UnknownPool",
        ),
        (
            "more where there is no more",
            call("Status", "{}", r#","more":true"#),
            "",
        ),
        (
            "another protocol",
            call("Status", "{}", r#","upgrade":true"#),
            INVALID,
        ),
        (
            "many slots in one reply",
            call("List", "{}", ""),
            "org.varlink.service.ExpectedMore",
        ),
    ];
    on_a_host(move |host| {
        let agent = host.agent(CONFIGURATION);
        let client = agent.client();
        let before = footing(&agent, &client);
        for (what, message, expected) in &cases {
            let mut raw = agent.raw();
            raw.send(message).expect("it takes the message");
            assert_eq!(raw.error().expect(what), *expected, "{what}");
            if *expected == BROKEN {
                assert!(raw.ends(), "{what}: the connection ends");
            } else {
                raw.call("Status", "{}").expect(what);
                assert_eq!(
                    raw.error().expect(what),
                    "",
                    "{what}: the connection goes on"
                );
            }
        }
        let mut oversize = agent.raw();
        oversize.send(&vec![b'x'; 64 * 1024 + 1]).expect("it reads");
        assert_eq!(oversize.error().expect("a reply"), BROKEN);
        assert!(oversize.ends());
        let mut stream = agent.raw();
        let part = vec![b'x'; 1 << 20];
        assert!((0..100).any(|_| stream.send(&part).is_err()), "100 MiB");
        assert_eq!(stream.error().expect("a reply"), BROKEN);
        for count in [1, 253] {
            let mut raw = agent.raw();
            let null = std::fs::File::open("/dev/null").expect("/dev/null");
            let fds = vec![null.as_fd(); count];
            raw.send_with_fds(&call("Status", "{}", ""), &fds)
                .expect("the kernel takes them");
            assert_eq!(raw.error().expect("a reply"), BROKEN, "{count} descriptors");
            assert!(raw.ends());
        }
        drop((oversize, stream));
        wait_for_footing(&agent, &client, &before);
    });
}

#[test]
fn ten_thousand_pipelined_calls_are_all_answered_in_order() {
    on_a_host(|host| {
        let agent = host.agent(CONFIGURATION);
        let mut raw = agent.raw();
        let mut writer = raw.stream.try_clone().expect("a copy");
        let calls = std::thread::spawn(move || {
            for lease in 1..=10_000 {
                let call = call("Release", &format!(r#"{{"leaseId":{lease}}}"#), "");
                std::io::Write::write_all(&mut writer, &call).expect("it reads");
            }
        });
        for lease in 1..=10_000 {
            assert_eq!(
                raw.reply().expect("a reply")["parameters"]["leaseId"],
                lease
            );
        }
        calls.join().expect("all calls are out");
    });
}

#[test]
fn a_oneway_acquire_takes_nothing_and_is_not_answered() {
    on_a_host(|host| {
        let agent = host.agent(CONFIGURATION);
        let mut raw = agent.raw();
        raw.send(&call("Acquire", &slots("open", 1), r#","oneway":true"#))
            .expect("a call");
        raw.call("Status", "{}").expect("a call");
        assert_eq!(raw.reply().expect("a reply")["parameters"]["leased"], 0);
        assert!(raw.fds.is_empty());
    });
}

/// Waits until nothing is leased; gives how long that took.
fn time_until_nothing_is_leased(client: &Client) -> Duration {
    let begin = Instant::now();
    wait_until("nothing is leased", || {
        client.status().expect("a status").leased == 0
    });
    begin.elapsed()
}

#[test]
fn a_lease_ends_at_once_when_its_client_closes_without_reading_though_its_process_lives_on() {
    on_a_host(|host| {
        let agent = host.agent(CONFIGURATION);
        let client = agent.client();
        let before = footing(&agent, &client);
        for calls in [1, 2, 50] {
            let mut raw = agent.raw();
            raw.send(&call("Acquire", &slots("open", 3), "").repeat(calls))
                .expect("calls");
            raw.wait_for_reply();
            assert!(client.status().expect("a status").leased > 0);
            drop(raw);
            let took = time_until_nothing_is_leased(&client);
            assert!(took < Duration::from_secs(1), "{calls} calls: {took:?}");
            wait_until("all is as before", || {
                agent.open_fds() <= before.fds + 1 && client.status().unwrap().connections == 1
            });
        }
        // With half a close before the whole one.
        let mut raw = agent.raw();
        raw.call("Acquire", &slots("open", 3)).expect("a call");
        raw.shut_writing().expect("half a close");
        raw.wait_for_reply();
        drop(raw);
        assert!(time_until_nothing_is_leased(&client) < Duration::from_secs(1));
    });
}

#[test]
fn a_client_that_shuts_its_writing_side_and_reads_later_keeps_its_lease() {
    on_a_host(|host| {
        let agent = host.agent(CONFIGURATION);
        let client = agent.client();
        let mut raw = agent.raw();
        raw.call("Acquire", &slots("open", 1)).expect("a call");
        raw.shut_writing().expect("half a close");
        raw.wait_for_reply();
        // A call of another connection, so that the agent has been at work since.
        client.list(&Default::default()).expect("a list");
        assert_eq!(raw.error().expect("a reply"), "");
        assert_eq!(raw.fds.len(), 1);
        assert!(raw.ends(), "nothing more can come");
        assert_eq!(client.status().expect("a status").leased, 1);
    });
}

#[test]
fn who_does_not_read_or_does_not_write_in_time_is_sent_away_and_its_lease_ends() {
    on_a_host(|host| {
        let agent = host.agent(CONFIGURATION);
        let client = agent.client();
        let socket = host.socket();
        let connect = || Raw::connect(&socket).expect("an agent");
        let limit = REPLY_TIMEOUT + A_LITTLE;
        let within = |what: &str, begin: Instant, limit: Duration| {
            let took = begin.elapsed();
            println!("{what}: ended after {took:?}");
            assert!(took >= Duration::from_secs(4), "{what}: {took:?}");
            assert!(took < limit, "{what}: {took:?}");
        };
        std::thread::scope(|scope| {
            // Never reads a list: its connection ends.
            scope.spawn(|| {
                let mut raw = connect();
                let begin = Instant::now();
                raw.send(&call("List", "{}", r#","more":true"#).repeat(20))
                    .expect("calls");
                let mut hang_up = [rustix::event::PollFd::new(
                    &raw.stream,
                    rustix::event::PollFlags::RDHUP,
                )];
                rustix::event::poll(&mut hang_up, None).expect("poll");
                within("a reader of no list", begin, limit);
            });
            // A byte a second, and never a whole call.
            scope.spawn(|| {
                let mut raw = connect();
                let begin = Instant::now();
                raw.stream
                    .set_read_timeout(Some(Duration::from_secs(1)))
                    .expect("a timeout");
                let answer = call("List", "{}", "").into_iter().find_map(|byte| {
                    drop(raw.send(&[byte]));
                    raw.error().ok()
                });
                assert_eq!(answer.as_deref(), Some("org.portpool.Agent.ProtocolError"));
                within("a byte a second", begin, CALL_TIMEOUT + A_LITTLE);
            });
            // Never reads its lease, whether it is silent, or says something again and again.
            for chatter in [None, Some(call("Status", "{}", r#","oneway":true"#))] {
                let (connect, client) = (&connect, &client);
                scope.spawn(move || {
                    let mut raw = connect();
                    let begin = Instant::now();
                    raw.call("Acquire", &slots("honest", 2)).expect("a call");
                    raw.wait_for_reply();
                    let leases = || {
                        let slots = client.list(&Default::default()).expect("a list");
                        slots
                            .iter()
                            .filter(|slot| slot.pool == "honest" && slot.lease_id.is_some())
                            .count()
                    };
                    while leases() > 0 && begin.elapsed() < 2 * limit {
                        if let Some(chatter) = &chatter {
                            drop(raw.send(chatter));
                        }
                        std::thread::park_timeout(Duration::from_millis(100));
                    }
                    within("a lease that nobody read", begin, limit);
                });
            }
        });
        wait_until("only we are connected", || {
            client.status().expect("a status").connections == 1
        });
    });
}

#[test]
fn a_child_that_inherits_a_connection_gets_no_lease_after_its_parents_end() {
    on_a_host(|host| {
        let agent = host.agent(CONFIGURATION);
        let client = agent.client();
        let socket = host.socket();
        let socket = socket.to_str().expect("text");
        for before in ["known", "unknown"] {
            for _ in 0..25 {
                let mut parent = host.role(&["leave", socket, "open", before], NOBODY);
                let answer = parent.line();
                assert_eq!(parent.wait(), Some(0));
                assert_eq!(answer, r#"Ok("org.portpool.Agent.Busy") 0"#, "{before}");
                assert_eq!(client.status().expect("a status").leased, 0);
            }
        }
    });
}

#[test]
fn five_hundred_clients_killed_in_the_middle_of_a_handoff_leave_nothing_behind() {
    on_a_host(|host| {
        let agent = host.agent(CONFIGURATION);
        let client = agent.client();
        let before = settled_footing(&agent, &client);
        let socket = host.socket();
        let socket = socket.to_str().expect("text");
        // Numbers that look random and are the same each time.
        let mut random = 0x2545_f491_u64;
        for _ in 0..500 {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let grabber = host.role(&["grab", socket, "open"], NOBODY);
            grabber.wait_for("begun");
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_micros(random % 1000) {
                std::hint::spin_loop();
            }
            drop(grabber);
        }
        wait_for_footing(&agent, &client, &before);
        let slots = client.list(&Default::default()).expect("a list");
        assert!(slots.iter().all(|slot| slot.state == "parked"));
        client
            .acquire_all(wanted("open", 250))
            .expect("all is free");
    });
}

#[test]
fn connections_are_limited_by_process_and_by_user_and_who_is_sent_away_is_told_why() {
    on_a_host(|host| {
        let agent = host.agent(CONFIGURATION);
        let client = agent.client();
        let mut kept: Vec<Raw> = (0..2000).map(|_| agent.raw()).collect();
        let mut refused = 0;
        for raw in &mut kept {
            // Who is sent away may find that out while it sends.
            drop(raw.call("Status", "{}"));
            let reply = raw.reply().expect("an answer, whichever");
            if reply["error"] == "org.portpool.Agent.Busy" {
                assert_eq!(reply["parameters"]["limit"], "connections of your process");
                assert!(raw.ends());
                refused += 1;
            }
        }
        // One of this process's 256 is the client's.
        assert_eq!(refused, 2000 - 255);
        assert_eq!(client.status().expect("a status").connections, 256);
        drop(kept);
        wait_until("they are forgotten", || {
            client.status().expect("a status").connections == 1
        });
    });
}

#[test]
fn one_user_that_never_reads_its_sockets_does_not_stop_the_handoff_to_others() {
    on_a_host(|host| {
        // As an agent that has no power to pass by the kernel's limit, which is the open files.
        let wrapper = [
            "setpriv",
            "--bounding-set=-sys_admin,-sys_resource",
            "prlimit",
            "--nofile=1500",
        ];
        let agent = host.agent_under(&wrapper, CONFIGURATION);
        let client = agent.client();
        let before = settled_footing(&agent, &client);
        let mut kept = Vec::new();
        let mut sockets = 0;
        for _ in 0..40 {
            let mut raw = agent.raw();
            raw.call("Acquire", &slots("open", 200)).expect("a call");
            raw.wait_for_reply();
            // It makes the agent close, and keeps what it did not read.
            raw.send(b"\0").expect("it reads");
            kept.push(raw);
            time_until_nothing_is_leased(&client);
        }
        let mut other = host.role(
            &["attack", "leases", host.socket().to_str().expect("text")],
            NOBODY,
        );
        other.wait_for("begun");
        for raw in &mut kept {
            match raw.error().expect("an answer").as_str() {
                "" => sockets += 200,
                error => assert_eq!(error, "org.portpool.Agent.Busy"),
            }
        }
        println!("{sockets} sockets were in flight at a time");
        assert!((200..=375).contains(&sockets));
        other.end_input();
        other.wait_for("done");
        drop(kept);
        wait_for_footing(&agent, &client, &before);
        client.acquire_all(wanted("open", 200)).expect("room again");
    });
}

#[test]
fn an_agent_that_runs_out_of_descriptors_goes_on_serving_and_recovers() {
    on_a_host(|host| {
        let agent = host.agent_under(&["prlimit", "--nofile=800"], CONFIGURATION);
        let client = agent.client();
        let held = client.acquire_all(wanted("honest", 2)).expect("two slots");
        let pid = agent.process.id().to_string();
        let limit = |files: usize| {
            let files = format!("--nofile={files}:800");
            let status = host
                .command("prlimit")
                .args(["--pid", &pid, &files])
                .status();
            assert!(status.is_ok_and(|status| status.success()));
        };
        // From here on it gets none, whatever it wants it for: clients, processes, listeners.
        limit(agent.open_fds());
        let mut waiting = agent.raw();
        waiting.call("Status", "{}").expect("the kernel takes it");
        let refused = client.acquire_all(wanted("honest", 1));
        let refused = refused.expect_err("no listener").to_string();
        assert!(refused.contains("descriptors"), "{refused}");
        assert_eq!(client.status().expect("it serves").leased, 2);
        let slots = client.list(&Default::default()).expect("a list");
        assert_eq!(
            slots.iter().filter(|slot| slot.state == "leased").count(),
            2
        );
        for port in [9000, 9005, 8000] {
            let intruder = std::net::TcpListener::bind(("127.0.0.1", port));
            assert_eq!(
                intruder.expect_err("nothing is lost").kind(),
                std::io::ErrorKind::AddrInUse
            );
        }
        client
            .release(held[0].lease.lease_id)
            .expect("it ends a lease");
        limit(800);
        assert_eq!(waiting.error().expect("it is let in now"), "");
        wait_until("it holds and hands out again", || {
            client.acquire_all(wanted("honest", 3)).is_ok()
        });
    });
}

#[test]
fn a_list_of_slots_with_long_descriptions_fits_its_replies() {
    let name = "n".repeat(64);
    let addresses: Vec<String> = (1..=24).map(|n| format!("\"127.0.{n}.1\"")).collect();
    let configuration = format!(
        "[category.{name}]\n[pool.{name}]\nports = \"8000-8049\"\ncategory = \"{name}\"\naddress = [{}]\n",
        addresses.join(", ")
    );
    on_a_host(move |host| {
        let agent = host.agent(&configuration);
        let client = agent.client();
        for _ in 0..5 {
            let mut asked = wanted(&name, 10);
            asked.label = Some("\u{1}".repeat(128));
            drop(client.acquire_all(asked).expect("ten slots"));
        }
        assert_eq!(client.list(&Default::default()).expect("a list").len(), 50);
        let refused = client.acquire_all(wanted(&name, 1)).expect_err("exhausted");
        assert!(
            matches!(refused, portpool::Error::Refused(_)),
            "{refused:?}"
        );
    });
}
