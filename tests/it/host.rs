//! The one builder: a host, an agent on it, holders and intruders beside it.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use portpool::Client;

use crate::raw::Raw;

/// A user who is neither root nor anybody else.
pub(crate) const NOBODY: u32 = 65534;

/// An address of the host beside 127.0.0.0/8 and ::1.
pub(crate) const OTHER_ADDRESS: &str = "10.77.0.1";

/// A test that runs longer is stuck: it is ended, and the run with it.
const LIMIT: Duration = Duration::from_secs(180);

/// How long an event may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(20);

static HOSTS: AtomicU32 = AtomicU32::new(0);

/// A machine of the test's own: a network namespace and a folder. The calling thread lives in it,
/// and every process it starts.
pub(crate) struct Host {
    folder: PathBuf,
}

/// Runs a test on a fresh host; skips it loudly where there can be none.
#[track_caller]
pub(crate) fn on_a_host(test: impl FnOnce(&Host) + Send + 'static) {
    let name = std::thread::current().name().unwrap_or("a test").to_owned();
    if !nix::unistd::geteuid().is_root() {
        let must_run = std::env::var_os("CI")
            .or(std::env::var_os("PORTPOOL_TEST_ALL"))
            .is_some();
        assert!(
            !must_run,
            "{name} needs root, for a network namespace of its own"
        );
        eprintln!("SKIPPED: {name} needs root, for a network namespace of its own");
        return;
    }
    let (done, waits) = channel::<()>();
    let worker = std::thread::Builder::new()
        .name(name.clone())
        .spawn(move || {
            let host = Host::new();
            test(&host);
            drop(done);
        });
    let worker = worker.expect("a thread");
    if let Err(RecvTimeoutError::Timeout) = waits.recv_timeout(LIMIT) {
        eprintln!("STUCK: {name} has run for {LIMIT:?}");
        std::process::abort();
    }
    if let Err(panic) = worker.join() {
        std::panic::resume_unwind(panic);
    }
}

impl Host {
    fn new() -> Host {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace");
        ip(&["link", "set", "lo", "up"]);
        ip(&[
            "address",
            "add",
            &format!("{OTHER_ADDRESS}/32"),
            "dev",
            "lo",
        ]);
        let number = HOSTS.fetch_add(1, Ordering::Relaxed);
        // A socket's path may have 107 bytes: not below the target folder.
        let folder = std::env::temp_dir().join(format!("pp-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(&folder, everybody).expect("a folder for everybody");
        Host { folder }
    }

    /// A file in the host's folder.
    pub(crate) fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        std::fs::write(&path, text).expect("a file");
        path
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    /// A command on this host that finds no agent but those the test names.
    pub(crate) fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        for name in [
            "PORTPOOL_SOCKET",
            "PORTPOOL_CONFIG",
            "PORTPOOL_INSTANCE",
            "PORTPOOL_LOG",
            "PORTPOOL_AGENT_IDLE",
            "NOTIFY_SOCKET",
        ] {
            command.env_remove(name);
        }
        command.env("XDG_RUNTIME_DIR", &self.folder);
        command
    }

    /// `portpool` on this host.
    pub(crate) fn portpool(&self, arguments: &[&str]) -> Command {
        let mut command = self.command(env!("CARGO_BIN_EXE_portpool"));
        command.args(arguments);
        command
    }

    /// Starts an agent with this configuration and waits until it is ready.
    pub(crate) fn agent(&self, configuration: &str) -> Agent<'_> {
        self.agent_that(true, configuration)
    }

    /// The same, but it steers only if told so: without, it is as where the agent may not load BPF
    /// programs.
    pub(crate) fn agent_that(&self, steers: bool, configuration: &str) -> Agent<'_> {
        let file = self.file("portpool.toml", configuration);
        let mut command = self.agent_command(&file);
        if !steers {
            command.arg("--no-steering");
        }
        self.agent_of(command)
    }

    /// The same, started by another command: `prlimit --nofile=100`.
    pub(crate) fn agent_under(&self, wrapper: &[&str], configuration: &str) -> Agent<'_> {
        let file = self.file("portpool.toml", configuration);
        self.agent_of(self.agent_command_under(wrapper, &file))
    }

    fn agent_of(&self, command: Command) -> Agent<'_> {
        let process = Process::start(command);
        process.wait_for("ready");
        Agent {
            host: self,
            process,
        }
    }

    /// The command that starts an agent of this host.
    pub(crate) fn agent_command(&self, configuration: &Path) -> Command {
        self.agent_command_under(&[], configuration)
    }

    fn agent_command_under(&self, wrapper: &[&str], configuration: &Path) -> Command {
        let portpool = env!("CARGO_BIN_EXE_portpool");
        let mut words = wrapper.iter().copied().chain([portpool]);
        let mut command = self.command(words.next().unwrap_or(portpool));
        command
            .args(words)
            .args(["agent", "--announce", "--config"])
            .arg(configuration)
            .arg("--socket")
            .arg(self.socket());
        command
    }

    /// Starts an agent whose log goes into a file, and waits until it is ready.
    pub(crate) fn logging_agent(&self, configuration: &str, log: &Path) -> Agent<'_> {
        let file = self.file("portpool.toml", configuration);
        let process = Process::start_logging(self.agent_command(&file), log);
        process.wait_for("ready");
        Agent {
            host: self,
            process,
        }
    }

    /// A folder of the host's that belongs to a user alone.
    pub(crate) fn folder_of(&self, name: &str, uid: u32) -> PathBuf {
        let path = self.folder.join(name);
        std::fs::create_dir(&path).expect("a folder");
        let own = std::os::unix::fs::PermissionsExt::from_mode(0o700);
        std::fs::set_permissions(&path, own).expect("a folder's mode");
        std::os::unix::fs::chown(&path, Some(uid), Some(uid)).expect("a folder's owner");
        path
    }

    /// Where this host's agent is reached.
    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("a.sock")
    }

    /// A role of `test_roles` as a process on this host, as a user.
    pub(crate) fn role(&self, arguments: &[&str], uid: u32) -> Process {
        let mut command = self.command(roles());
        command.args(arguments);
        self.start_as(command, uid)
    }

    /// Starts a command of this host as a user.
    pub(crate) fn start_as(&self, mut command: Command, uid: u32) -> Process {
        if uid != 0 {
            command.uid(uid).gid(uid);
        }
        Process::start(command)
    }

    /// How many connections at this IPv4 port of the host are in TIME_WAIT: proc_pid_net(5).
    pub(crate) fn in_time_wait(&self, port: u16) -> usize {
        let table = std::fs::read_to_string("/proc/thread-self/net/tcp").expect("/proc");
        let port = format!(":{port:04X}");
        let is_one = |line: &&str| {
            let mut columns = line.split_whitespace().skip(1);
            let local = columns.next().is_some_and(|local| local.ends_with(&port));
            local && columns.nth(1) == Some("06")
        };
        table.lines().filter(is_one).count()
    }

    /// Sets a kernel's parameter of this host: `net/ipv4/tcp_migrate_req`.
    pub(crate) fn sysctl(&self, name: &str, value: &str) {
        let outcome = std::fs::write(format!("/proc/sys/{name}"), value);
        outcome.unwrap_or_else(|error| panic!("{name}: {error}"));
    }

    /// Gives the host an address, or takes one away: `ip address add ADDRESS dev lo`.
    pub(crate) fn ip(&self, arguments: &[&str]) {
        ip(arguments);
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// The program that plays the other processes; `cargo test` builds it with the tests.
pub(crate) fn roles() -> PathBuf {
    example("test_roles")
}

/// A built example.
pub(crate) fn example(name: &str) -> PathBuf {
    let binary = Path::new(env!("CARGO_BIN_EXE_portpool"));
    let path = binary
        .parent()
        .expect("a folder")
        .join("examples")
        .join(name);
    assert!(
        path.exists(),
        "{} is not built: run cargo test without --test, or cargo build --examples",
        path.display()
    );
    path
}

/// An agent that is ready. It ends with this value.
pub(crate) struct Agent<'a> {
    host: &'a Host,
    pub(crate) process: Process,
}

impl Agent<'_> {
    /// `portpool` as a client of this agent.
    pub(crate) fn portpool(&self, arguments: &[&str]) -> Command {
        let mut command = self.host.portpool(arguments);
        command.env("PORTPOOL_SOCKET", self.host.socket());
        command
    }

    /// Runs it to its end.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.portpool(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("portpool runs")
    }

    /// Becomes a holder: `portpool exec ARGUMENTS -- test_roles serve`, once it serves.
    #[track_caller]
    pub(crate) fn serve(&self, arguments: &[&str]) -> Process {
        self.role(arguments, &["serve"])
    }

    /// `portpool exec ARGUMENTS -- test_roles ROLE`, once it is ready.
    #[track_caller]
    pub(crate) fn role(&self, arguments: &[&str], role: &[&str]) -> Process {
        let program = roles();
        let command = [&[program.to_str().expect("text")], role].concat();
        let process = self.exec(arguments, &command);
        process.wait_for("ready");
        process
    }

    /// `portpool exec ARGUMENTS -- COMMAND`, not waited for.
    pub(crate) fn exec(&self, arguments: &[&str], command: &[&str]) -> Process {
        let mut process = self.portpool(&["exec"]);
        process.args(arguments).arg("--").args(command);
        Process::start(process)
    }

    /// A client of the library.
    pub(crate) fn client(&self) -> Client {
        Client::connect_to(&self.host.socket()).expect("an agent")
    }

    /// A pool's slots, its companions' included.
    pub(crate) fn slots(&self, pool: &str) -> Vec<portpool::protocol::Slot> {
        let wanted = portpool::protocol::ListParameters {
            pool: Some(pool.to_owned()),
            instance: None,
        };
        self.client().list(&wanted).expect("a list")
    }

    /// Waits until a question about its slots is answered with yes.
    pub(crate) fn wait_until(
        &self,
        what: &str,
        mut is_so: impl FnMut(&[portpool::protocol::Slot]) -> bool,
    ) {
        let client = self.client();
        wait_until(what, || {
            is_so(&client.list(&Default::default()).expect("a list"))
        });
    }

    /// Waits until so many processes wait for slots.
    #[track_caller]
    pub(crate) fn wait_for_waiters(&self, count: u32) {
        let client = self.client();
        let waiting = || client.status().expect("an answer").waiting;
        wait_until("so many wait", || waiting() == count);
    }

    /// A connection that speaks the wire by hand.
    pub(crate) fn raw(&self) -> Raw {
        Raw::connect(&self.host.socket()).expect("an agent")
    }

    /// The agent's resident memory.
    pub(crate) fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()));
        let status = status.expect("the agent lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        number.and_then(|kib| kib.parse().ok()).expect("a number")
    }

    /// How many descriptors the agent has open, but for those it looks at other processes with.
    pub(crate) fn open_fds(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.process.id());
        let all = std::fs::read_dir(folder)
            .expect("the agent lives")
            .flatten();
        let is_a_look = |path: PathBuf| path.starts_with("/proc");
        all.filter(|fd| !std::fs::read_link(fd.path()).is_ok_and(is_a_look))
            .count()
    }
}

/// Waits until something is so, looking often; fails after a while. For what tells of no event.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

/// Whether a process runs. One that has ended and waits for its parent to notice does not.
pub(crate) fn lives(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"));
    let stat = stat.unwrap_or_default();
    let state = stat.rsplit_once(") ").map(|(_, rest)| rest);
    state.is_some_and(|state| !state.starts_with(['Z', 'X']))
}

/// A process that is ended with this value, and whose output is read line by line.
pub(crate) struct Process {
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Process {
    #[track_caller]
    pub(crate) fn start(command: Command) -> Process {
        Process::start_with(command, Stdio::inherit())
    }

    /// Its standard error goes to the end of a file.
    #[track_caller]
    pub(crate) fn start_logging(command: Command, log: &Path) -> Process {
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(log);
        Process::start_with(command, log.expect("a log").into())
    }

    #[track_caller]
    fn start_with(mut command: Command, errors: Stdio) -> Process {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors);
        let mut child = command
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let output = BufReader::new(child.stdout.take().expect("its output"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        let input = child.stdin.take();
        Process {
            child,
            input,
            lines,
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// The next line it writes.
    #[track_caller]
    pub(crate) fn line(&self) -> String {
        self.lines
            .recv_timeout(PATIENCE)
            .expect("it writes another line")
    }

    /// Lines up to the first that begins so, that one included.
    #[track_caller]
    pub(crate) fn wait_for(&self, beginning: &str) -> Vec<String> {
        let mut lines = Vec::new();
        loop {
            let line = self.line();
            let is_it = line.starts_with(beginning);
            lines.push(line);
            if is_it {
                return lines;
            }
        }
    }

    /// Asks a role for something and gives its answer.
    #[track_caller]
    pub(crate) fn ask(&mut self, line: &str) -> String {
        let input = self.input.as_mut().expect("its input is open");
        writeln!(input, "{line}").expect("it reads");
        self.line()
    }

    /// Ends its standard input, which ends most roles.
    pub(crate) fn end_input(&mut self) {
        self.input = None;
    }

    pub(crate) fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(i32::try_from(self.id()).expect("a pid"));
        nix::sys::signal::kill(pid, signal).expect("it lives");
    }

    /// Waits for its end; gives its exit code, or `None` when a signal ended it.
    #[track_caller]
    pub(crate) fn wait(&mut self) -> Option<i32> {
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What a server of the role `serve` answers at an address: its pid and the port.
pub(crate) fn ask_server(address: SocketAddr) -> std::io::Result<(u32, u16)> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let mut words = answer.split_whitespace();
    let mut number = || words.next().and_then(|word| word.parse().ok());
    let answer = number().zip(number());
    let (pid, port) = answer.ok_or(std::io::ErrorKind::InvalidData)?;
    Ok((
        pid,
        u16::try_from(port).map_err(|_| std::io::ErrorKind::InvalidData)?,
    ))
}

/// Who serves this port of 127.0.0.1.
#[track_caller]
pub(crate) fn server_of(port: u16) -> u32 {
    let (pid, answered) = ask_server(SocketAddr::from(([127, 0, 0, 1], port))).expect("an answer");
    assert_eq!(answered, port);
    pid
}

/// Whether there is nobody at this port of 127.0.0.1.
pub(crate) fn refuses(port: u16) -> bool {
    let outcome = ask_server(SocketAddr::from(([127, 0, 0, 1], port)));
    outcome.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// What a program that has ended wrote to its standard error.
pub(crate) fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status();
    let is_done = status.as_ref().is_ok_and(std::process::ExitStatus::success);
    assert!(
        is_done,
        "ip {arguments:?}: {status:?} (Debian package iproute2)"
    );
}

/// The text of an example's configuration.
pub(crate) fn example_configuration(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
