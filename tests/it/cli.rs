//! The command line: what each verb prints, and the number it ends with.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::host::{Agent, NOBODY, Process, example_configuration, on_a_host, roles, wait_until};

const TWO_POOLS: &str = "\
[agent]
instances = 2

[pool.api-server]
ports = \"9000-9002\"
category = \"api\"

[pool.worker]
ports = 7000
";

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn run(mut command: Command) -> Output {
    let output = command.stdin(Stdio::null()).output();
    output.unwrap_or_else(|error| panic!("{command:?}: {error}"))
}

/// The output of what must succeed without a word on standard error.
#[track_caller]
fn printed(output: &Output) -> String {
    let error = text(&output.stderr);
    assert_eq!((output.status.code(), error.as_str()), (Some(0), ""));
    text(&output.stdout)
}

/// It ends with that code; prints nothing, and its error once, beginning and containing so.
#[track_caller]
fn assert_fails(output: &Output, code: i32, beginning: &str, texts: &[&str]) {
    let error = text(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert_eq!(text(&output.stdout), "", "{error}");
    assert!(error.starts_with(beginning), "{error}");
    assert_eq!(error.matches(beginning).count(), 1, "said once: {error}");
    for wanted in texts {
        assert!(error.contains(wanted), "{wanted:?} is missing: {error}");
    }
}

fn as_user(mut command: Command, uid: u32, gid: u32) -> Command {
    command.uid(uid).gid(gid);
    command
}

fn rows(agent: &Agent, arguments: &[&str]) -> Vec<String> {
    let output = agent.run(&[&["list"], arguments].concat());
    printed(&output).lines().map(str::to_owned).collect()
}

fn json(agent: &Agent, arguments: &[&str]) -> serde_json::Value {
    let output = agent.run(&[arguments, &["--json"]].concat());
    serde_json::from_str(&printed(&output)).expect("JSON")
}

#[test]
fn a_wrong_command_line_ends_with_64() {
    on_a_host(|host| {
        let wrong: [&[&str]; 8] = [
            &[],
            &["frobnicate"],
            &["exec"],
            &["exec", "web"],
            &["exec", "web", "--instance", "0", "--", "true"],
            &["exec", "a", "b", "--", "echo", "{port}"],
            &["exec", "web*0", "--", "true"],
            &["list", "--instance", "many"],
        ];
        for arguments in wrong {
            let output = run(host.portpool(arguments));
            let error = text(&output.stderr);
            assert_eq!(output.status.code(), Some(64), "{arguments:?}: {error}");
            assert_eq!(text(&output.stdout), "");
            assert!(!error.is_empty(), "{arguments:?}");
        }
        for arguments in [&["--help"][..], &["exec", "--help"], &["--version"]] {
            assert!(!printed(&run(host.portpool(arguments))).is_empty());
        }
    });
}

#[test]
fn an_unknown_pool_ends_with_64_and_the_nearest_name() {
    on_a_host(|host| {
        let agent = host.agent(TWO_POOLS);
        for arguments in [
            &["exec", "api-sever", "--", "true"][..],
            &["list", "api-sever"],
            &["port", "api-sever"],
        ] {
            let nearest = r#"there is no pool "api-sever"; did you mean "api-server"?"#;
            assert_fails(&agent.run(arguments), 64, "portpool: ", &[nearest]);
        }
        let output = agent.run(&["exec", "--instance", "3", "worker", "--", "true"]);
        assert_fails(&output, 64, "portpool: ", &["no instance 3", "instances"]);
    });
}

#[test]
fn without_an_agent_the_verbs_end_with_69_and_say_where_they_looked() {
    on_a_host(|host| {
        let missing = host.folder().join("none.sock").display().to_string();
        let verbs: [&[&str]; 4] = [
            &["list"],
            &["port", "web"],
            &["status"],
            &["exec", "web", "--", "true"],
        ];
        for arguments in verbs {
            let mut command = host.portpool(arguments);
            command.env("PORTPOOL_SOCKET", &missing);
            assert_fails(
                &run(command),
                69,
                "portpool: no agent answers",
                &[&missing, "--config FILE"],
            );
        }
    });
}

#[test]
fn an_exhausted_pool_ends_with_75_and_names_every_holder() {
    on_a_host(|host| {
        let agent = host.agent(TWO_POOLS);
        let first = agent.serve(&["--label", "first", "api-server*2"]);
        let second = agent.serve(&["api-server"]);
        let output = agent.run(&["exec", "api-server", "--", "true"]);
        let of_first = format!("test_roles[{}] root \"first\"", first.id());
        assert_fails(
            &output,
            75,
            "portpool: pool api-server is exhausted in instance 1",
            &[
                &format!("9000 leased to {of_first}, since "),
                &format!("9001 leased to {of_first}, since "),
                &format!("9002 leased to test_roles[{}] root, since ", second.id()),
            ],
        );
    });
}

#[test]
fn another_user_of_roots_agent_ends_with_77_and_the_line_that_would_help() {
    on_a_host(|host| {
        let agent = host.agent(TWO_POOLS);
        let exec = agent.portpool(&["exec", "worker", "--", "true"]);
        let output = run(as_user(exec, NOBODY, NOBODY));
        let rule = "pool.worker has no allow: only root and the agent's own user may take it";
        let fix = r#"[pool.worker] allow = { users = ["65534"] }"#;
        assert_fails(
            &output,
            77,
            "portpool: user 65534 is denied worker",
            &[rule, fix],
        );
        // It may look.
        let list = run(as_user(agent.portpool(&["list"]), NOBODY, NOBODY));
        assert!(printed(&list).contains("8 slots: 8 parked"));
    });
}

#[test]
fn the_line_that_would_help_helps() {
    on_a_host(|host| {
        let fixed = format!("{TWO_POOLS}allow = {{ users = [\"65534\"] }}\n");
        let agent = host.agent(&fixed);
        let exec = |pool: &str, uid, gid| {
            let exec = agent.portpool(&["exec", pool, "--", "sh", "-c", "echo $PORT"]);
            run(as_user(exec, uid, gid))
        };
        assert_eq!(printed(&exec("worker", NOBODY, NOBODY)), "7000\n");
        assert_eq!(exec("worker", 61_010, NOBODY).status.code(), Some(77));
        assert_eq!(exec("api-server", NOBODY, NOBODY).status.code(), Some(77));
    });
}

#[test]
fn allow_lets_in_a_user_by_name_and_a_group_by_its_main_or_further_members() {
    on_a_host(|host| {
        let agent = host.agent(
            "[pool.by-name]\nports = 7000\nallow = { users = [\"nobody\"] }\n\
             [pool.by-group]\nports = 7001\nallow = { groups = [\"61020\"] }\n",
        );
        let echo = ["--", "sh", "-c", "echo $PORT"];
        let exec = |pool: &str| agent.portpool(&[&["exec", pool], &echo[..]].concat());
        let by_name = run(as_user(exec("by-name"), NOBODY, NOBODY));
        assert_eq!(printed(&by_name), "7000\n");
        let by_main_group = run(as_user(exec("by-group"), NOBODY, 61_020));
        assert_eq!(printed(&by_main_group), "7001\n");
        let in_groups = |groups: &str| {
            let mut command = agent.portpool(&[]);
            let portpool = command.get_program().to_owned();
            command = {
                let mut setpriv = host.command("setpriv");
                setpriv
                    .args(["--reuid=65534", "--regid=65534", groups])
                    .arg(portpool)
                    .args(["exec", "by-group"])
                    .args(echo)
                    .env("PORTPOOL_SOCKET", host.socket());
                setpriv
            };
            run(command)
        };
        assert_eq!(printed(&in_groups("--groups=7,61020")), "7001\n");
        let output = in_groups("--groups=7");
        let rule = "pool.by-group.allow names neither this user, nor a group";
        assert_fails(&output, 77, "portpool: user 65534", &[rule]);
    });
}

#[test]
fn port_prints_the_bare_ports_in_use_and_ends_with_1_when_there_is_none() {
    on_a_host(|host| {
        let agent = host.agent(TWO_POOLS);
        let nobody = agent.run(&["port", "api-server"]);
        assert_fails(
            &nobody,
            1,
            "portpool: nobody holds a slot of api-server in instance 1",
            &["portpool exec api-server -- CMD"],
        );
        let _first = agent.serve(&["api-server"]);
        let _second = agent.serve(&["api-server"]);
        let _other = agent.serve(&["--instance", "2", "api-server"]);
        let ports = |arguments: &[&str]| printed(&agent.run(arguments));
        assert_eq!(ports(&["port", "api-server"]), "9000\n9001\n");
        assert_eq!(ports(&["port", "--instance", "2", "api-server"]), "9100\n");
        let mut inside = agent.portpool(&["port", "api-server"]);
        inside.env("PORTPOOL_INSTANCE", "2");
        assert_eq!(printed(&run(inside)), "9100\n");
    });
}

#[test]
fn list_fits_80_columns_with_trouble_first_and_parked_runs_on_one_line() {
    on_a_host(|host| {
        let squatter = host.role(&["squat", "127.0.0.1", "9101", "plain"], NOBODY);
        squatter.wait_for("ready");
        let agent = host.agent(&example_configuration("qwen-valencia.toml"));
        let holder = agent.serve(&["api-server"]);
        let rows = rows(&agent, &[]);
        for row in &rows {
            assert!(row.chars().count() <= 80, "{row}");
            assert!(
                !row.contains('\u{1b}'),
                "no colour without a terminal: {row:?}"
            );
        }
        let conflict = format!(
            "CONFLICT  api-server/2 9101: held by test_roles[{}] nobody",
            squatter.id()
        );
        assert!(rows[0].starts_with(&conflict), "{rows:#?}");
        let starts = |words: &str| {
            let words: Vec<&str> = words.split(' ').collect();
            let fits = |row: &&String| {
                let columns: Vec<&str> = row.split_whitespace().collect();
                columns.starts_with(&words)
            };
            assert_eq!(rows.iter().filter(fits).count(), 1, "{words:?}: {rows:#?}");
        };
        starts("POOL PORT STATE HOLDER USER UNIT AGE Q");
        let holder = format!("api-server/1 9000 leased test_roles[{}] root", holder.id());
        starts(&holder);
        starts("api-server/1 9001-9002 parked");
        starts(&format!(
            "api-server/2 9101 conflict test_roles[{}] nobody",
            squatter.id()
        ));
        starts("conversational/1 7000-7004 parked");
        let summary = "42 slots: 1 leased, 40 parked, 1 conflict";
        assert_eq!(rows.last().unwrap(), summary);
    });
}

#[test]
fn list_can_be_of_one_pool_of_one_instance_of_the_leased_and_of_every_slot() {
    on_a_host(|host| {
        let agent = host.agent(TWO_POOLS);
        let _holder = agent.serve(&["api-server"]);
        let first_words = |arguments: &[&str]| {
            let rows = rows(&agent, arguments);
            let slots = &rows[1..rows.len() - 1];
            let two = |row: &String| row.split_whitespace().take(2).collect::<Vec<_>>().join(" ");
            slots.iter().map(two).collect::<Vec<_>>()
        };
        assert_eq!(first_words(&["worker"]), ["worker/1 7000", "worker/2 7100"]);
        assert_eq!(
            first_words(&["--instance", "2"]),
            ["api-server/2 9100-9102", "worker/2 7100"]
        );
        assert_eq!(first_words(&["--leased"]), ["api-server/1 9000"]);
        assert_eq!(
            first_words(&["-a", "--instance", "1", "api-server"]),
            [
                "api-server/1 9000",
                "api-server/1 9001",
                "api-server/1 9002"
            ]
        );
    });
}

#[test]
fn list_as_json_has_the_promised_keys_and_null_where_there_is_nothing() {
    on_a_host(|host| {
        let squatter = host.role(&["squat", "127.0.0.1", "7000", "plain"], NOBODY);
        squatter.wait_for("ready");
        let agent = host.agent(TWO_POOLS);
        let holder = agent.serve(&["--label", "the first", "api-server"]);
        let slots = json(&agent, &["list", "--instance", "1"]);
        let slots = slots.as_array().unwrap();
        let keys = |value: &serde_json::Value| {
            let object = value.as_object().unwrap();
            object.keys().cloned().collect::<BTreeSet<String>>()
        };
        let set = |words: &str| words.split(' ').map(str::to_owned).collect::<BTreeSet<_>>();
        for slot in slots {
            let promised = "pool instance port protocol addresses category state generation \
                            leaseId holder queue conflict orphans restartingUntil successor";
            assert_eq!(keys(slot), set(promised));
        }
        let [leased, parked, _, conflict] = &slots[..] else {
            panic!("{slots:#?}")
        };
        let process = "pid uid user program unit label since";
        assert_eq!(keys(&leased["holder"]), set(process));
        assert_eq!(leased["holder"]["pid"], holder.id());
        assert_eq!(leased["holder"]["uid"], 0);
        assert_eq!(leased["holder"]["user"], "root");
        assert_eq!(leased["holder"]["program"], "test_roles");
        assert_eq!(leased["holder"]["label"], "the first");
        let since = leased["holder"]["since"].as_str().unwrap();
        assert!(since.ends_with('Z') && since.len() == 20, "{since}");
        assert_eq!(leased["addresses"], serde_json::json!(["127.0.0.1"]));
        assert_eq!(leased["category"], "api");
        assert_eq!(leased["state"], "leased");
        assert!(leased["leaseId"].is_u64());
        assert_eq!(leased["queue"]["length"], 0);
        assert_eq!(leased["conflict"], serde_json::Value::Null);
        assert_eq!(leased["orphans"], serde_json::json!([]));
        for key in ["leaseId", "holder", "queue", "conflict"] {
            assert_eq!(parked[key], serde_json::Value::Null, "{key}");
        }
        assert_eq!(conflict["category"], serde_json::Value::Null);
        assert_eq!(conflict["state"], "conflict");
        assert_eq!(conflict["conflict"]["pid"], squatter.id());
        assert_eq!(conflict["conflict"]["user"], "nobody");
        assert_eq!(conflict["conflict"]["program"], "test_roles");
    });
}

#[test]
fn list_shows_how_many_clients_wait() {
    on_a_host(|host| {
        let agent = host.agent(TWO_POOLS);
        let show = roles();
        // It has the listener and accepts nothing.
        let holder = agent.exec(&["api-server"], &[show.to_str().unwrap(), "show"]);
        holder.wait_for("ready");
        let connect = |_| std::net::TcpStream::connect("127.0.0.1:9000").unwrap();
        let clients: Vec<_> = (0..7).map(connect).collect();
        assert_eq!(json(&agent, &["list"])[0]["queue"]["length"], 7);
        let rows = rows(&agent, &["--leased"]);
        assert!(rows[1].ends_with(" 7"), "{rows:#?}");
        drop(clients);
    });
}

#[test]
fn five_thousand_slots_are_listed() {
    on_a_host(|host| {
        let agent = host.agent("[pool.many]\nports = \"20000-24999\"\n");
        assert_eq!(json(&agent, &["list"]).as_array().unwrap().len(), 5000);
        assert_eq!(rows(&agent, &["-a"]).len(), 5002);
        let collapsed = rows(&agent, &[]);
        assert_eq!(collapsed.len(), 3, "{collapsed:#?}");
        assert!(
            collapsed[1].contains("20000-24999 parked"),
            "{collapsed:#?}"
        );
        assert_eq!(collapsed[2], "5000 slots: 5000 parked");
    });
}

#[test]
fn a_hostile_program_name_is_never_obeyed_by_terminal_or_log() {
    const NAME: &str = "e\u{1b}[2J\ni\u{9b}l";
    const SHOWN: &str = r"e\u{1b}[2J\u{a}i\u{9b}l";
    on_a_host(|host| {
        let log = host.folder().join("log");
        let named = |mut command: Command| {
            command.env("TEST_ROLE_NAME", NAME);
            command
        };
        let mut squat = host.command(roles());
        squat.args(["squat", "127.0.0.1", "9001", "plain"]);
        let squatter = Process::start(named(squat));
        squatter.wait_for("ready");
        let agent = host.logging_agent("[pool.web]\nports = \"9000-9001\"\n", &log);
        let label = ["exec", "--label", "\u{1b}]0;la\u{7}bel", "web", "--"];
        let mut serve = agent.portpool(&label);
        serve.arg(roles()).arg("serve");
        let holder = Process::start(named(serve));
        holder.wait_for("ready");

        // Our own output to a pipe would be stripped of what a terminal obeys: so a terminal.
        let on_a_terminal = |arguments: &str| {
            let portpool = env!("CARGO_BIN_EXE_portpool");
            let mut script = host.command("script");
            script.env("PORTPOOL_SOCKET", host.socket());
            let command = format!("{portpool} {arguments}");
            script.args(["--quiet", "--return", "--command", &command, "/dev/null"]);
            let output = run(script);
            text(&output.stdout)
        };
        let list = on_a_terminal("list");
        assert_eq!(list.matches(SHOWN).count(), 3, "{list:?}");
        let exhausted = on_a_terminal("exec web -- true");
        assert_eq!(exhausted.matches(SHOWN).count(), 2, "{exhausted:?}");
        assert!(exhausted.contains(r"\u{1b}]0;la\u{7}bel"), "{exhausted:?}");
        agent.process.signal(Signal::SIGTERM);
        wait_until("the agent has logged its end", || {
            std::fs::read_to_string(&log).unwrap().contains("ending")
        });
        let log = std::fs::read_to_string(&log).unwrap();
        for shown in [list, exhausted, log] {
            let raw = shown.contains("\u{1b}[2J") || shown.contains("\u{1b}]0;");
            assert!(!raw && !shown.contains('\u{9b}'), "{shown:?}");
        }
        // As JSON it is data, escaped as JSON has it.
        drop((holder, squatter));
    });
}

#[test]
fn status_tells_what_the_agent_is() {
    on_a_host(|host| {
        let agent = host.agent(&example_configuration("qwen-valencia.toml"));
        let _holder = agent.serve(&["api-server*3"]);
        let text = printed(&agent.run(&["status"]));
        for wanted in [
            "plan           Qwen-Valencia\n",
            "slots          42: 3 leased, 39 parked, 0 in conflict, 0 unavailable\n",
            "portpool.toml\n",
        ] {
            assert!(text.contains(wanted), "{wanted:?}: {text}");
        }
        let status = json(&agent, &["status"]);
        assert_eq!(status["pid"], agent.process.id());
        assert_eq!(status["uid"], 0);
        assert_eq!(status["leased"], 3);
        // Enforced where the kernel lets the agent steer.
        let level = status["level"].as_str().unwrap();
        assert!(["held", "enforced"].contains(&level), "{level}");
        assert!(
            text.contains(&format!("level          {level} (")),
            "{text}"
        );
        assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
        let keys: BTreeSet<&str> = status
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let promised = "version plan level levelReason pid uid since configuration \
                        configurationDigest slots leased parked conflicts unavailable waiting connections";
        assert_eq!(keys, promised.split(' ').collect());
    });
}

#[test]
fn completions_are_scripts_of_their_shells() {
    on_a_host(|host| {
        for (shell, check) in [("bash", "-n"), ("zsh", "-n"), ("fish", "--no-execute")] {
            let script = printed(&run(host.portpool(&["completions", shell])));
            assert!(
                script.contains("portpool") && script.contains("exec"),
                "{shell}"
            );
            let file = host.file(shell, &script);
            match host.command(shell).arg(check).arg(file).output() {
                Ok(output) => assert!(output.status.success(), "{output:?}"),
                Err(error) => eprintln!("SKIPPED: {shell} does not look at its script: {error}"),
            }
        }
        let output = run(host.portpool(&["completions", "cmd"]));
        assert_eq!(output.status.code(), Some(64));
    });
}

#[test]
fn man_writes_a_page_for_every_verb() {
    on_a_host(|host| {
        let folder = host.folder().join("man");
        printed(&run(host.portpool(&["man", folder.to_str().unwrap()])));
        let main = printed(&run(host.portpool(&["man"])));
        assert!(main.contains(".TH portpool 1"), "{main}");
        let verbs = [
            "exec",
            "list",
            "port",
            "status",
            "check",
            "agent",
            "completions",
            "man",
        ];
        for verb in verbs {
            let page = std::fs::read_to_string(folder.join(format!("portpool-{verb}.1"))).unwrap();
            assert!(page.contains(&format!(".TH portpool-{verb} 1")), "{page}");
            assert!(page.contains(".SH OPTIONS"), "{page}");
            // What is for tests and for ourselves is not documented.
            assert!(
                !page.contains("agent\\-idle") && !page.contains("announce"),
                "{page}"
            );
        }
        assert!(folder.join("portpool.1").exists());
    });
}

#[test]
fn check_ends_with_0_1_and_2() {
    on_a_host(|host| {
        let check = |name: &str, text: &str| {
            let file = host.file(name, text);
            run(host.portpool(&["check", file.to_str().unwrap()]))
        };
        let right = printed(&check("right.toml", TWO_POOLS));
        assert!(
            right.ends_with("2 pools, 8 slots held on this machine, 0 warnings\n"),
            "{right}"
        );
        let wrong = check("wrong.toml", "[pool.web]\nports = 0\nprots = 1\n");
        assert_eq!(wrong.status.code(), Some(1));
        let wrong = text(&wrong.stdout);
        assert!(wrong.contains("wrong.toml:3:1"), "{wrong}");
        assert!(wrong.ends_with("2 errors found\n"), "{wrong}");
        let missing = run(host.portpool(&["check", "/nowhere/portpool.toml"]));
        assert_fails(&missing, 2, "portpool: ", &["/nowhere/portpool.toml"]);
    });
}

#[test]
fn a_reader_that_has_seen_enough_is_no_error() {
    on_a_host(|host| {
        let agent = host.agent("[pool.many]\nports = \"20000-22999\"\n");
        for arguments in [
            "list -a",
            "list --json",
            "check --defaults",
            "man",
            "completions bash",
        ] {
            let mut command = host.command("bash");
            let line = format!(
                "set -o pipefail; {} {arguments} | head -n 1 >/dev/null",
                env!("CARGO_BIN_EXE_portpool")
            );
            command
                .args(["-c", &line])
                .env("PORTPOOL_SOCKET", host.socket());
            assert_eq!(printed(&run(command)), "", "{arguments}");
        }
        drop(agent);
    });
}

#[test]
fn a_second_agent_on_the_same_socket_is_refused_and_takes_nothing_away() {
    on_a_host(|host| {
        let agent = host.agent(TWO_POOLS);
        let second = run(host.agent_command(&host.folder().join("portpool.toml")));
        let socket = host.socket().display().to_string();
        assert_eq!(second.status.code(), Some(75));
        let error = text(&second.stderr);
        let told = format!("portpool: another agent serves {socket}; see it with: portpool");
        assert!(error.contains(&told), "{error}");
        assert_eq!(json(&agent, &["status"])["parked"], 8);
    });
}

#[test]
fn a_socket_file_that_an_agent_left_behind_is_no_obstacle() {
    on_a_host(|host| {
        let mut agent = host.agent(TWO_POOLS);
        agent.process.signal(Signal::SIGKILL);
        assert_eq!(agent.process.wait(), None);
        assert!(host.socket().exists());
        let agent = host.agent(TWO_POOLS);
        assert_eq!(json(&agent, &["status"])["parked"], 8);
    });
}

#[test]
fn at_sigterm_and_sigint_the_agent_removes_its_socket_and_ends_with_0_and_not_at_sighup() {
    on_a_host(|host| {
        for last in [Signal::SIGTERM, Signal::SIGINT] {
            let log = host.folder().join("log");
            let mut agent = host.logging_agent(TWO_POOLS, &log);
            agent.process.signal(Signal::SIGHUP);
            wait_until("the agent has read its configuration again", || {
                let text = std::fs::read_to_string(&log).unwrap();
                text.contains("configuration read again")
            });
            assert_eq!(json(&agent, &["status"])["parked"], 8);
            agent.process.signal(last);
            assert_eq!(agent.process.wait(), Some(0));
            assert!(!host.socket().exists());
        }
    });
}

fn mode(path: &Path) -> u32 {
    let metadata = std::fs::symlink_metadata(path);
    metadata.expect("it exists").permissions().mode() & 0o777
}

#[test]
fn roots_socket_is_for_everybody_and_a_users_own_for_that_user() {
    on_a_host(|host| {
        // Whatever the umask of who starts it.
        let agent = host.agent(TWO_POOLS);
        assert_eq!(mode(&host.socket()), 0o666);
        drop(agent);

        let runtime = host.folder_of("runtime", 61_030);
        let file = host.file("users.toml", TWO_POOLS);
        let mut command = host.portpool(&["agent", "--announce", "--config"]);
        command.arg(file).env("XDG_RUNTIME_DIR", &runtime);
        let users = Process::start(as_user(command, 61_030, 61_030));
        users.wait_for("ready");
        let socket = runtime.join("portpool/portpool.sock");
        assert_eq!(mode(&socket), 0o600);
        assert_eq!(mode(socket.parent().unwrap()), 0o700);
        // A client of that user finds it without being told.
        let mut port = host.portpool(&["exec", "worker", "--", "sh", "-c", "echo $PORT"]);
        port.env("XDG_RUNTIME_DIR", &runtime);
        assert_eq!(printed(&run(as_user(port, 61_030, 61_030))), "7000\n");
        // Root can connect to everybody's, and does not trust it.
        let mut status = host.portpool(&["status"]);
        status.env("XDG_RUNTIME_DIR", &runtime);
        assert_fails(
            &run(status),
            77,
            "portpool: the agent at ",
            &["61030", "not trusted"],
        );
    });
}

#[test]
fn a_control_socket_passed_by_the_service_manager_is_served() {
    on_a_host(|host| {
        let file = host.file("portpool.toml", TWO_POOLS);
        let passed = UnixListener::bind(host.socket()).unwrap();
        let mut command = host.command("sh");
        command
            .args(["-c", r#"LISTEN_PID=$$ exec "$@" 3<&0 </dev/null"#, "sh"])
            .arg(env!("CARGO_BIN_EXE_portpool"))
            .args(["agent", "--config"])
            .arg(file)
            .args(["--socket", "/nowhere/else.sock"])
            .env("LISTEN_FDS", "1")
            .stdin(OwnedFd::from(passed));
        let mut agent = Ended(command.spawn().unwrap());
        // The socket listens already: the call waits until it is served.
        let mut list = host.portpool(&["list"]);
        list.env("PORTPOOL_SOCKET", host.socket());
        assert!(printed(&run(list)).contains("8 slots: 8 parked"));
        agent.end();
        assert!(host.socket().exists(), "the file is the service manager's");
    });
}

#[test]
fn what_is_passed_and_no_unix_listener_is_refused() {
    on_a_host(|host| {
        let file = host.file("portpool.toml", TWO_POOLS);
        let passed = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut command = host.command("sh");
        command
            .args(["-c", r#"LISTEN_PID=$$ exec "$@" 3<&0"#, "sh"])
            .arg(env!("CARGO_BIN_EXE_portpool"))
            .args(["agent", "--config"])
            .arg(file)
            .env("LISTEN_FDS", "1")
            .stdin(OwnedFd::from(passed));
        let output = command.output().unwrap();
        assert_fails(
            &output,
            69,
            "portpool: ",
            &["passed by the service manager"],
        );
    });
}

#[test]
fn the_service_manager_is_told_when_the_agent_is_ready_and_when_it_ends() {
    on_a_host(|host| {
        let path = host.folder().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        let file = host.file("portpool.toml", TWO_POOLS);
        let mut command = host.agent_command(&file);
        command.env("NOTIFY_SOCKET", path);
        let agent = Process::start(command);
        let told = || {
            let mut buffer = [0; 4096];
            let length = manager.recv(&mut buffer).expect("a notification");
            text(&buffer[..length])
        };
        // Before, what is to outlive the agent.
        let is_ready = |told: &String| told.lines().any(|line| line == "READY=1");
        let ready = std::iter::repeat_with(told).find(is_ready).expect("ready");
        assert!(ready.contains("STATUS=8 of 8 slots held"), "{ready}");
        // It is ready: who comes now is served.
        let mut status = host.portpool(&["status"]);
        status.env("PORTPOOL_SOCKET", host.socket());
        printed(&run(status));
        agent.signal(Signal::SIGTERM);
        assert!(told().contains("STOPPING=1"));
    });
}

/// A process whose streams are not ours to read; ended with this value.
struct Ended(std::process::Child);

impl Ended {
    fn end(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Drop for Ended {
    fn drop(&mut self) {
        self.end();
    }
}

#[test]
fn an_agent_without_a_configuration_says_what_to_write() {
    on_a_host(|host| {
        let mut command = host.portpool(&["agent", "--socket"]);
        command.arg(host.socket());
        if Path::new("/etc/portpool/portpool.toml").exists() {
            eprintln!("SKIPPED: this machine has a configuration");
            return;
        }
        assert_fails(
            &run(command),
            78,
            "portpool: cannot read /etc/portpool/portpool.toml",
            &["--config"],
        );
        let wrong = host.file("wrong.toml", "[pool.web]\nprots = 1\n");
        let output = run(host.agent_command(&wrong));
        let error = text(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{error}");
        assert!(error.contains("wrong.toml:2:1"), "{error}");
    });
}
