//! The example services, each as its documentation starts it, answering on what it is handed.
//!
//! What they need beyond cargo is installed by `scripts/test-tools`, which writes where it is.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;

use crate::host::{
    Agent, Host, Process, example, example_configuration, lives, on_a_host, roles, wait_until,
};

const SERVERS: [&str; 6] = [
    "mcp-universal",
    "ollama-mcp",
    "groq-api",
    "sandra-ia",
    "conversational",
    "api-server",
];

pub(crate) fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Where the tools are. Where one of these is missing: says so and gives `None`, and fails where
/// everything must be tested.
pub(crate) fn tools(names: &[&str]) -> Option<HashMap<String, String>> {
    let paths = std::fs::read_to_string(repository("target/test-tools/paths"));
    let paths = paths.unwrap_or_default();
    let split = |line: &str| {
        let (name, path) = line.split_once('=')?;
        Path::new(path)
            .exists()
            .then(|| (name.to_owned(), path.to_owned()))
    };
    let found: HashMap<String, String> = paths.lines().filter_map(split).collect();
    let missing = names.iter().find(|name| !found.contains_key(**name));
    let Some(missing) = missing else {
        return Some(found);
    };
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let text = format!("{test} needs {missing}: run scripts/test-tools");
    let must_run = std::env::var_os("CI").or(std::env::var_os("PORTPOOL_TEST_ALL"));
    assert!(must_run.is_none(), "{text}");
    eprintln!("SKIPPED: {text}");
    None
}

fn connect(port: u16) -> TcpStream {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let stream = TcpStream::connect(address).unwrap_or_else(|error| panic!("{port}: {error}"));
    stream
        .set_read_timeout(Some(Duration::from_secs(20)))
        .expect("a time-out");
    stream
}

/// GET by HTTP/1.0: the answer has no chunks and ends with the connection.
#[track_caller]
pub(crate) fn get(port: u16, path: &str) -> (u16, Value) {
    let mut stream = connect(port);
    write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").expect("a server");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .unwrap_or_else(|| panic!("{answer:?}"));
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    let body = serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"));
    (status.unwrap_or_else(|| panic!("{head}")), body)
}

/// Starts a service in api-server, and has it answer as itself; gives its process.
#[track_caller]
fn answers(agent: &Agent, service: &str, command: &[&str]) -> Process {
    let process = agent.exec(&["api-server"], command);
    agent.wait_until("the service has its slot", |slots| {
        slots.iter().any(|slot| slot.state == "leased")
    });
    // From here on a client waits in the queue, however long the service takes to begin.
    let (status, body) = get(9000, "/");
    assert_eq!(status, 200, "{body}");
    assert_eq!(body["service"], service);
    assert_eq!(body["port"], 9000);
    assert_eq!(body["pid"], process.id());
    process
}

/// At SIGTERM it ends with 0, and its slot is parked again.
#[track_caller]
fn ends(agent: &Agent, mut process: Process) {
    process.signal(Signal::SIGTERM);
    assert_eq!(process.wait(), Some(0));
    agent.wait_until("its slot is parked", |slots| {
        slots.iter().all(|slot| slot.state == "parked")
    });
}

fn qwen(host: &Host) -> Agent<'_> {
    host.agent(&example_configuration("qwen-valencia.toml"))
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().expect("text")
}

#[test]
fn the_rust_examples_answer_on_the_listener_they_are_handed() {
    on_a_host(|host| {
        let agent = qwen(host);
        for name in ["http_plain", "http_axum"] {
            let process = answers(&agent, name, &[text(&example(name))]);
            assert_eq!(get(9000, "/").1["instance"], 1);
            ends(&agent, process);
        }
    });
}

#[test]
fn the_node_example_answers_on_the_listener_it_is_handed() {
    let Some(tools) = tools(&["node"]) else {
        return;
    };
    on_a_host(move |host| {
        let agent = qwen(host);
        let script = repository("examples/node/http.mjs");
        let process = answers(&agent, "http.mjs", &[&tools["node"], text(&script)]);
        ends(&agent, process);
    });
}

#[test]
fn the_websocket_example_answers_http_and_echoes_on_one_port() {
    let Some(tools) = tools(&["node", "node-ws"]) else {
        return;
    };
    on_a_host(move |host| {
        let agent = qwen(host);
        let script = repository("examples/node/websocket.mjs");
        let process = answers(&agent, "websocket.mjs", &[&tools["node"], text(&script)]);
        let mut socket = web_socket(9000);
        assert_eq!(echo(&mut socket, b"hello"), b"hello");
        assert_eq!(get(9000, "/").1["sockets"], 1);
        ends(&agent, process);
    });
}

/// A WebSocket: RFC 6455, section 4.1; key and answer are those of its section 1.3.
fn web_socket(port: u16) -> TcpStream {
    let mut stream = connect(port);
    let request = "GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\n\
        Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    stream.write_all(request.as_bytes()).expect("a server");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).expect("an answer");
        head.extend(byte);
    }
    let head = String::from_utf8(head).expect("text");
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    assert!(head.contains("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="), "{head}");
    stream
}

/// Sends a text of less than 126 bytes and gives what comes back: RFC 6455, section 5.2.
fn echo(stream: &mut TcpStream, message: &[u8]) -> Vec<u8> {
    let length = u8::try_from(message.len()).expect("a short message");
    let mask = [1, 2, 3, 4];
    let mut frame = vec![0x81, 0x80 | length];
    frame.extend(mask);
    frame.extend(
        message
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, mask)| byte ^ mask),
    );
    stream.write_all(&frame).expect("a server");
    let mut head = [0; 2];
    stream.read_exact(&mut head).expect("a frame");
    assert_eq!(head[0], 0x81, "a text, whole");
    let mut answer = vec![0; usize::from(head[1])];
    stream.read_exact(&mut answer).expect("the frame's end");
    answer
}

#[test]
fn the_python_examples_answer_on_the_listener_they_are_handed() {
    let Some(tools) = tools(&["python", "flask"]) else {
        return;
    };
    on_a_host(move |host| {
        let agent = qwen(host);
        for (tool, service) in [("python", "http_server.py"), ("flask", "flask_app.py")] {
            let script = repository("examples/python").join(service);
            let process = answers(&agent, service, &[&tools[tool], text(&script)]);
            ends(&agent, process);
        }
    });
}

/// Whether descriptor 3 of a process does not block: proc_pid_fdinfo(5).
fn does_not_block(pid: u32) -> bool {
    let text = std::fs::read_to_string(format!("/proc/{pid}/fdinfo/3")).expect("it has it");
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = i32::from_str_radix(flags.expect("flags").trim(), 8).expect("a number");
    flags & nix::fcntl::OFlag::O_NONBLOCK.bits() != 0
}

#[test]
fn after_a_node_service_the_next_holder_finds_a_socket_that_blocks() {
    let Some(tools) = tools(&["node", "python"]) else {
        return;
    };
    on_a_host(move |host| {
        let agent = qwen(host);
        let script = repository("examples/node/http.mjs");
        let node = answers(&agent, "http.mjs", &[&tools["node"], text(&script)]);
        assert!(
            does_not_block(node.id()),
            "Node sets it: or this tests nothing"
        );
        ends(&agent, node);
        let mut next = agent.exec(&["api-server"], &[text(&roles()), "show"]);
        next.wait_for("ready");
        assert!(!does_not_block(next.id()));
        next.end_input();
        assert_eq!(next.wait(), Some(0));
        agent.wait_until("its slot is parked", |slots| {
            slots.iter().all(|slot| slot.state == "parked")
        });
        let script = repository("examples/python/http_server.py");
        let python = answers(&agent, "http_server.py", &[&tools["python"], text(&script)]);
        ends(&agent, python);
    });
}

#[test]
fn without_a_listener_every_example_says_how_to_run_it() {
    let Some(tools) = tools(&["node", "python", "flask", "node-ws", "qwen-valencia-ws"]) else {
        return;
    };
    on_a_host(move |host| {
        let mut services: Vec<(String, Vec<PathBuf>)> = Vec::new();
        for name in ["http_plain", "http_axum"] {
            services.push((name.into(), vec![example(name)]));
        }
        let scripts = [
            ("node", "examples/node/http.mjs"),
            ("node", "examples/node/websocket.mjs"),
            ("python", "examples/python/http_server.py"),
            ("flask", "examples/python/flask_app.py"),
        ];
        for (tool, script) in scripts {
            let command = vec![tools[tool].clone().into(), repository(script)];
            services.push((script.into(), command));
        }
        for name in SERVERS {
            let script = repository("examples/qwen-valencia").join(format!("{name}.mjs"));
            services.push((name.into(), vec![tools["node"].clone().into(), script]));
        }
        for (name, command) in services {
            let mut process = host.command(&command[0]);
            process.args(&command[1..]).env_remove("LISTEN_FDS");
            let output = process.output().expect("it runs");
            assert_eq!(output.status.code(), Some(1), "{name}");
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(error.contains("portpool exec"), "{name}: {error}");
            assert!(
                !error.contains("Traceback") && !error.contains("    at "),
                "{name}: {error}"
            );
        }
    });
}

/// `run.sh` on this host, with our own binary and state of the test's own.
fn run_sh(host: &Host, arguments: &[&str], tools: &HashMap<String, String>) -> Command {
    let mut command = host.command(repository("examples/qwen-valencia/run.sh"));
    let node = Path::new(&tools["node"]).parent().expect("a folder");
    let path = std::env::var("PATH").unwrap_or_default();
    command
        .args(arguments)
        .env("PATH", format!("{}:{path}", node.display()))
        .env("PORTPOOL_BIN", env!("CARGO_BIN_EXE_portpool"))
        .env("QWEN_STATE", host.folder().join("state"))
        .env("PORTPOOL_AGENT_IDLE", "300ms")
        .env_remove("QWEN_ENV")
        .stdin(Stdio::null());
    command
}

#[track_caller]
fn succeeds(output: &Output) -> String {
    let (said, error) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert_eq!(output.status.code(), Some(0), "{said}{error}");
    said.into_owned()
}

/// The table of run.sh: (service, instance) to (port, pid).
fn table(text: &str) -> HashMap<(String, u16), (u16, u32)> {
    let row = |line: &str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [service, instance, port, pid] = words[..] else {
            panic!("not a row: {line:?}")
        };
        let key = (service.to_owned(), instance.parse().expect("an instance"));
        (
            key,
            (port.parse().expect("a port"), pid.parse().expect("a pid")),
        )
    };
    text.lines().skip(1).map(row).collect()
}

/// What is there when nothing was started, or all was stopped.
fn assert_nothing_runs(host: &Host, pids: &[u32]) {
    for pid in pids {
        assert!(!lives(*pid), "{pid} runs");
    }
    for instance in ["1", "2"] {
        let left = std::fs::read_dir(host.folder().join("state").join(instance));
        let left = left.into_iter().flatten().flatten();
        let pid_files = left.filter(|entry| entry.path().extension().is_some_and(|e| e == "pid"));
        assert_eq!(pid_files.count(), 0);
    }
}

#[test]
fn the_twelve_servers_of_qwen_valencia_start_answer_and_stop() {
    let Some(tools) = tools(&["node", "curl", "qwen-valencia-ws"]) else {
        return;
    };
    on_a_host(move |host| {
        let agent = qwen(host);
        let run = |arguments: &[&str]| {
            let mut command = run_sh(host, arguments, &tools);
            let output = command.env("PORTPOOL_SOCKET", host.socket()).output();
            output.expect("run.sh runs")
        };
        let rows = table(&succeeds(&run(&["start", "1", "2"])));
        assert_eq!(rows.len(), 12, "{rows:#?}");
        for instance in [1, 2] {
            for service in SERVERS {
                let (port, pid) = rows[&(service.to_owned(), instance)];
                for path in ["/api/health", "/health"] {
                    let (status, body) = get(port, path);
                    assert_eq!((status, &body["status"]), (200, &"ok".into()), "{service}");
                    assert_eq!(body["service"], service);
                    assert_eq!(body["instance"], instance);
                    assert_eq!((&body["port"], &body["pid"]), (&port.into(), &pid.into()));
                }
            }
            let (api, _) = rows[&("api-server".to_owned(), instance)];
            let (status, body) = get(api, "/api/services");
            assert_eq!(status, 200);
            for service in SERVERS {
                let (port, _) = rows[&(service.to_owned(), instance)];
                assert_eq!(
                    body["services"][service],
                    serde_json::json!([port]),
                    "{body}"
                );
            }
            let (status, body) = get(api, "/api/health/aggregated");
            assert_eq!((status, &body["status"]), (200, &"ok".into()), "{body}");
            for service in &SERVERS[..5] {
                let (port, pid) = rows[&((*service).to_owned(), instance)];
                let peer = &body["services"][*service];
                assert_eq!(
                    (&peer["port"], &peer["pid"]),
                    (&port.into(), &pid.into()),
                    "{body}"
                );
            }
            let (status, body) = get(api, "/api/tracing/stats");
            assert_eq!(status, 200);
            assert_eq!(body["routes"]["GET /api/services"]["count"], 1, "{body}");
            assert_eq!(get(api, "/api/token").0, 403);
            let (voice, _) = rows[&("conversational".to_owned(), instance)];
            assert_eq!(echo(&mut web_socket(voice), b"hola"), b"hola");
        }
        // Once more starts nothing twice.
        assert_eq!(table(&succeeds(&run(&["start", "1", "2"]))), rows);
        assert_eq!(table(&succeeds(&run(&["status", "1", "2"]))), rows);
        assert_eq!(agent.client().status().unwrap().leased, 12);

        succeeds(&run(&["stop", "1"]));
        assert_eq!(run(&["status", "1", "2"]).status.code(), Some(1));
        let second = table(&succeeds(&run(&["status", "2"])));
        assert_eq!(second.len(), 6, "the other instance is not touched");
        succeeds(&run(&["stop", "1", "2"]));
        let pids: Vec<u32> = rows.values().map(|(_, pid)| *pid).collect();
        assert_nothing_runs(host, &pids);
        agent.wait_until("all slots are parked", |slots| {
            slots.iter().all(|slot| slot.state == "parked")
        });
    });
}

#[test]
fn qwen_valencia_starts_with_an_agent_of_its_own_and_leaves_nothing() {
    let Some(tools) = tools(&["node", "curl", "qwen-valencia-ws"]) else {
        return;
    };
    on_a_host(move |host| {
        let run = |arguments: &[&str]| run_sh(host, arguments, &tools).output().unwrap();
        let rows = table(&succeeds(&run(&["start"])));
        assert_eq!(rows.len(), 6);
        let (api, _) = rows[&("api-server".to_owned(), 1)];
        assert_eq!(get(api, "/api/health/aggregated").1["status"], "ok");
        let file = repository("examples/qwen-valencia.toml");
        let status = || {
            let mut command = host.portpool(&["status", "--json", "--config"]);
            command.arg(&file).output().unwrap()
        };
        let agent: Value = serde_json::from_slice(&status().stdout).unwrap();
        assert_eq!(agent["leased"], 6);
        succeeds(&run(&["stop"]));
        let pids: Vec<u32> = rows.values().map(|(_, pid)| *pid).collect();
        assert_nothing_runs(host, &pids);
        // Looked at from outside: to ask it would keep it.
        let agent = agent["pid"].as_u64().and_then(|pid| pid.try_into().ok());
        let agent = agent.expect("a pid");
        wait_until("the agent is gone too", || !lives(agent));
        assert_eq!(status().status.code(), Some(69));
    });
}

#[test]
fn without_its_api_server_qwen_valencia_does_not_start_and_leaves_nothing() {
    let Some(tools) = tools(&["node", "curl", "qwen-valencia-ws"]) else {
        return;
    };
    on_a_host(move |host| {
        let squatter = |port: &str| {
            let process = host.role(&["squat", "0.0.0.0", port, "plain"], 0);
            process.wait_for("ready");
            process
        };
        let squatters = ["9000", "9001", "9002"].map(squatter);
        let agent = qwen(host);
        let run = |environment: &str, arguments: &[&str]| {
            let mut command = run_sh(host, arguments, &tools);
            command
                .env("PORTPOOL_SOCKET", host.socket())
                .env("QWEN_ENV", environment);
            command.output().unwrap()
        };
        let output = run("production", &["start"]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{error}");
        assert!(
            error.contains("FATAL: instance 1 has no api-server"),
            "{error}"
        );
        assert_nothing_runs(host, &[]);
        assert_eq!(agent.client().status().unwrap().leased, 0);

        let output = run("development", &["start"]);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{error}");
        assert!(error.contains("goes on without api-server"), "{error}");
        assert_eq!(agent.client().status().unwrap().leased, 5);
        succeeds(&run("production", &["stop"]));
        assert_nothing_runs(host, &[]);
        drop(squatters);
    });
}
