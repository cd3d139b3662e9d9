//! `portpool agent`: be the daemon.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use clap::Args;

use super::failure::{CONFIGURATION, EXHAUSTED, Failure, NO_AGENT, USAGE};
use crate::agent::{Files, Options, StartError, is_system};
use crate::client::{system_socket, user_socket};
use crate::sys::activation;

/// The exit code of an agent of one's own where another one serves its socket: the caller's
/// business with that one begins, so nothing is said of it.
pub(super) const SERVED: u8 = 3;

/// Hold every slot of the configured plan and serve clients, in the foreground.
///
/// Run by systemd it uses Type=notify and the control socket it is passed. Logs go to the journal
/// there, to standard error elsewhere; $PORTPOOL_LOG chooses how much (error, warn, info, debug).
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The configuration [default: /etc/portpool/portpool.toml and conf.d, or the user's own]
    #[arg(long, value_name = "FILE", env = "PORTPOOL_CONFIG")]
    config: Option<PathBuf>,

    /// End when nobody was connected and nothing leased for so long
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    exit_when_idle: Option<Duration>,

    /// Do without steering (BPF), at the level of guarantee below: "held"
    #[arg(long)]
    no_steering: bool,

    /// Have the running agent go over to the program installed now, with all it holds, for administrators
    #[arg(long, conflicts_with_all = ["exit_when_idle", "no_steering", "own", "background", "announce"])]
    upgrade: bool,

    /// Only look whether this program could take over from the agent that begins it
    #[arg(long, hide = true)]
    check_handover: bool,

    /// Serve only this user, as an agent of its own
    #[arg(long, hide = true)]
    own: bool,

    /// Go on in the background once everything is held
    #[arg(long, hide = true)]
    background: bool,

    /// Write "ready" to standard output when it is
    #[arg(long, hide = true)]
    announce: bool,
}

pub(super) fn run(arguments: Arguments, socket: Option<PathBuf>) -> Result<u8, Failure> {
    if arguments.background {
        return go_to_background();
    }
    if arguments.upgrade {
        return super::upgrade::run(arguments.config.as_deref(), socket);
    }
    if arguments.own && !arguments.check_handover {
        // Away from the terminal it was started from. A leader of a group cannot: setsid(2).
        let _already_a_leader = rustix::process::setsid();
    }
    let options = Options {
        configuration: configuration(arguments.config),
        socket: socket.map_or_else(default_socket, Ok)?,
        exit_when_idle: arguments.exit_when_idle,
        is_own: arguments.own,
        no_steering: arguments.no_steering,
        announce: arguments.announce,
    };
    let outcome = match arguments.check_handover {
        true => crate::agent::check_handover(&options),
        false => crate::agent::run(&options),
    };
    match outcome {
        Ok(()) => Ok(0),
        Err(StartError::Served(_)) if options.is_own => Ok(SERVED),
        Err(error) => Err(Failure::new(code(&error), error)),
    }
}

fn code(error: &StartError) -> u8 {
    match error {
        StartError::Load(_) | StartError::Configuration(..) => CONFIGURATION,
        StartError::NotFree(_) | StartError::Served(_) => EXHAUSTED,
        StartError::System(..) => NO_AGENT,
    }
}

/// Starts the agent in a process of its own, waits until it is ready, and leaves it behind as
/// nobody's child.
fn go_to_background() -> Result<u8, Failure> {
    let failed = |error| Failure::new(NO_AGENT, format_args!("cannot start an agent: {error}"));
    let arguments = std::env::args_os()
        .skip(1)
        .filter(|argument| argument != "--background");
    // What else the caller has open, a pipe that somebody reads to its end perhaps, stays here.
    activation::keep_from_children().map_err(failed)?;
    let mut agent = Command::new(std::env::current_exe().map_err(failed)?)
        .args(arguments)
        .arg("--announce")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .current_dir("/")
        .spawn()
        .map_err(failed)?;
    let mut line = String::new();
    if let Some(output) = agent.stdout.take() {
        BufReader::new(output)
            .read_line(&mut line)
            .map_err(failed)?;
    }
    match line.is_empty() {
        false => Ok(0),
        // It has ended, and said why where its log goes.
        true => {
            let status = agent.wait().map_err(failed)?;
            Ok(status
                .code()
                .and_then(|code| u8::try_from(code).ok())
                .unwrap_or(NO_AGENT))
        }
    }
}

/// The configuration that a command without `--config` reads: the system's for root or where the
/// user has none, else the user's.
pub(super) fn configuration(given: Option<PathBuf>) -> Files {
    if let Some(file) = given {
        return Files::These(vec![file]);
    }
    if !is_system()
        && let Some(file) = user_configuration().filter(|file| file.exists())
    {
        return Files::These(vec![file]);
    }
    Files::Below("/etc/portpool".into())
}

fn user_configuration() -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".config"));
    let folder = std::env::var_os("XDG_CONFIG_HOME").filter(|folder| !folder.is_empty());
    Some(
        folder
            .map(PathBuf::from)
            .or_else(home)?
            .join("portpool/portpool.toml"),
    )
}

fn default_socket() -> Result<PathBuf, Failure> {
    if is_system() {
        return Ok(system_socket());
    }
    user_socket().ok_or_else(|| {
        Failure::new(
            USAGE,
            "XDG_RUNTIME_DIR is not set: say where to be reached with --socket PATH",
        )
    })
}
