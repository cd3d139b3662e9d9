//! Leases that are taken back: by whom, what their holders notice, what their clients do.

use std::io::Read;
use std::net::TcpStream;
use std::os::unix::process::CommandExt;

use crate::host::{Agent, NOBODY, on_a_host, refuses, roles, said, server_of};

/// A user who is neither root nor [`NOBODY`].
const SOMEBODY: u32 = 4321;

const ONE: &str = "[pool.api]\nports = \"9000-9001\"\nallow = { users = [\"nobody\"] }\n";

/// Runs `portpool` as a user.
fn run_as(agent: &Agent, uid: u32, arguments: &[&str]) -> std::process::Output {
    let mut command = agent.portpool(arguments);
    command.uid(uid).gid(uid).output().expect("it runs")
}

#[test]
fn a_revoked_holder_gets_the_signal_that_was_asked_for_and_no_connection_any_more() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let heeds = |arguments: &[&str]| agent.role(arguments, &["heed"]);
        let term = heeds(&["api"]);
        let hangs_up = heeds(&["--on-revoke", "HUP", "api"]);
        let output = agent.run(&["revoke", "api"]);
        assert!(output.status.success(), "{}", said(&output));
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let expected = format!(
            "revoked api/1 9000 of test_roles[{}] root\nrevoked api/1 9001 of test_roles[{}] root\n",
            term.id(),
            hangs_up.id()
        );
        assert_eq!(text, expected);
        assert_eq!(term.line(), "SIGTERM");
        assert_eq!(hangs_up.line(), "SIGHUP");
        assert!(refuses(9000) && refuses(9001));
        let again = agent.run(&["revoke", "9000"]);
        assert_eq!(again.status.code(), Some(1));
        assert!(said(&again).contains("nobody has a lease of 9000"));
    });
}

#[test]
fn a_holder_that_wants_no_signal_gets_none_and_goes_on_without_the_port() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let quiet = agent.role(&["--on-revoke", "none", "api"], &["heed"]);
        let output = agent.run(&["revoke", "9000"]);
        assert!(output.status.success(), "{}", said(&output));
        assert!(refuses(9000));
        // The next signal is the one of this test: none came before.
        quiet.signal(nix::sys::signal::Signal::SIGUSR1);
        assert_eq!(quiet.line(), "SIGUSR1");
        let wrong = agent.run(&["exec", "--on-revoke", "STOP", "api", "--", "true"]);
        assert_eq!(wrong.status.code(), Some(64));
    });
}

#[test]
fn established_connections_go_on_unless_they_are_to_be_killed_too() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let kept = |port: u16| {
            let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("it serves");
            let mut first = [0; 1];
            stream.read_exact(&mut first).expect("it answers");
            let patience = std::time::Duration::from_secs(20);
            stream.set_read_timeout(Some(patience)).expect("a limit");
            stream
        };
        let arguments = ["--on-revoke", "none", "api"];
        let _mild = agent.role(&arguments, &["obey", "keep"]);
        let _harsh = agent.role(&arguments, &["obey", "keep"]);
        let (mut mild, mut harsh) = (kept(9000), kept(9001));
        assert!(agent.run(&["revoke", "9000"]).status.success());
        let killed = agent.run(&["revoke", "9001", "--kill-connections"]);
        assert!(killed.status.success(), "{}", said(&killed));
        let ends = |stream: &mut TcpStream| {
            let mut rest = [0; 64];
            loop {
                match stream.read(&mut rest) {
                    Ok(0) => return "closed".to_owned(),
                    Ok(_) => {}
                    Err(error) => return format!("{:?}", error.kind()),
                }
            }
        };
        assert_eq!(ends(&mut harsh), "ConnectionReset");
        mild.set_nonblocking(true).expect("a flag");
        assert_eq!(ends(&mut mild), "WouldBlock");
    });
}

#[test]
fn only_administrators_revoke_what_is_another_users_and_a_denial_says_what_would_help() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let holder = agent.serve(&["api"]);
        let denied = run_as(&agent, SOMEBODY, &["revoke", "9000"]);
        assert_eq!(denied.status.code(), Some(77));
        let text = said(&denied);
        assert!(
            text.contains("user 4321 is denied api: to end another user's lease"),
            "{text}"
        );
        assert!(
            text.contains("[access] admin = { users = [\"4321\"] }"),
            "{text}"
        );
        // That one may take the pool's ports is not enough either.
        assert_eq!(
            run_as(&agent, NOBODY, &["revoke", "9000"]).status.code(),
            Some(77)
        );
        assert_eq!(server_of(9000), holder.id());
    });
    on_a_host(|host| {
        let configuration = format!("{ONE}[access]\nadmin = {{ groups = [\"4321\"] }}\n");
        let agent = host.agent(&configuration);
        let _holder = agent.serve(&["api"]);
        let revoked = run_as(&agent, SOMEBODY, &["revoke", "api/1/9000"]);
        assert!(revoked.status.success(), "{}", said(&revoked));
        assert!(refuses(9000));
    });
}

#[test]
fn a_user_releases_what_its_own_processes_have_and_nobody_elses() {
    on_a_host(|host| {
        let agent = host.agent(ONE);
        let roots = agent.serve(&["api"]);
        let mut own = agent.portpool(&["exec", "api", "--"]);
        own.arg(roles()).arg("heed");
        let own = host.start_as(own, NOBODY);
        own.wait_for("ready");
        let released = run_as(&agent, NOBODY, &["release", "api"]);
        assert!(released.status.success(), "{}", said(&released));
        let text = String::from_utf8_lossy(&released.stdout).into_owned();
        assert_eq!(
            text,
            format!("released api/1 9001 of test_roles[{}] nobody\n", own.id())
        );
        assert_eq!(own.line(), "SIGTERM");
        assert!(refuses(9001));
        let refused = run_as(&agent, NOBODY, &["release", "9000"]);
        assert_eq!(refused.status.code(), Some(1));
        let text = said(&refused);
        let who = format!(
            "none of your processes has a lease of 9000, but test_roles[{}]",
            roots.id()
        );
        assert!(text.contains(&who), "{text}");
        assert_eq!(server_of(9000), roots.id());
    });
}

#[test]
fn a_waiter_gets_what_was_revoked() {
    on_a_host(|host| {
        let agent = host.agent("[pool.api]\nports = 9000\n");
        let _first = agent.role(&["api"], &["heed"]);
        let program = roles();
        let command = [program.to_str().expect("text"), "serve"];
        let next = agent.exec(&["--wait", "api"], &command);
        agent.wait_for_waiters(1);
        assert!(agent.run(&["revoke", "9000"]).status.success());
        next.wait_for("ready");
        assert_eq!(server_of(9000), next.id());
    });
}
