//! Every change as it happens, for scripts and for the library.

use std::io::ErrorKind;
use std::os::fd::AsFd;

use nix::sys::signal::Signal;
use portpool::client::Revocation;
use portpool::protocol::{Transition, WatchParameters};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::host::{Agent, Process, on_a_host, server_of, wait_until};
use crate::raw::{call, slots};

const ONE: &str = "[pool.api]\nports = 9000\n";

/// `portpool watch ARGUMENTS`, once it misses nothing.
fn watch(host: &crate::host::Host, agent: &Agent, arguments: &str) -> Process {
    // Its standard error, too, is waited for.
    let portpool = agent.portpool(&[]).get_program().to_owned();
    let mut command = host.command("sh");
    command
        .arg("-c")
        .arg(format!("exec \"$0\" watch {arguments} 2>&1"))
        .arg(portpool)
        .env("PORTPOOL_SOCKET", host.socket());
    let watch = Process::start(command);
    watch.wait_for("portpool: watching");
    watch
}

/// The change of a line without its time: `api/1 9000 parked -> leased (acquired) node[7] root`.
#[track_caller]
fn change(watch: &Process) -> String {
    let line = watch.line();
    let (time, change) = line.split_once(' ').expect("two words");
    let is_time = time.starts_with("20") && time.ends_with('Z') && time.len() == 24;
    assert!(is_time, "{line}");
    change.to_owned()
}

#[test]
fn a_life_with_every_change_is_watched_line_by_line_with_its_reason() {
    on_a_host(|host| {
        let agent = host.agent("[pool.api]\nports = 9000\nrestart_window = \"200ms\"\n");
        let watch = watch(host, &agent, "");
        let first = agent.role(&["api"], &["heed"]);
        let pid = first.id();
        // It was still portpool when it got the slot.
        let seen = change(&watch);
        let expected = format!("api/1 9000 parked -> leased (acquired) portpool[{pid}] root");
        assert_eq!(seen, expected);
        let second = agent.role(&["--takeover=now", "api"], &["heed"]);
        let pid = second.id();
        let expected = format!("api/1 9000 leased -> leased (taken-over) portpool[{pid}] root");
        assert_eq!(change(&watch), expected);
        second.signal(Signal::SIGKILL);
        let seen = change(&watch);
        let expected = "api/1 9000 leased -> restarting (holder-died)";
        assert!(seen.starts_with(expected), "{seen}");
        assert!(seen.contains(&format!("[{pid}] root")), "{seen}");
        let third = agent.role(&["api"], &["heed"]);
        let pid = third.id();
        let expected = format!("api/1 9000 restarting -> leased (resumed) portpool[{pid}] root");
        assert_eq!(change(&watch), expected);
        assert!(agent.run(&["revoke", "9000"]).status.success());
        let expected = format!("api/1 9000 leased -> parked (revoked) test_roles[{pid}] root");
        assert_eq!(change(&watch), expected);
        let fourth = agent.role(&["api"], &["heed"]);
        change(&watch);
        fourth.signal(Signal::SIGKILL);
        change(&watch);
        let expected = "api/1 9000 restarting -> parked (window-over)";
        assert_eq!(change(&watch), expected);
    });
}

#[test]
fn a_script_watches_one_pool_as_lines_of_json() {
    on_a_host(|host| {
        let agent = host.agent("[pool.api]\nports = 9000\n[pool.web]\nports = 8000\n");
        let watch = watch(host, &agent, "web --json");
        let _api = agent.serve(&["api"]);
        let web = agent.serve(&["--label", "blue", "web"]);
        let line: serde_json::Value = serde_json::from_str(&watch.line()).expect("JSON");
        for (key, value) in [
            ("pool", "web"),
            ("protocol", "tcp"),
            ("from", "parked"),
            ("to", "leased"),
            ("reason", "acquired"),
        ] {
            assert_eq!(line[key], value, "{line}");
        }
        for (key, value) in [
            ("instance", 1),
            ("port", 8000),
            ("generation", 1),
            ("leaseId", 2),
        ] {
            assert_eq!(line[key], value, "{line}");
        }
        assert_eq!(line["holder"]["pid"], web.id());
        assert_eq!(line["holder"]["label"], "blue");
    });
}

#[test]
fn a_watch_ends_when_its_reader_or_the_agent_does() {
    on_a_host(|host| {
        let mut agent = host.agent(ONE);
        let mut watcher = watch(host, &agent, "");
        let mut unread = agent.portpool(&["watch"]);
        unread.stdout(std::process::Stdio::piped());
        let mut unread = unread.spawn().expect("it runs");
        drop(unread.stdout.take());
        // It learns of its reader's end by the next line.
        wait_until("it has ended", || {
            drop(agent.run(&["exec", "api", "--", "true"]));
            unread.try_wait().expect("a child").is_some()
        });
        assert_eq!(unread.wait().expect("a child").code(), Some(0));
        agent.process.signal(Signal::SIGTERM);
        assert_eq!(agent.process.wait(), Some(0));
        assert_eq!(watcher.wait(), Some(69));
    });
}

/// Whether something can be read, at once or within that time.
fn is_readable(revocation: &Revocation, seconds: i64) -> bool {
    let mut waits = [PollFd::from_borrowed_fd(revocation.as_fd(), PollFlags::IN)];
    let limit = Timespec {
        tv_sec: seconds,
        tv_nsec: 0,
    };
    poll(&mut waits, Some(&limit)).expect("a descriptor") > 0
}

#[test]
fn a_lease_tells_its_service_that_it_was_revoked_or_taken_over() {
    on_a_host(|host| {
        let agent = host.agent("[pool.api]\nports = \"9000-9001\"\non_revoke = \"none\"\n");
        let lease = agent.client().acquire("api").unwrap();
        let another = agent.client().acquire("api").unwrap();
        let revocation = lease.revoked().unwrap();
        assert!(!is_readable(&revocation, 0) && !revocation.is_over());
        let of_lease = WatchParameters {
            lease_id: Some(lease.id()),
            ..WatchParameters::default()
        };
        let changes = agent.client().watch(&of_lease).unwrap();
        agent.client().revoke(another.id(), false).unwrap();
        let end = another.revoked().unwrap();
        assert!(end.is_over(), "it was so before it was asked for");
        assert_eq!(end.wait().unwrap(), None);
        let new = agent.serve(&["--takeover", "api*2"]);
        assert!(is_readable(&revocation, 20));
        let end: Transition = revocation.wait().unwrap().expect("a change");
        assert_eq!((end.reason.as_str(), end.port), ("taken-over", 9000));
        assert_eq!(end.holder.expect("one").pid, new.id());
        assert_eq!(server_of(9000), new.id());
        let changes: Vec<Transition> = changes.map(Result::unwrap).collect();
        let ports: Vec<u16> = changes.iter().map(|change| change.port).collect();
        assert_eq!(ports, [9000], "not those of the other lease");
    });
}

#[test]
fn what_comes_together_with_the_first_reply_is_not_hidden_from_an_event_loop() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let lease = agent.client().acquire("api").unwrap();
        // An agent whose two replies one read would bring.
        let socket = host.folder().join("hasty.sock");
        let hasty = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        let client = portpool::Client::connect_to(&socket).unwrap();
        let answer = std::thread::spawn(move || {
            let (for_calls, _) = hasty.accept().expect("a client");
            let (stream, _) = hasty.accept().expect("its watch");
            let mut watch = crate::raw::Raw::over(stream).expect("a connection");
            watch.reply().expect("a call");
            let first = br#"{"parameters":{"transitions":[]},"continues":true}"#;
            let last = br#"{"parameters":{"transitions":[]}}"#;
            let both = [&first[..], b"\0", last, b"\0"].concat();
            watch.send(&both).expect("a reader");
            (for_calls, watch)
        });
        let revocation = client.revocation(lease.id()).unwrap();
        let kept = answer.join().expect("no panic");
        assert!(is_readable(&revocation, 0));
        assert_eq!(revocation.wait().unwrap(), None);
        drop(kept);
    });
}

#[test]
fn who_waits_for_a_revocation_learns_that_the_agent_is_gone() {
    on_a_host(|host| {
        let mut agent = host.agent(ONE);
        let lease = agent.client().acquire("api").unwrap();
        let revocation = lease.revoked().unwrap();
        agent.process.signal(Signal::SIGKILL);
        agent.process.wait();
        assert!(is_readable(&revocation, 20));
        assert!(matches!(revocation.wait(), Err(portpool::Error::Io(_))));
    });
}

#[test]
fn a_library_watches_what_happens_after_it_began() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let client = agent.client();
        let mut watch = client.watch(&WatchParameters::default()).unwrap();
        drop(client.acquire("api").unwrap());
        let mut next = || watch.next().expect("it goes on").unwrap().reason;
        assert_eq!([next(), next()], ["acquired", "released"]);
        let none = WatchParameters {
            pool: Some("none".to_owned()),
            ..WatchParameters::default()
        };
        let error = client.watch(&none).unwrap_err().to_string();
        assert!(error.contains("there is no pool \"none\""), "{error}");
    });
}

#[test]
fn watching_takes_more_and_its_first_reply_is_empty() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let mut raw = agent.raw();
        raw.call("Watch", "{}").unwrap();
        assert_eq!(raw.error().unwrap(), "org.varlink.service.ExpectedMore");
        raw.send(&call("Watch", "{}", r#","more":true"#)).unwrap();
        let first = raw.reply().unwrap();
        assert_eq!(first["parameters"]["transitions"], serde_json::json!([]));
        assert_eq!(first["continues"], true);
    });
}

/// Makes so many changes, 400 at a time.
fn make_changes(agent: &Agent, count: usize) -> std::io::Result<()> {
    let mut raw = agent.raw();
    for _ in 0..count.div_ceil(400) {
        raw.call("Acquire", &slots("many", 200))?;
        let reply = raw.reply()?;
        for lease in reply["parameters"]["leases"].as_array().expect("leases") {
            let id = &lease["leaseId"];
            let release = call(
                "Release",
                &format!(r#"{{"leaseId":{id}}}"#),
                r#","oneway":true"#,
            );
            raw.send(&release)?;
        }
        raw.fds.clear();
    }
    raw.call("Status", "{}")?;
    raw.reply().map(drop)
}

#[test]
fn a_watcher_that_falls_behind_is_told_how_much_it_missed_and_one_that_never_reads_is_ended() {
    on_a_host(|host| {
        let agent = host.agent("[pool.many]\nports = \"8000-8199\"\n");
        let begin = || {
            let mut raw = agent.raw();
            raw.send(&call("Watch", "{}", r#","more":true"#)).unwrap();
            raw.reply().unwrap();
            raw
        };
        let (mut slow, mut never) = (begin(), begin());
        // What the kernel and the agent keep for a watcher, and more.
        make_changes(&agent, 8000).unwrap();
        let fault = loop {
            let reply = slow.reply().unwrap();
            if reply["error"].is_string() {
                break reply;
            }
        };
        assert_eq!(fault["error"], "org.portpool.Agent.Lagged");
        let missed = fault["parameters"]["missed"].as_u64().expect("a number");
        assert!((1..8000).contains(&missed), "{missed}");
        // Its connection goes on.
        slow.call("Status", "{}").unwrap();
        assert_eq!(slow.error().unwrap(), "");

        let client = agent.client();
        let connections = || client.status().expect("an answer").connections;
        let before = connections();
        wait_until("it is closed once it is read", || {
            let is_reset = |error: std::io::Error| error.kind() != ErrorKind::WouldBlock;
            never.stream.set_nonblocking(true).expect("a flag");
            let gone = never.send(&call("Status", "{}", "")).is_err_and(is_reset);
            gone || connections() < before
        });
    });
}
