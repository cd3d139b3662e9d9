//! A machine with a real systemd, which scripts/test-systemd has booted for these tests.

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use serde_json::Value;

/// How long something may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

/// An address of the machine beside 127.0.0.1.
pub(crate) const ADDRESS: &str = "10.77.0.1";

/// The machine, for one test at a time.
pub(crate) struct Machine {
    leader: u32,
    _turn: MutexGuard<'static, ()>,
}

/// Takes the machine, with the package installed and nothing of an earlier test left.
#[track_caller]
pub(crate) fn on_the_machine(plan: &str, test: impl FnOnce(&Machine)) {
    static TURN: Mutex<()> = Mutex::new(());
    static INSTALLED: OnceLock<()> = OnceLock::new();
    let leader = std::env::var("PORTPOOL_MACHINE").expect("a machine: run scripts/test-systemd");
    let turn = TURN
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
    let machine = Machine {
        leader: leader.parse().expect("a pid"),
        _turn: turn,
    };
    INSTALLED.get_or_init(|| machine.prepare());
    machine.run(&[
        "sh",
        "-c",
        "systemctl stop 'portpool@*' '*-test@*' 2>&1; true",
    ]);
    machine.run(&[
        "sh",
        "-c",
        "systemctl stop portpool.service; systemctl reset-failed; true",
    ]);
    machine.run(&[
        "sh",
        "-c",
        "systemctl clean --what=fdstore portpool.service 2>/dev/null; true",
    ]);
    machine.write("/etc/portpool/portpool.toml", plan);
    machine.ok(&[
        "systemctl",
        "enable",
        "--now",
        "portpool.socket",
        "portpool.service",
    ]);
    test(&machine);
}

impl Machine {
    fn prepare(&self) {
        let packages = self.packages();
        self.copy(&packages[0], "/root/portpool.deb");
        self.copy(&packages[1], "/root/portpool-next.deb");
        let output = self.ok(&["dpkg", "--install", "/root/portpool.deb"]);
        println!("{output}");
        self.ok(&[
            "ip",
            "address",
            "add",
            &format!("{ADDRESS}/32"),
            "dev",
            "lo",
        ]);
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        self.copy(
            &root.join("examples/python/http_server.py"),
            "/opt/http_server.py",
        );
        self.copy(&root.join("examples/node/http.mjs"), "/opt/http.mjs");
        let example = PathBuf::from(env!("CARGO_BIN_EXE_portpool"));
        let example = example
            .parent()
            .expect("a folder")
            .join("examples/http_plain");
        self.copy(&example, "/opt/http_plain");
        for file in ["http_server.py", "http.mjs", "http_plain"] {
            self.ok(&["chmod", "755", &format!("/opt/{file}")]);
        }
    }

    /// The package, and one of a later version with another build of the program.
    fn packages(&self) -> Vec<PathBuf> {
        let packages = std::env::var("PORTPOOL_PACKAGES").expect("two packages");
        packages.split(':').map(PathBuf::from).collect()
    }

    /// Whether its systemd is of at least this version.
    pub(crate) fn has_systemd(&self, version: u32) -> bool {
        let text = self.ok(&["systemctl", "--version"]);
        let own = text
            .split_whitespace()
            .nth(1)
            .and_then(|word| word.parse::<u32>().ok());
        own.expect("a version") >= version
    }

    fn inside(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        command
            .args(["--target", &self.leader.to_string()])
            .args([
                "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "--", program,
            ])
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run(&self, words: &[&str]) -> Output {
        let mut command = self.inside(words[0]);
        command.args(&words[1..]).output().expect("nsenter runs")
    }

    /// The same; what it prints, if its exit code is 0.
    #[track_caller]
    pub(crate) fn ok(&self, words: &[&str]) -> String {
        let output = self.run(words);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{words:?}: {}: {errors}{}",
            output.status,
            self.journal()
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The end of the agent's journal.
    pub(crate) fn journal(&self) -> String {
        let output = self.run(&["journalctl", "--no-pager", "--lines=30", "--unit=portpool*"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Starts a command that goes on until the value is dropped.
    pub(crate) fn start(&self, words: &[&str]) -> Running {
        let mut command = self.inside(words[0]);
        command
            .args(&words[1..])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        Running(command.spawn().expect("nsenter runs"))
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.leader))
    }

    pub(crate) fn has(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        std::fs::write(self.path(path), text).expect("a file");
    }

    pub(crate) fn copy(&self, from: &std::path::Path, to: &str) {
        std::fs::copy(from, self.path(to))
            .unwrap_or_else(|error| panic!("{}: {error}", from.display()));
    }

    /// Does something in the machine's network, on a thread of its own.
    pub(crate) fn in_its_network<T: Send + 'static>(
        &self,
        what: impl FnOnce() -> T + Send + 'static,
    ) -> T {
        let network =
            std::fs::File::open(format!("/proc/{}/ns/net", self.leader)).expect("a network");
        let thread = std::thread::spawn(move || {
            nix::sched::setns(network, nix::sched::CloneFlags::CLONE_NEWNET).expect("to enter it");
            what()
        });
        thread.join().expect("it ends well")
    }

    /// What a client gets for `GET /` at an address and a port.
    pub(crate) fn get(&self, address: &str, port: u16) -> std::io::Result<String> {
        self.get_path(address, port, "/")
    }

    /// The same for another path.
    pub(crate) fn get_path(&self, address: &str, port: u16, path: &str) -> std::io::Result<String> {
        let to = format!("{address}:{port}");
        let request = format!("GET {path} HTTP/1.0\r\n\r\n");
        self.in_its_network(move || {
            use std::io::{Read, Write};
            let mut stream = std::net::TcpStream::connect(to)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(request.as_bytes())?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer)?;
            Ok(answer)
        })
    }

    /// A property of a unit.
    #[track_caller]
    pub(crate) fn property(&self, unit: &str, name: &str) -> String {
        let text = self.ok(&["systemctl", "show", "--value", "--property", name, unit]);
        text.trim().to_owned()
    }

    pub(crate) fn agent_pid(&self) -> String {
        self.property("portpool.service", "MainPID")
    }

    /// `portpool list --all --json`, but for what is counted at the moment.
    #[track_caller]
    pub(crate) fn slots(&self) -> Vec<Value> {
        let text = self.ok(&["portpool", "list", "--all", "--json"]);
        let mut slots: Vec<Value> = serde_json::from_str(&text).expect("JSON");
        for slot in &mut slots {
            slot["queue"] = Value::Null;
        }
        slots
    }

    #[track_caller]
    pub(crate) fn state(&self, port: u16) -> String {
        let slots = self.slots();
        let slot = slots
            .iter()
            .find(|slot| slot["port"] == port)
            .expect("a slot");
        slot["state"].as_str().expect("text").to_owned()
    }

    /// The agent's entries in the journal since it was asked last, as `journalctl -o json` has them.
    pub(crate) fn entries(&self) -> Vec<Value> {
        self.run(&["journalctl", "--sync"]);
        let text = self.ok(&[
            "journalctl",
            "--output=json",
            "--unit=portpool.service",
            "--cursor-file=/run/seen",
        ]);
        text.lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .collect()
    }

    /// How much CPU time PID 1 has used so far.
    pub(crate) fn cpu_of_pid_1(&self) -> Duration {
        let stat =
            std::fs::read_to_string(format!("/proc/{}/stat", self.leader)).expect("it lives");
        let (_, rest) = stat.rsplit_once(')').expect("a name");
        let fields: Vec<u64> = rest
            .split_whitespace()
            .skip(1)
            .flat_map(str::parse)
            .collect();
        // utime and stime, in ticks of 10 ms: fields 14 and 15 of proc_pid_stat(5).
        Duration::from_millis(10 * (fields[10] + fields[11]))
    }
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A command inside, which ends with this.
pub(crate) struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        drop(self.0.kill());
        drop(self.0.wait());
    }
}
