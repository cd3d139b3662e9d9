//! An agent of one's own: `portpool exec --config FILE`, with nothing set up before.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::host::{Host, Process, lives, on_a_host, roles, wait_until};

/// Long enough for any test: this agent is still there when the test looks.
const STAYS: &str = "60s";
/// Soon over, and yet longer than a start takes.
const GOES: &str = "200ms";

const WEB: &str = "[pool.web]\nports = \"9000-9007\"\n";

/// A command with an own agent for this file.
fn own(host: &Host, idle: &str, verb: &str, file: &Path) -> Command {
    let mut command = host.portpool(&[verb, "--config"]);
    command.arg(file).env("PORTPOOL_AGENT_IDLE", idle);
    command
}

fn exec(host: &Host, idle: &str, file: &Path, command: &[&str]) -> Command {
    let mut exec = own(host, idle, "exec", file);
    exec.args(["web", "--"]).args(command);
    exec
}

/// `exec`, as the role `show`, once that is there: with what it says of its environment.
fn show(host: &Host, idle: &str, file: &Path) -> (Process, HashMap<String, String>) {
    let roles = roles();
    let process = Process::start(exec(host, idle, file, &[path(&roles), "show"]));
    let variables = variables(&process);
    (process, variables)
}

fn variables(process: &Process) -> HashMap<String, String> {
    let lines = process.wait_for("ready");
    let split = |line: &String| {
        let (name, value) = line.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    lines.iter().filter_map(split).collect()
}

fn path(path: &Path) -> &str {
    path.to_str().expect("text")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The own agent's status; `None` when there is none.
fn status(host: &Host, file: &Path) -> Option<serde_json::Value> {
    status_of(own(host, STAYS, "status", file))
}

fn status_of(mut command: Command) -> Option<serde_json::Value> {
    let output = command.arg("--json").output().expect("portpool runs");
    match output.status.code() {
        Some(0) => Some(serde_json::from_slice(&output.stdout).expect("JSON")),
        Some(69) => None,
        _ => panic!("{output:?}"),
    }
}

fn pid_of(host: &Host, file: &Path) -> u32 {
    let status = status(host, file).expect("an agent");
    pid_in(&status)
}

/// An own agent that would stay is ended with the test.
struct Ends(u32);

impl Drop for Ends {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.0) {
            let pid = nix::unistd::Pid::from_raw(pid);
            let _gone_already = nix::sys::signal::kill(pid, nix::sys::signal::SIGTERM);
        }
    }
}

fn pid_in(status: &serde_json::Value) -> u32 {
    let pid = status["pid"].as_u64();
    pid.and_then(|pid| pid.try_into().ok()).expect("a pid")
}

fn parent_of(pid: u32) -> u32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("it lives");
    let (_, rest) = stat.rsplit_once(')').expect("a name");
    let parent = rest.split_whitespace().nth(1);
    parent.expect("a parent").parse().expect("a pid")
}

#[track_caller]
fn assert_fails(output: &Output, code: i32, texts: &[&str]) {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    for wanted in texts {
        assert!(error.contains(wanted), "{wanted:?} is missing: {error}");
    }
}

#[test]
fn an_exec_with_a_file_starts_an_agent_and_says_where_its_log_is_and_a_second_uses_it() {
    on_a_host(|host| {
        let file = host.file("own.toml", WEB);
        let errors = host.folder().join("errors");
        let roles = roles();
        let first =
            Process::start_logging(exec(host, GOES, &file, &[path(&roles), "show"]), &errors);
        assert_eq!(variables(&first)["PORT"], "9000");
        let said = std::fs::read_to_string(&errors).unwrap();
        let log = said
            .trim_end()
            .strip_prefix("portpool: started an agent for ")
            .and_then(|rest| rest.split_once("; its log is "))
            .map(|(_, log)| PathBuf::from(log))
            .expect(&said);
        let logged = std::fs::read_to_string(&log).unwrap();
        assert!(logged.contains("8 of 8 slots held"), "{logged}");
        assert_eq!(std::fs::metadata(&log).unwrap().mode() & 0o777, 0o600);

        let agent = pid_of(host, &file);
        let second =
            Process::start_logging(exec(host, GOES, &file, &[path(&roles), "show"]), &errors);
        assert_eq!(variables(&second)["PORT"], "9001");
        assert_eq!(pid_of(host, &file), agent);
        assert_eq!(std::fs::read_to_string(&errors).unwrap(), said, "said once");
    });
}

#[test]
fn eight_execs_at_the_same_moment_share_one_agent_and_all_get_slots() {
    on_a_host(|host| {
        let file = host.file("own.toml", WEB);
        let errors = host.folder().join("errors");
        let roles = roles();
        let start = |_| {
            let command = exec(host, GOES, &file, &[path(&roles), "show"]);
            Process::start_logging(command, &errors)
        };
        let services: Vec<Process> = (0..8).map(start).collect();
        let ports: BTreeSet<String> = services
            .iter()
            .map(|service| variables(service).remove("PORT").unwrap())
            .collect();
        assert_eq!(ports.len(), 8, "{ports:?}");
        assert_eq!(status(host, &file).unwrap()["leased"], 8);
        let said = std::fs::read_to_string(&errors).unwrap();
        assert_eq!(said.lines().count(), 1, "one started it: {said}");
        let ninth = exec(host, GOES, &file, &["true"]).output().unwrap();
        assert_fails(&ninth, 75, &["pool web is exhausted", "test_roles"]);
    });
}

#[test]
fn without_a_runtime_folder_the_agent_is_in_a_folder_of_the_user_below_tmp() {
    on_a_host(|host| {
        let file = host.file("own.toml", WEB);
        for uid in [0, 61_001] {
            let of_user = |mut command: Command| {
                command.env_remove("XDG_RUNTIME_DIR").uid(uid).gid(uid);
                command
            };
            let roles = roles();
            let service = exec(host, GOES, &file, &[path(&roles), "show"]);
            let mut service = Process::start(of_user(service));
            assert_eq!(variables(&service)["PORT"], "9000", "user {uid}");
            let folder = std::fs::symlink_metadata(format!("/tmp/portpool-{uid}")).unwrap();
            assert!(folder.is_dir());
            assert_eq!((folder.uid(), folder.mode() & 0o777), (uid, 0o700));
            let status = status_of(of_user(own(host, GOES, "status", &file))).unwrap();
            assert_eq!(
                (&status["uid"], &status["leased"]),
                (&uid.into(), &1.into())
            );
            assert_eq!(status["level"], "shared-uid");
            service.end_input();
            assert_eq!(service.wait(), Some(0));
            let agent = pid_in(&status);
            wait_until("the idle agent is gone", || !lives(agent));
        }
    });
}

#[test]
fn a_folder_that_is_somebody_elses_or_a_link_is_refused() {
    on_a_host(|host| {
        let file = host.file("own.toml", WEB);
        let run = |uid: u32| {
            let mut command = exec(host, GOES, &file, &["true"]);
            command.env_remove("XDG_RUNTIME_DIR").uid(uid).gid(uid);
            command.output().unwrap()
        };
        let foreign = PathBuf::from("/tmp/portpool-61002");
        drop(std::fs::remove_dir(&foreign));
        std::fs::create_dir(&foreign).unwrap();
        std::fs::set_permissions(&foreign, PermissionsExt::from_mode(0o777)).unwrap();
        let refused = run(61_002);
        std::fs::remove_dir(&foreign).unwrap();
        assert_fails(
            &refused,
            69,
            &["/tmp/portpool-61002 is not a folder of yours"],
        );

        let target = host.folder_of("target", 61_003);
        let link = PathBuf::from("/tmp/portpool-61003");
        drop(std::fs::remove_file(&link));
        std::os::unix::fs::symlink(&target, &link).unwrap();
        let refused = run(61_003);
        std::fs::remove_file(&link).unwrap();
        assert_fails(
            &refused,
            69,
            &["/tmp/portpool-61003 is not a folder of yours"],
        );
    });
}

#[test]
fn the_agent_is_nobodys_child_and_the_service_has_none() {
    on_a_host(|host| {
        let file = host.file("own.toml", WEB);
        let (service, _) = show(host, GOES, &file);
        let pid = service.id();
        let children = format!("/proc/{pid}/task/{pid}/children");
        assert_eq!(std::fs::read_to_string(children).unwrap(), "");
        let agent = pid_of(host, &file);
        let parent = parent_of(agent);
        assert_ne!(parent, pid);
        assert_ne!(parent, std::process::id());
        // Away from the terminal, and in no folder that somebody may want to unmount.
        let stat = std::fs::read_to_string(format!("/proc/{agent}/stat")).unwrap();
        let session = stat.rsplit_once(')').unwrap().1.split_whitespace().nth(3);
        assert_eq!(session, Some(agent.to_string().as_str()));
        let folder = std::fs::read_link(format!("/proc/{agent}/cwd")).unwrap();
        assert_eq!(folder, Path::new("/"));
    });
}

#[test]
fn the_agent_keeps_no_stream_and_no_descriptor_of_the_exec_that_started_it() {
    on_a_host(|host| {
        let file = host.file("own.toml", WEB);
        // The same pipe once more at 7, as a script's `exec 7>&1` has it.
        let mut command = host.command("sh");
        command
            .args([
                "-c",
                r#"exec "$@" 7>&1"#,
                "sh",
                env!("CARGO_BIN_EXE_portpool"),
            ])
            .args(["exec", "--config", path(&file), "web", "--", "echo", "done"])
            .env("PORTPOOL_AGENT_IDLE", STAYS);
        // Reads both to their end, which does not come while the agent has one of them.
        let output = command.output().unwrap();
        let agent = Ends(pid_of(host, &file));
        assert_eq!(text(&output.stdout), "done\n");
        let folder = format!("/proc/{}/fd", agent.0);
        let open: Vec<_> = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|entry| std::fs::read_link(entry.ok()?.path()).ok())
            .filter(|target| path(target).starts_with("pipe:"))
            .collect();
        // Its own, on which it said "ready" to nobody who is still there.
        assert!(open.len() <= 1, "{open:?}");
    });
}

#[test]
fn the_agent_takes_nothing_that_was_meant_for_the_service() {
    on_a_host(|host| {
        let file = host.file("own.toml", WEB);
        let manager = host.folder().join("notify");
        let manager = std::os::unix::net::UnixDatagram::bind(manager).unwrap();
        manager.set_nonblocking(true).unwrap();
        let passed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut command = host.command("sh");
        command
            .args([
                "-c",
                r#"exec "$@" 3<&0"#,
                "sh",
                env!("CARGO_BIN_EXE_portpool"),
            ])
            .args(["exec", "--config", path(&file), "web", "--"])
            .args(["sh", "-c", "echo $NOTIFY_SOCKET"])
            .stdin(std::os::fd::OwnedFd::from(passed))
            .env("PORTPOOL_AGENT_IDLE", GOES)
            .env("NOTIFY_SOCKET", host.folder().join("notify"))
            // As under `systemfd --no-pid`: whoever looks may take it.
            .env("LISTEN_FDS", "1")
            .env("JOURNAL_STREAM", "1:1");
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        let notify = host.folder().join("notify").display().to_string();
        assert_eq!(
            text(&output.stdout).trim_end(),
            notify,
            "the service has it"
        );
        let nothing = manager.recv(&mut [0; 64]).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock);
    });
}

#[test]
fn the_agent_is_gone_when_it_is_idle_and_leaves_no_socket() {
    on_a_host(|host| {
        let file = host.file("own.toml", WEB);
        let (mut service, _) = show(host, GOES, &file);
        let agent = pid_of(host, &file);
        service.end_input();
        assert_eq!(service.wait(), Some(0));
        wait_until("the idle agent is gone", || !lives(agent));
        assert!(status(host, &file).is_none());
        let left = std::fs::read_dir(host.folder().join("portpool")).unwrap();
        let sockets = left
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .filter(|name| name.ends_with(".sock"));
        assert_eq!(sockets.collect::<Vec<_>>(), Vec::<String>::new());
    });
}

#[test]
fn an_exec_at_the_moment_of_the_idle_exit_works_a_hundred_times() {
    on_a_host(|host| {
        let file = host.file("own.toml", WEB);
        // How long after one exec the next one comes: it finds its way to the moment at which
        // every second one finds the agent still there.
        let mut pause = Duration::from_millis(50);
        let (mut found, mut started) = (0, 0);
        for round in 0..100 {
            let output = exec(host, "50ms", &file, &["true"]).output().unwrap();
            let error = text(&output.stderr);
            assert_eq!(output.status.code(), Some(0), "round {round}: {error}");
            match error.contains("started an agent") {
                true => {
                    started += 1;
                    pause = pause.saturating_sub(Duration::from_millis(2));
                }
                false => {
                    found += 1;
                    pause += Duration::from_millis(2);
                }
            }
            let next = Instant::now() + pause;
            while Instant::now() < next {
                std::thread::yield_now();
            }
        }
        let is_race = found >= 20 && started >= 20;
        assert!(is_race, "{found} found it, {started} started one");
    });
}

#[test]
fn a_changed_file_counts_once_nothing_of_the_old_one_is_leased() {
    on_a_host(|host| {
        let file = host.file("own.toml", WEB);
        let (mut service, _) = show(host, STAYS, &file);
        let first = Ends(pid_of(host, &file));
        host.file("own.toml", "[pool.web]\nports = \"9100-9101\"\n");
        let refused = exec(host, STAYS, &file, &["true"]).output().unwrap();
        assert_fails(
            &refused,
            78,
            &["own.toml has changed", "1 of its slots are leased", " list"],
        );
        service.end_input();
        assert_eq!(service.wait(), Some(0));
        wait_until("the lease is over", || {
            status(host, &file).unwrap()["leased"] == 0
        });
        let (_service, variables) = show(host, GOES, &file);
        assert_eq!(variables["PORT"], "9100");
        let second = pid_of(host, &file);
        assert_ne!(second, first.0);
        wait_until("the first agent is gone", || !lives(first.0));
    });
}

#[test]
fn a_broken_file_is_told_at_the_terminal_and_starts_nothing() {
    on_a_host(|host| {
        let file = host.file("own.toml", "[pool.web]\nports = \"9000-9007\"\nprots = 1\n");
        let output = exec(host, STAYS, &file, &["true"]).output().unwrap();
        assert_fails(&output, 78, &["prots", "own.toml:3:1", "did you mean"]);
        assert!(output.stdout.is_empty());
        assert!(status(host, &file).is_none());
        let missing = host.folder().join("missing.toml");
        let output = exec(host, STAYS, &missing, &["true"]).output().unwrap();
        assert_fails(&output, 78, &["cannot read", "missing.toml"]);
    });
}

#[test]
fn an_agent_that_cannot_start_says_why_at_once() {
    on_a_host(|host| {
        let file = host.file("own.toml", &format!("[agent]\nstrict = true\n\n{WEB}"));
        let squatter = host.role(&["squat", "127.0.0.1", "9003", "plain"], 0);
        squatter.wait_for("ready");
        let began = Instant::now();
        let output = exec(host, STAYS, &file, &["true"]).output().unwrap();
        assert_fails(
            &output,
            75,
            &["did not start", "web/1 9003: held by test_roles"],
        );
        // Not only after the time that a start may take.
        assert!(began.elapsed() < Duration::from_secs(8));
    });
}

#[test]
fn different_network_namespaces_do_not_share_an_agent() {
    on_a_host(|host| {
        let file = host.file("own.toml", WEB);
        let (_here, variables_here) = show(host, GOES, &file);
        let mut elsewhere = host.command("unshare");
        elsewhere
            .args([
                "--net",
                "sh",
                "-c",
                r#"ip link set lo up && exec "$@""#,
                "sh",
            ])
            .arg(env!("CARGO_BIN_EXE_portpool"))
            .args([
                "exec",
                "--config",
                path(&file),
                "web",
                "--",
                path(&roles()),
                "show",
            ])
            .env("PORTPOOL_AGENT_IDLE", GOES);
        let elsewhere = Process::start(elsewhere);
        assert_eq!(variables(&elsewhere)["PORT"], "9000");
        assert_eq!(variables_here["PORT"], "9000");
        assert_eq!(status(host, &file).unwrap()["leased"], 1);
    });
}

#[test]
fn list_port_and_status_reach_an_own_agent_and_never_start_one() {
    on_a_host(|host| {
        let file = host.file("own.toml", WEB);
        let run = |verb: &str, arguments: &[&str]| {
            let mut command = own(host, GOES, verb, &file);
            command.args(arguments).output().unwrap()
        };
        for (verb, arguments) in [("list", vec![]), ("port", vec!["web"]), ("status", vec![])] {
            assert_fails(&run(verb, &arguments), 69, &["no agent answers"]);
        }
        let (service, _) = show(host, GOES, &file);
        assert_eq!(text(&run("port", &["web"]).stdout), "9000\n");
        let list = text(&run("list", &[]).stdout);
        assert!(
            list.contains(&format!("test_roles[{}]", service.id())),
            "{list}"
        );
        assert!(text(&run("status", &[]).stdout).contains("shared-uid"));
    });
}

#[test]
fn no_agent_but_the_files_own_is_asked() {
    on_a_host(|host| {
        let other = host.agent("[pool.web]\nports = 9500\n");
        let file = host.file("own.toml", WEB);
        let mut command = exec(host, GOES, &file, &["sh", "-c", "echo $PORT"]);
        command.env("PORTPOOL_SOCKET", host.socket());
        assert_eq!(text(&command.output().unwrap().stdout), "9000\n");
        drop(other);
    });
}
