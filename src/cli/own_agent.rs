//! An agent of one's own for exactly one configuration file, started on demand.

use std::fs::{self, DirBuilder, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::agent::SERVED;
use super::failure::{CONFIGURATION, Failure, NO_AGENT, warn};
use crate::agent::{digest, facts};
use crate::client::{Client, Error};
use crate::config;
use crate::sys::inspect::own_uid;

/// How long its start, or the end of one that is just leaving, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Between two looks whether an agent that is just starting or leaving has done so.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// A log beyond this size, in bytes, is begun anew.
const MAX_LOG: u64 = 1 << 20;

/// What the agent must not take from the environment: it is started by a service, and is not it.
/// It says nothing to the service's manager, and serves no socket that was passed to the service.
const NOT_THE_AGENTS: [&str; 8] = [
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "JOURNAL_STREAM",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
];

/// The most bytes quoted from the log of an agent that did not start.
const MAX_QUOTED: usize = 2048;

/// Connects to the agent of a configuration file, and starts it first where there is none; it
/// goes once it was idle for so long.
pub(super) fn connect(file: &Path, idle: Duration) -> Result<Client, Failure> {
    let file = full_path(file)?;
    let wanted = check(&file)?;
    let socket = socket(&file)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match Client::connect_to(&socket) {
            Ok(client) => match client.status() {
                Ok(status) if status.configuration_digest == wanted => return Ok(client),
                Ok(status) if status.leased > 0 => {
                    return Err(outdated(&file, &socket, status.leased));
                }
                // Nobody has anything of it: it makes room for one that reads the file as it is.
                Ok(_) => end(&client),
                // It was leaving when we came.
                Err(_) => {}
            },
            Err(Error::NoAgent { .. }) => {
                if start(&file, &socket, idle)? {
                    continue;
                }
            }
            Err(error) => return Err(error.into()),
        }
        if Instant::now() > deadline {
            return Err(Failure::new(
                NO_AGENT,
                format_args!(
                    "the agent for {} does not start; see {}",
                    file.display(),
                    log_of(&socket).display()
                ),
            ));
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Connects to the agent of a configuration file, if it runs.
pub(super) fn connect_running(file: &Path) -> Result<Client, Failure> {
    Ok(Client::connect_to(&socket(&full_path(file)?)?)?)
}

fn full_path(file: &Path) -> Result<PathBuf, Failure> {
    fs::canonicalize(file).map_err(|error| {
        Failure::new(
            CONFIGURATION,
            format_args!("cannot read {}: {error}", file.display()),
        )
    })
}

/// Whether the configuration is right, told here and now and not in a log; gives its digest.
fn check(file: &Path) -> Result<String, Failure> {
    let wrong = |text: String| Failure::new(CONFIGURATION, text);
    let sources =
        config::load_files(&[file.to_owned()]).map_err(|error| wrong(error.to_string()))?;
    match config::parse(&sources, &facts()) {
        Ok(_) => Ok(digest(&sources)),
        Err(diagnostics) => Err(wrong(super::check::rendered(&diagnostics, &sources))),
    }
}

fn outdated(file: &Path, socket: &Path, leased: u32) -> Failure {
    Failure::new(
        CONFIGURATION,
        format_args!(
            "{} has changed since its agent read it, and {leased} of its slots are leased\n\
             see by whom: portpool --socket {} list; once they have ended, the new file counts",
            file.display(),
            socket.display()
        ),
    )
}

/// Asks an agent of our own user to end: the process that the kernel says we are connected to.
fn end(client: &Client) {
    let pid = client.agent_pid().and_then(|pid| i32::try_from(pid).ok());
    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
        let _ended_already = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
}

/// Starts the agent; gives false where another one was started at the same moment, or is leaving.
fn start(file: &Path, socket: &Path, idle: Duration) -> Result<bool, Failure> {
    let log = log_of(socket);
    let failed = |error: std::io::Error| {
        Failure::new(
            NO_AGENT,
            format_args!("cannot start an agent for {}: {error}", file.display()),
        )
    };
    let mut options = OpenOptions::new();
    options.create(true).append(true).mode(0o600);
    let log_file = options.open(&log).map_err(failed)?;
    let mut before = log_file.metadata().map_err(failed)?.len();
    if before > MAX_LOG {
        log_file.set_len(0).map_err(failed)?;
        before = 0;
    }
    let mut agent = Command::new(std::env::current_exe().map_err(failed)?);
    for name in NOT_THE_AGENTS {
        agent.env_remove(name);
    }
    let status = agent
        .args(["agent", "--background", "--own", "--exit-when-idle"])
        .arg(humantime::format_duration(idle).to_string())
        .arg("--config")
        .arg(file)
        .arg("--socket")
        .arg(socket)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log_file)
        .status()
        .map_err(failed)?;
    match status.code() {
        Some(0) => {
            warn(format_args!(
                "started an agent for {}; its log is {}",
                file.display(),
                log.display()
            ));
            Ok(true)
        }
        Some(code) if code == i32::from(SERVED) => Ok(false),
        code => {
            let text = format!(
                "the agent for {} did not start; from its log, {}:\n{}",
                file.display(),
                log.display(),
                quoted(&log, before)
            );
            let code = code.and_then(|code| u8::try_from(code).ok());
            Err(Failure::new(code.unwrap_or(NO_AGENT), text))
        }
    }
}

/// The end of what was written to the log since it had this length.
fn quoted(log: &Path, before: u64) -> String {
    let bytes = fs::read(log).unwrap_or_default();
    let before = usize::try_from(before).unwrap_or(usize::MAX);
    let new = bytes.get(before..).unwrap_or(&bytes);
    let new = &new[new.len().saturating_sub(MAX_QUOTED)..];
    String::from_utf8_lossy(new).trim_end().to_owned()
}

fn log_of(socket: &Path) -> PathBuf {
    socket.with_extension("log")
}

/// Where the agent of a file is reached. Ports are per network namespace, so the agent is too.
fn socket(file: &Path) -> Result<PathBuf, Failure> {
    let mut hasher = DefaultHasher::new();
    file.hash(&mut hasher);
    fs::metadata("/proc/self/ns/net")
        .map(|namespace| namespace.ino())
        .unwrap_or(0)
        .hash(&mut hasher);
    Ok(folder()?.join(format!("own-{:016x}.sock", hasher.finish())))
}

/// The user's own folder for such sockets, below `$XDG_RUNTIME_DIR` where that is the user's.
fn folder() -> Result<PathBuf, Failure> {
    let uid = own_uid();
    let is_own =
        |path: &PathBuf| fs::symlink_metadata(path).is_ok_and(|m| m.is_dir() && m.uid() == uid);
    let runtime = std::env::var_os("XDG_RUNTIME_DIR")
        .map(PathBuf::from)
        .filter(is_own);
    let folder = match runtime {
        Some(runtime) => runtime.join("portpool"),
        None => PathBuf::from(format!("/tmp/portpool-{uid}")),
    };
    match DirBuilder::new().mode(0o700).create(&folder) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            let text = format!("cannot make the folder {}: {error}", folder.display());
            Err(Failure::new(NO_AGENT, text))
        }
        _ if !is_own(&folder) => {
            let text = format!("{} is not a folder of yours: not used", folder.display());
            Err(Failure::new(NO_AGENT, text))
        }
        _ => Ok(folder),
    }
}
