//! A successor takes a slot from a living holder: at once, or when it is ready, or not at all.

use std::os::unix::process::CommandExt;

use nix::sys::signal::Signal;

use crate::host::{Agent, NOBODY, Process, lives, on_a_host, roles, said, server_of};

const ONE: &str = "[pool.api]\nports = 9000\nallow = { users = [\"nobody\", \"4321\"] }\n";

/// `portpool exec ARGUMENTS api -- test_roles obey`, which says at descriptor 9 when it is ready.
#[track_caller]
fn successor(agent: &Agent, arguments: &[&str]) -> Process {
    agent.role(&[arguments, &["api"]].concat(), &["obey"])
}

const WHEN_READY: [&str; 3] = ["--takeover=ready", "--ready-fd", "9"];

/// Who takes the slot over, according to the list.
fn taking_over(agent: &Agent) -> Option<u32> {
    let slot = agent.slots("api").remove(0);
    slot.successor.map(|successor| successor.pid)
}

#[test]
fn a_takeover_gives_the_connections_to_the_successor_at_once_and_the_old_one_is_told() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let old = agent.role(&["api"], &["heed"]);
        let new = agent.serve(&["--takeover", "api"]);
        assert_eq!(server_of(9000), new.id());
        assert_eq!(old.line(), "SIGTERM");
        let slot = agent.slots("api").remove(0);
        assert_eq!(slot.holder.expect("one").pid, new.id());
        agent.wait_until("the old one is listed, which has its listener", |slots| {
            slots[0].orphans.iter().any(|known| known.pid == old.id())
        });
    });
}

#[test]
fn a_successor_gets_the_connections_when_it_says_that_it_is_ready_and_not_before() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let mut old = agent.serve(&["api"]);
        let mut new = successor(&agent, &WHEN_READY);
        assert_eq!(taking_over(&agent), Some(new.id()));
        for _ in 0..20 {
            assert_eq!(server_of(9000), old.id());
        }
        assert_eq!(new.ask("ready"), "said");
        agent.wait_until("it has the slot", |slots| slots[0].successor.is_none());
        assert_eq!(server_of(9000), new.id());
        // SIGTERM has ended it.
        assert_eq!(old.wait(), None);
    });
}

#[test]
fn a_successor_that_dies_before_it_is_ready_leaves_everything_as_it_was() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let old = agent.role(&["api"], &["obey"]);
        let mut new = successor(&agent, &WHEN_READY);
        assert_eq!(taking_over(&agent), Some(new.id()));
        new.signal(Signal::SIGKILL);
        assert_eq!(new.wait(), None);
        agent.wait_until("nobody takes it over", |slots| slots[0].successor.is_none());
        assert_eq!(server_of(9000), old.id());
        assert!(lives(old.id()));
        // One that only ends its input does so, too.
        let mut another = successor(&agent, &WHEN_READY);
        another.end_input();
        assert_eq!(another.wait(), Some(0));
        agent.wait_until("nobody takes it over", |slots| slots[0].successor.is_none());
        assert_eq!(server_of(9000), old.id());
    });
}

#[test]
fn what_waits_for_the_word_has_nothing_of_the_service_and_ends_with_it() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let _old = agent.serve(&["api"]);
        // Whoever starts it may leave it descriptors of which it knows nothing.
        let portpool = agent.portpool(&["exec"]);
        let program = roles();
        let mut leaky = host.command(&program);
        leaky
            .arg("leak")
            .arg(portpool.get_program())
            .arg("exec")
            .args(WHEN_READY)
            .args(["api", "--"])
            .arg(&program)
            .arg("obey")
            .env("PORTPOOL_SOCKET", host.socket());
        let mut new = Process::start(leaky);
        new.wait_for("ready");
        let listens = speaker_for(new.id());
        let fds = std::fs::read_dir(format!("/proc/{listens}/fd")).expect("it lives");
        let mut open: Vec<String> = fds
            .flatten()
            .filter_map(|fd| std::fs::read_link(fd.path()).ok())
            .map(|path| path.display().to_string())
            .map(|path| path.split(':').next().expect("a word").to_owned())
            .collect();
        open.sort_unstable();
        assert_eq!(
            open,
            ["anon_inode", "pipe", "socket"],
            "pidfd, word and connection"
        );
        let children = format!("/proc/{0}/task/{0}/children", new.id());
        assert_eq!(std::fs::read_to_string(children).expect("it lives"), "");
        // A child of the service may keep all that it had open: it is not the service.
        assert!(new.ask("fork").starts_with("child "));
        new.signal(Signal::SIGKILL);
        assert_eq!(new.wait(), None);
        crate::host::wait_until("it ends with the service", || !lives(listens));
    });
}

/// The process that speaks for a service: the one with `ready` as its verb that has its pidfd.
fn speaker_for(service: u32) -> u32 {
    let has_it = |pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let info = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/2")).unwrap_or_default();
        line.starts_with(b"portpool\0ready\0") && info.contains(&format!("Pid:\t{service}\n"))
    };
    let all = std::fs::read_dir("/proc").expect("/proc").flatten();
    let mut pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.find(has_it).expect("somebody waits for its word")
}

#[test]
fn a_second_successor_is_told_that_there_is_one() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let _old = agent.serve(&["api"]);
        let _new = successor(&agent, &WHEN_READY);
        let program = roles();
        let program = program.to_str().expect("text");
        let second = agent.run(&["exec", "--takeover", "api", "--", program, "serve"]);
        assert_eq!(second.status.code(), Some(75));
        let text = said(&second);
        assert!(
            text.contains("api/1 9000: another successor is taking it over"),
            "{text}"
        );
    });
}

#[test]
fn another_user_takes_nothing_over_and_an_administrator_does() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let mut theirs = agent.portpool(&["exec", "api", "--"]);
        theirs.arg(roles()).arg("heed");
        let theirs = host.start_as(theirs, NOBODY);
        theirs.wait_for("ready");
        let mut others = agent.portpool(&["exec", "--takeover", "api", "--", "true"]);
        others.uid(4321).gid(4321);
        let refused = others.output().expect("it runs");
        assert_eq!(refused.status.code(), Some(75), "{}", said(&refused));
        let roots = agent.serve(&["--takeover", "api"]);
        assert_eq!(server_of(9000), roots.id());
        assert_eq!(theirs.line(), "SIGTERM");
    });
}

#[test]
fn without_a_holder_a_successor_just_starts() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let mut first = successor(&agent, &WHEN_READY);
        assert_eq!(server_of(9000), first.id());
        assert_eq!(first.ask("ready"), "said");
        assert_eq!(server_of(9000), first.id());
    });
}

#[test]
fn a_ready_fd_that_is_a_sockets_place_or_goes_with_no_takeover_is_a_mistake() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let old = agent.role(&["api"], &["obey"]);
        for (arguments, text) in [
            (
                &["--takeover=ready", "--ready-fd", "3"][..],
                "is where CMD finds a socket: they are at 3 to 3",
            ),
            (
                &["--takeover", "--ready-fd", "9"],
                "--ready-fd goes with --takeover=ready",
            ),
            (&["--ready-fd", "9"], "--takeover"),
            (
                &["--takeover=ready", "--ready-fd", "1"],
                "1 is not in 3..=1023",
            ),
        ] {
            let arguments = [&["exec"], arguments, &["api", "--", "true"]].concat();
            let wrong = agent.run(&arguments);
            assert_eq!(wrong.status.code(), Some(64), "{arguments:?}");
            assert!(said(&wrong).contains(text), "{}", said(&wrong));
        }
        assert_eq!(server_of(9000), old.id());
    });
}
