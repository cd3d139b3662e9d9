//! Where it all happens: a network namespace and a folder of the run's own, and the processes in it.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, CpuSet, sched_getaffinity, sched_setaffinity, unshare};
use nix::unistd::Pid;

use crate::Outcome;

/// The namespace is left with the process; the folder goes with this value.
#[derive(Debug)]
pub(crate) struct Place {
    folder: PathBuf,
    /// The program that is measured.
    program: PathBuf,
}

impl Place {
    pub(crate) fn new(program: &str) -> Outcome<Place> {
        let program = std::fs::canonicalize(program)?;
        unshare(CloneFlags::CLONE_NEWNET)?;
        let status = Command::new("ip")
            .args(["link", "set", "lo", "up"])
            .status()?;
        if !status.success() {
            return Err("ip link set lo up (Debian package iproute2)".into());
        }
        let folder = std::env::temp_dir().join(format!("pp-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        Ok(Place { folder, program })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The program that is measured, with nothing of the caller's environment that it would heed.
    pub(crate) fn portpool(&self) -> Command {
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("PORTPOOL") || name == "NOTIFY_SOCKET" {
                command.env_remove(name);
            }
        }
        command
    }

    /// An agent that is ready, and how long that took.
    pub(crate) fn agent(&self, name: &str, configuration: &str) -> Outcome<Agent> {
        self.agent_with(name, configuration, &[])
    }

    /// The same with further arguments.
    pub(crate) fn agent_with(
        &self,
        name: &str,
        configuration: &str,
        arguments: &[&str],
    ) -> Outcome<Agent> {
        self.start(name, configuration, |command| {
            command.args(arguments);
        })
    }

    /// The same with a service manager, which is to keep all of it, and does nothing at all.
    pub(crate) fn kept_agent(&self, name: &str, configuration: &str) -> Outcome<Agent> {
        let path = self.path(&format!("{name}.notify"));
        let manager = UnixDatagram::bind(&path)?;
        // What comes with a message is closed, which tells the agent that it was taken in.
        std::thread::spawn(move || while manager.recv(&mut [0; 4096]).is_ok() {});
        self.start(name, configuration, |command| {
            command.env("NOTIFY_SOCKET", path);
        })
    }

    fn start(
        &self,
        name: &str,
        configuration: &str,
        change: impl FnOnce(&mut Command),
    ) -> Outcome<Agent> {
        let file = self.path(&format!("{name}.toml"));
        std::fs::write(&file, configuration)?;
        let socket = self.path(name);
        let mut command = self.portpool();
        command
            .args(["agent", "--announce", "--config"])
            .arg(&file)
            .arg("--socket")
            .arg(&socket);
        change(&mut command);
        let begun = Instant::now();
        let process = Process::start(command)?;
        Ok(Agent {
            process,
            socket,
            ready_after: begun.elapsed(),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// An agent of this run.
#[derive(Debug)]
pub(crate) struct Agent {
    pub(crate) process: Process,
    pub(crate) socket: PathBuf,
    /// From fork(2) to its word that it is ready.
    pub(crate) ready_after: Duration,
}

/// A process that has said that it is ready. It ends with this value.
#[derive(Debug)]
pub(crate) struct Process(Child);

impl Process {
    /// Starts it and waits for its first line.
    pub(crate) fn start(mut command: Command) -> Outcome<Process> {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let output = child.stdout.take().ok_or("no output")?;
        let process = Process(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        match line.is_empty() {
            false => Ok(process),
            true => Err(format!("{command:?} does not start").into()),
        }
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// For how long it has run so far: `/proc/PID/schedstat`, proc(5).
    pub(crate) fn processor_time(&self) -> Outcome<Duration> {
        let text = std::fs::read_to_string(format!("/proc/{}/schedstat", self.id()))?;
        let nanoseconds = text.split(' ').next().ok_or("no time")?;
        Ok(Duration::from_nanos(nanoseconds.parse()?))
    }

    /// Lets it run on these processors only.
    pub(crate) fn run_on(&self, processors: &CpuSet) -> Outcome {
        let pid = Pid::from_raw(i32::try_from(self.id())?);
        Ok(sched_setaffinity(pid, processors)?)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Runs the work with this process and those others on one processor, and lets them go again.
pub(crate) fn on_one_processor(others: &[&Process], work: impl FnOnce() -> Outcome) -> Outcome {
    let this = Pid::from_raw(0);
    let all = sched_getaffinity(this)?;
    let mut one = CpuSet::new();
    let first = (0..CpuSet::count()).find(|cpu| all.is_set(*cpu).unwrap_or(false));
    one.set(first.unwrap_or(0))?;
    let pin = |processors: &CpuSet| -> Outcome {
        sched_setaffinity(this, processors)?;
        others.iter().try_for_each(|other| other.run_on(processors))
    };
    pin(&one)?;
    let outcome = work();
    pin(&all)?;
    outcome
}

/// The configuration of so many pools, `p00` and so on, of one port each.
pub(crate) fn pools(count: u16) -> String {
    let pool = |number| {
        let port = 7000 + number;
        // Who loses a slot to another of the benchmark's processes is not to die of it.
        format!("[pool.p{number:02}]\nports = \"{port}\"\non_revoke = \"none\"\n")
    };
    (0..count).map(pool).collect()
}

/// A line about the machine.
pub(crate) fn machine() -> String {
    let system = rustix::system::uname();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    format!(
        "{} {}, {processors} processors, load {}",
        system.sysname().to_string_lossy(),
        system.release().to_string_lossy(),
        load.split(' ').next().unwrap_or("unknown")
    )
}

/// Whether a program can be found.
pub(crate) fn is_installed(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|folder| Path::new(&folder).join(program).is_file())
}
