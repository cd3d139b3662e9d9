//! The command line: one file a verb.

mod agent;
mod check;
mod diff;
mod exec;
mod failure;
mod generate;
mod init;
mod inspect;
mod list;
mod map;
mod next;
mod own_agent;
mod plan;
mod port;
mod ready;
mod release;
mod reload;
mod revoke;
mod status;
mod target;
mod upgrade;
mod watch;
mod who;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use crate::client::Client;
use failure::{Failure, USAGE};

/// Holds every port of every pool in the kernel and hands services ready listening sockets.
#[derive(Debug, Parser)]
#[command(
    name = "portpool",
    version,
    propagate_version = true,
    max_term_width = 100
)]
#[command(
    after_help = "Exit codes: 64 usage, 69 no agent, 75 pool exhausted or wait over, 77 denied, 78 configuration; \
    of exec also CMD's own, 126 and 127 as in a shell."
)]
pub(crate) struct Cli {
    /// Where the agent is reached [default: /run/portpool/portpool.sock, else the user's own]
    #[arg(long, global = true, value_name = "PATH", env = "PORTPOOL_SOCKET")]
    socket: Option<PathBuf>,

    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Take one slot of each POOL, all or none, and become CMD with the sockets in LISTEN_FDS
    Exec(exec::Arguments),
    /// Show every slot: its state, who has it, since when
    List(list::Arguments),
    /// Print the ports a pool's service is on now, one a line
    Port(port::Arguments),
    /// Say who has a port of this machine, what the plan says of it, and what to do
    Who(who::Arguments),
    /// Show every change of a slot as it happens
    Watch(watch::Arguments),
    /// End leases of your own user's processes
    Release(release::Arguments),
    /// End anybody's leases, for administrators
    Revoke(revoke::Arguments),
    /// Have the agent read its configuration again, for administrators
    Reload(reload::Arguments),
    /// Show what the agent is and how it stands
    Status(status::Arguments),
    /// Find what is wrong in a configuration
    Check(check::Arguments),
    /// Show the numbering plan, as a table or as what other programs read
    Plan(plan::Arguments),
    /// Print the next free port of a range, a category, a pool or the plan
    Next(next::Arguments),
    /// Say what another configuration moves, adds and frees, and which leases it touches
    Diff(diff::Arguments),
    /// Draw the numbering space
    Map(map::Arguments),
    /// Write a first plan of what is there already
    Init(init::Arguments),
    /// Tell the agent that a successor is ready, once it says so
    #[command(hide = true)]
    Inspect(inspect::Arguments),
    #[command(hide = true)]
    Ready(ready::Arguments),
    /// Run the agent
    Agent(agent::Arguments),
    /// Write a shell's completions to standard output
    Completions(generate::CompletionsArguments),
    /// Write the manual pages into a folder, or the main one to standard output
    Man(generate::ManArguments),
}

/// The program: reads the process's arguments, does what they say, gives the exit code.
pub fn main() -> ExitCode {
    run(std::env::args_os())
}

/// The program with other arguments; the first is the program's own name.
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // Help and version come this way too, and are no errors.
            let code = if error.use_stderr() { USAGE } else { 0 };
            drop(error.print());
            return ExitCode::from(code);
        }
    };
    match cli.verb.run(cli.socket) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => {
            failure.print();
            ExitCode::from(failure.code)
        }
    }
}

impl Verb {
    fn run(self, socket: Option<PathBuf>) -> Result<u8, Failure> {
        match self {
            Verb::Exec(arguments) => exec::run(arguments, socket),
            Verb::List(arguments) => list::run(&arguments, socket),
            Verb::Port(arguments) => port::run(&arguments, socket),
            Verb::Who(arguments) => who::run(&arguments, socket),
            Verb::Watch(arguments) => watch::run(&arguments, socket),
            Verb::Release(arguments) => release::run(&arguments, socket),
            Verb::Revoke(arguments) => revoke::run(&arguments, socket),
            Verb::Reload(arguments) => reload::run(&arguments, socket),
            Verb::Inspect(arguments) => inspect::run(&arguments),
            Verb::Ready(arguments) => ready::run(&arguments),
            Verb::Status(arguments) => status::run(&arguments, socket),
            Verb::Check(arguments) => check::run(&arguments),
            Verb::Plan(arguments) => plan::run(&arguments),
            Verb::Next(arguments) => next::run(&arguments),
            Verb::Diff(arguments) => diff::run(&arguments, socket),
            Verb::Map(arguments) => map::run(&arguments, socket),
            Verb::Init(arguments) => init::run(&arguments),
            Verb::Agent(arguments) => agent::run(arguments, socket),
            Verb::Completions(arguments) => generate::completions(&arguments),
            Verb::Man(arguments) => generate::man(&arguments),
        }
    }
}

/// The whole definition, for what is generated from it.
fn definition() -> clap::Command {
    Cli::command()
}

/// Connects to the agent of a configuration file where one is given, else as [`connect`] does.
fn connect_to(config: Option<&Path>, socket: Option<PathBuf>) -> Result<Client, Failure> {
    match config {
        Some(file) => own_agent::connect_running(file),
        None => connect(socket),
    }
}

/// Connects to the agent that the options name.
fn connect(socket: Option<PathBuf>) -> Result<Client, Failure> {
    match socket {
        Some(path) => Ok(Client::connect_to(&path)?),
        None => Ok(Client::connect()?),
    }
}
