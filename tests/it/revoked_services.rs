//! What real servers do when their lease is taken back: none notices by itself, so they are told.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::host::{Agent, Host, Process, example, on_a_host};
use crate::revoked::revoke;
use crate::services::{get, repository, text, tools};

const PLAN: &str = "[pool.api-server]\nports = 9000\n";

/// How fast a service leaves that is told to.
const AT_ONCE: Duration = Duration::from_secs(1);

/// How long one is looked at that is not told.
const A_WHILE: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 500_000_000,
};

/// The services and the commands that start them.
fn services() -> Option<[(&'static str, Vec<String>); 3]> {
    let tools = tools(&["node", "python"])?;
    let script = |path: &str| text(&repository(path)).to_owned();
    Some([
        (
            "Node",
            vec![tools["node"].clone(), script("examples/node/http.mjs")],
        ),
        (
            "Python http.server",
            vec![
                tools["python"].clone(),
                script("examples/python/http_server.py"),
            ],
        ),
        ("axum", vec![text(&example("http_axum")).to_owned()]),
    ])
}

/// Starts it under `exec OPTIONS api-server`, and has it answer.
fn start(agent: &Agent, options: &[&str], command: &[String]) -> Process {
    let arguments = [options, &["api-server"]].concat();
    let command: Vec<&str> = command.iter().map(String::as_str).collect();
    let process = agent.exec(&arguments, &command);
    agent.wait_until("it has its slot", |slots| slots[0].state == "leased");
    assert_eq!(get(9000, "/").1["pid"], process.id());
    process
}

fn pidfd(process: &Process) -> OwnedFd {
    let pid = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
    pidfd_open(pid.expect("a pid"), PidfdFlags::empty()).expect("it lives")
}

/// The time that a process has been computing for: utime and stime of proc_pid_stat(5).
fn computed(process: &Process) -> Duration {
    const TICKS_A_SECOND: u64 = 100;
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).expect("/proc");
    let after_name = stat.rsplit_once(") ").expect("a name").1;
    let ticks = after_name.split(' ').skip(11).take(2);
    let ticks: u64 = ticks
        .map(|ticks| ticks.parse::<u64>().expect("ticks"))
        .sum();
    Duration::from_millis(ticks * 1000 / TICKS_A_SECOND)
}

fn at_both_levels(test: fn(&Host, &Agent, &str)) {
    on_a_host(move |host| {
        for (steers, level) in [(true, "enforced"), (false, "held")] {
            let agent = host.agent_that(steers, PLAN);
            agent.wait_until("it is parked", |slots| slots[0].state == "parked");
            test(host, &agent, level);
        }
    });
}

#[test]
fn a_revoked_node_python_or_axum_service_leaves_within_a_second() {
    at_both_levels(|_, agent, level| {
        for (name, command) in services().into_iter().flatten() {
            let mut service = start(agent, &[], &command);
            let begun = Instant::now();
            revoke(agent, "api-server");
            assert_eq!(service.wait(), Some(0), "{name}");
            let took = begun.elapsed();
            println!("level {level}: {name} left {took:?} after it was revoked");
            assert!(took < AT_ONCE, "{name}: {took:?}");
            agent.wait_until("it is parked", |slots| slots[0].state == "parked");
        }
    });
}

#[test]
fn what_a_revoked_service_does_that_is_not_told_is_printed() {
    at_both_levels(|_, agent, level| {
        for (name, command) in services().into_iter().flatten() {
            let service = start(agent, &["--on-revoke", "none"], &command);
            let ends = pidfd(&service);
            revoke(agent, "api-server");
            let (begun, before) = (Instant::now(), computed(&service));
            let ended = poll(
                &mut [PollFd::new(&ends.as_fd(), PollFlags::IN)],
                Some(&A_WHILE),
            );
            let what = match ended.expect("a poll") {
                0 => {
                    let busy = computed(&service) - before;
                    let percent = 100.0 * busy.as_secs_f64() / begun.elapsed().as_secs_f64();
                    format!("lives on at {percent:.0} % of a CPU")
                }
                _ => "has ended".to_owned(),
            };
            println!("level {level}, on_revoke none: {name} {what}");
            // The port is another's, whatever it does.
            let next = agent.serve(&["api-server"]);
            let answer = crate::host::ask_server(([127, 0, 0, 1], 9000).into());
            assert_eq!(answer.expect("an answer").0, next.id(), "{name}");
            drop((next, service));
            agent.wait_until("it is parked", |slots| slots[0].state == "parked");
        }
    });
}
