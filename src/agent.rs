//! The daemon: holds the slots of its plan, hands them out, takes them back.
//!
//! One thread. Start-up order: read the configuration, get the control socket, hold every slot,
//! let clients in, say that it is ready.

mod about;
mod accept;
mod access;
mod asking;
mod beginning;
mod calls;
mod conflicts;
mod connection;
mod control;
mod core;
mod deadlines;
mod holders;
mod in_flight;
mod inspector;
mod kernel;
mod limits;
mod log;
mod names;
mod orphans;
mod reclaim;
mod records;
mod reload;
mod report;
mod rescue;
mod restore;
mod shut;
mod store;
mod transitions;
mod upgrade;
mod watch;

use std::cell::RefCell;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

pub(crate) use self::about::digest;
use self::about::{About, Level};
use self::beginning::{Beginning, Next};
use self::control::{Audience, ControlError, ControlSocket};
use self::core::{Agent, IsDormant, Origin, Shared};
pub(crate) use self::inspector::serve as inspect;
pub(crate) use self::reload::Files;
use self::store::{Inheritance, Past};
use crate::config::{self, Checked, Diagnostic, LoadError, Machine, Source};
use crate::ledger::{Obstacle, State};
use crate::plan::Slot;
use crate::sys::inspect::own_uid;
use crate::sys::manager::{Manager, handed_down};
use crate::sys::steer::Steering;
use crate::sys::stream::Listener;
use crate::sys::{clock, limits as machine};

/// How long an agent that ends when idle waits at least for its first client.
const FIRST_VISIT: Duration = Duration::from_secs(5);

/// What an agent is told at its start.
#[derive(Debug, Default)]
pub(crate) struct Options {
    /// Where the configuration is.
    pub(crate) configuration: Files,
    /// Where clients reach it, unless the service manager passes a socket.
    pub(crate) socket: PathBuf,
    /// Ends the agent when nobody was connected and nothing leased for so long.
    pub(crate) exit_when_idle: Option<Duration>,
    /// An agent of one user and for that user only.
    pub(crate) is_own: bool,
    /// Do without steering, at the level below.
    pub(crate) no_steering: bool,
    /// Write a line to standard output once it is ready.
    pub(crate) announce: bool,
}

/// Why an agent did not start.
#[derive(Debug)]
pub(crate) enum StartError {
    /// A file of the configuration cannot be read.
    Load(LoadError),
    /// The configuration is wrong.
    Configuration(Vec<Source>, Vec<Diagnostic>),
    /// Another agent serves that socket.
    Served(PathBuf),
    /// `strict`, and these slots are not free: a line each.
    NotFree(Vec<String>),
    /// The system said no to something.
    System(String, io::Error),
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            StartError::Load(error) => error.fmt(f),
            StartError::Configuration(sources, diagnostics) => {
                for diagnostic in diagnostics {
                    writeln!(f, "{}", diagnostic.render(sources, false))?;
                }
                write!(f, "the configuration is wrong: nothing was started")
            }
            StartError::Served(path) => write!(
                f,
                "another agent serves {}; see it with: portpool --socket {} status",
                path.display(),
                path.display()
            ),
            StartError::NotFree(lines) => {
                writeln!(f, "strict = true, and these slots are not free:")?;
                for line in lines {
                    writeln!(f, "  {line}")?;
                }
                write!(
                    f,
                    "end what has them, or start with strict = false to get them when they are free"
                )
            }
            StartError::System(what, error) => write!(f, "{what}: {error}"),
        }
    }
}

impl std::error::Error for StartError {}

/// Runs the agent until it is told to end, or is idle.
///
/// # Errors
/// Why it could not start. Nothing is held then, and what an earlier agent left stays where it is.
pub(crate) fn run(options: &Options) -> Result<(), StartError> {
    let handed = handed_down();
    log::begin();
    // Now: it may be replaced while we run.
    let program = std::env::current_exe().map_err(failed("cannot find the program itself"))?;
    let mut inherited =
        Inheritance::of(handed.map_err(failed("cannot take what was handed down"))?);
    if inherited.is_wrong() {
        let error = io::Error::new(
            io::ErrorKind::InvalidInput,
            "it is not a Unix socket that listens",
        );
        let what = "the socket passed by the service manager is no control socket";
        return Err(StartError::System(what.to_owned(), error));
    }
    for name in &inherited.useless {
        tracing::warn!(
            name,
            "a descriptor was handed down that is of no use here; closed"
        );
    }
    let fds = machine::raise_fd_limit().map_err(failed("cannot raise the limit of open files"))?;
    let manager = Manager::find().map_err(failed("cannot reach the service manager"));
    let manager = manager.unwrap_or_else(|error| {
        tracing::error!("{error}; the agent goes on without it");
        None
    });
    let past = inherited
        .past()
        .map_err(failed("cannot take what an earlier agent left"))?;
    let found = configuration(options);
    let beginning = Beginning::of(past.as_ref(), found)?;
    let earlier = inherited.steering.take().filter(|_| !options.no_steering);
    let earlier = earlier.and_then(|parts| {
        Steering::found(parts)
            .inspect_err(|error| {
                tracing::error!(%error, "an earlier agent's steering is of no use; another takes its place");
            })
            .ok()
    });
    if earlier.is_none() {
        inherited.useless(&store::name::STEERING);
    }
    let (level, level_reason, steering) = level(options, &beginning.slots, earlier);
    let about = About {
        plan: beginning.checked.config.plan_name.clone(),
        uid: own_uid(),
        level,
        level_reason,
        since: clock::since_boot(),
        configuration: names_of(&beginning.sources),
        digest: digest(&beginning.sources),
    };
    let mut control = match inherited.control.take() {
        Some(control) => ControlSocket::inherited(control, inherited.control_lock.take()),
        None => bind_control(options)?,
    };

    let Checked { config, plan, .. } = beginning.checked;
    let fds = usize::try_from(fds).unwrap_or(usize::MAX);
    let slots = beginning.slots;
    let needed: usize = slots.iter().map(|(slot, _)| 1 + slot.addresses.len()).sum();
    let origin = Origin {
        policy: access::policy(&plan, &config.access, about.uid),
        quotas: reload::quotas(&config.access),
        about,
        plan,
        slots,
        fd_limit: fds,
        secret: beginning.secret,
    };
    let agent = Agent::new(origin, steering).map_err(failed("cannot watch listeners"))?;
    let agent = Rc::new(RefCell::new(agent));
    {
        let mut agent = agent.borrow_mut();
        agent.files = options.configuration.clone();
        agent.sources = beginning.sources;
        agent.manager = manager;
        agent.reached = control.reached().ok();
        agent.program = program;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(limits::BLOCKING_THREADS)
        .build()
        .map_err(failed("cannot start the event loop"))?;
    let tasks = tokio::task::LocalSet::new();
    let start = Start {
        past,
        next: beginning.next,
        useless: inherited.useless,
        strict: config.agent.strict,
        fds: fds.saturating_sub(needed),
    };
    let work = serve(Rc::clone(&agent), &mut control, start, options);
    let outcome = runtime.block_on(tasks.run_until(work));
    agent.borrow().leave();
    // What the tasks hold goes before the control socket's file: who finds the file finds us.
    drop(tasks);
    outcome
}

/// Looks whether this agent could go on from where another is, which hands over its ledger; and touches
/// nothing.
///
/// # Errors
/// Why it could not.
pub(crate) fn check_handover(options: &Options) -> Result<(), StartError> {
    let handed = handed_down().map_err(failed("cannot take what was handed over"))?;
    let refused = |why: String| {
        let what = "cannot go on from where that agent is".to_owned();
        StartError::System(what, io::Error::new(io::ErrorKind::InvalidData, why))
    };
    let past = Inheritance::of(handed).look().map_err(refused)?;
    let sources = past.sources();
    // Else it would go on, but nobody could have any slot.
    let understood = config::parse(&sources, &facts());
    understood.map_err(|diagnostics| StartError::Configuration(sources, diagnostics))?;
    // What it would go over to then may be wrong: it stays with the other, as on reload.
    drop(configuration(options));
    Ok(())
}

fn failed(what: &str) -> impl FnOnce(io::Error) -> StartError {
    let what = what.to_owned();
    move |error| StartError::System(what, error)
}

fn configuration(options: &Options) -> Result<(Vec<Source>, Checked), StartError> {
    let sources = options.configuration.load().map_err(StartError::Load)?;
    match config::parse(&sources, &facts()) {
        Ok(checked) => Ok((sources, checked)),
        Err(diagnostics) => Err(StartError::Configuration(sources, diagnostics)),
    }
}

fn names_of(sources: &[Source]) -> Vec<String> {
    let paths = sources
        .iter()
        .map(|source| source.path.display().to_string());
    paths.collect()
}

/// What the agent does before it serves anybody.
struct Start {
    past: Option<Past>,
    /// Whether it then goes over to the configuration that there is now.
    next: Next,
    /// What the service manager is to forget.
    useless: Vec<String>,
    strict: bool,
    fds: usize,
}

async fn serve(
    agent: Shared,
    control: &mut ControlSocket,
    start: Start,
    options: &Options,
) -> Result<(), StartError> {
    let mut terminate = signal(SignalKind::terminate()).map_err(failed("cannot await SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(failed("cannot await SIGINT"))?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(failed("cannot await SIGHUP"))?;
    let mut user_two =
        signal(SignalKind::user_defined2()).map_err(failed("cannot await SIGUSR2"))?;

    let is_new = start.past.is_none();
    if let Some(past) = start.past {
        // Only what happens in here is the ledger's fault.
        let mut past = past;
        let attempt = past.begin();
        restore::restore(&agent, past);
        agent.borrow_mut().end_attempt(attempt);
        agent.borrow().kernel.take_shelves();
    }
    start.next.go_over(&agent);
    let slots = agent.borrow().ledger.slots();
    agent.borrow_mut().hold(slots);
    if is_new {
        reclaim::reclaim(&agent);
    }
    let obstructed = agent.borrow().status();
    if obstructed.conflicts > 0 {
        conflicts::identify(&agent).await;
    }
    if start.strict && is_new && obstructed.conflicts > 0 {
        return Err(StartError::NotFree(names_of_conflicts(&agent).await));
    }
    agent.borrow_mut().begin_to_outlive(start.useless);

    let listener = control
        .listen()
        .map_err(failed("cannot listen on the control socket"))?;
    let listener = Listener::watch(listener).map_err(failed("cannot watch the control socket"))?;
    tokio::task::spawn_local(accept::serve_clients(
        Rc::clone(&agent),
        listener,
        start.fds,
    ));
    tokio::task::spawn_local(conflicts::keep_trying(Rc::clone(&agent)));
    tokio::task::spawn_local(in_flight::keep_in_time(Rc::clone(&agent)));
    tokio::task::spawn_local(deadlines::keep(Rc::clone(&agent)));
    tokio::task::spawn_local(Agent::keep_alive(Rc::clone(&agent)));
    tokio::task::spawn_local(Agent::tell_status(Rc::clone(&agent)));
    tokio::task::spawn_local(Agent::keep_giving(Rc::clone(&agent)));
    tokio::task::spawn_local(orphans::keep_looking(Rc::clone(&agent)));
    let shut = agent.borrow().kernel.shut().waiter();
    let shut = shut.map_err(failed("cannot watch listeners"))?;
    tokio::task::spawn_local(shut::heal(Rc::clone(&agent), shut));
    tracing::info!(socket = %control.path().display(), "clients are served");
    say_ready(&agent);
    if options.announce {
        // Whoever started us reads this line, or has gone: neither is our trouble.
        drop(io::Write::write_all(&mut io::stdout(), b"ready\n"));
    }

    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
            // The log says what came of it.
            _ = hang_up.recv() => drop(reload::reload_and_tell(&agent)),
            _ = user_two.recv() => {
                let Err(error) = upgrade::upgrade(&agent).await;
                tracing::error!("cannot go over to another program: {error}");
            }
            () = idle(&agent, options.exit_when_idle) => break,
        }
    }
    match agent.borrow().manager.is_some() {
        true => tracing::info!("ending: what is held stays where the service manager keeps it"),
        false => tracing::info!("ending: every slot is given up"),
    }
    agent.borrow().tell_manager("STOPPING=1");
    Ok(())
}

/// Tells the log and the service manager how things stand.
fn say_ready(agent: &Shared) {
    let (level, text) = {
        let agent = agent.borrow();
        (agent.about.level.word(), agent.status_text())
    };
    tracing::info!(level, "ready: {text}");
    let agent = agent.borrow();
    agent.tell_manager(&format!("READY=1\nSTATUS={text}"));
}

/// Waits until nobody was connected and nothing leased for so long.
async fn idle(agent: &Shared, patience: Option<Duration>) {
    let Some(patience) = patience else {
        return std::future::pending().await;
    };
    let mut idle_since = tokio::time::Instant::now();
    let mut seen = agent.borrow().visitors;
    // Whoever started it may be slow to come, and is not to find it gone.
    let first = |seen| {
        if seen == 0 {
            FIRST_VISIT
        } else {
            Duration::ZERO
        }
    };
    while idle_since.elapsed() < patience.max(first(seen)) {
        let (is_idle, visitors) = {
            let agent = agent.borrow();
            let is_idle = agent.connections == 0 && agent.ledger.lease_count() == 0;
            (is_idle, agent.visitors)
        };
        // Somebody may have come and gone between two looks.
        if !is_idle || visitors != seen {
            seen = visitors;
            idle_since = tokio::time::Instant::now();
        }
        tokio::time::sleep(patience / 8).await;
    }
}

async fn names_of_conflicts(agent: &Shared) -> Vec<String> {
    let mut slots: Vec<_> = {
        let agent = agent.borrow();
        let in_conflict = |slot: &crate::ledger::SlotId| {
            agent.ledger.state(*slot) == State::Unheld(Obstacle::Conflict)
        };
        agent
            .ledger
            .slots()
            .filter(in_conflict)
            .map(|slot| agent.describe(slot))
            .collect()
    };
    names::name_users(agent, &mut slots).await;
    slots
        .iter()
        .map(crate::protocol::describe_conflict)
        .collect()
}

/// What the agent's promises can hold against here, why not against more, and the steering that
/// the best level needs.
fn level(
    options: &Options,
    slots: &[(Slot, IsDormant)],
    earlier: Option<Steering>,
) -> (Level, String, Option<Steering>) {
    if options.is_own {
        return shared_uid();
    }
    let held = |why: String| {
        if !is_system() {
            return shared_uid();
        }
        let reason = format!(
            "{why}: intruders are kept out and accidents mended, but a hostile ex-holder can get \
             connections back by a socket that it kept"
        );
        tracing::warn!("level held, not enforced: {reason}");
        (Level::Held, reason, None)
    };
    if options.no_steering {
        return held("--no-steering was given".to_owned());
    }
    let endpoints = slots
        .iter()
        .map(|(slot, _)| slot.addresses.len())
        .sum::<usize>();
    let attach = || Steering::attach(u32::try_from(endpoints).unwrap_or(u32::MAX));
    match earlier.map_or_else(attach, Ok) {
        Ok(steering) => {
            let reason =
                "one map entry in the kernel decides which socket gets a port's connections";
            (Level::Enforced, reason.to_owned(), Some(steering))
        }
        Err(error) => held(format!(
            "steering needs Linux 5.9, CAP_BPF and CAP_NET_ADMIN ({error})"
        )),
    }
}

/// Whether this process serves the whole system: as root, or as a user of its own with some of what
/// root may.
pub(crate) fn is_system() -> bool {
    let some = [machine::CAP_NET_ADMIN, machine::CAP_NET_BIND_SERVICE];
    own_uid() == 0 || some.into_iter().any(machine::has_capability)
}

fn shared_uid() -> (Level, String, Option<Steering>) {
    let reason = "this agent has its services' user: it guards against accidents, not against a \
                  process of that user that means harm";
    (Level::SharedUid, reason.to_owned(), None)
}

fn bind_control(options: &Options) -> Result<ControlSocket, StartError> {
    let audience = match options.is_own || !is_system() {
        false => Audience::Everybody,
        true => Audience::OwnUser,
    };
    ControlSocket::bind(&options.socket, audience).map_err(|error| match error {
        ControlError::Served(path) => StartError::Served(path),
        ControlError::Io(path, error) => {
            StartError::System(format!("cannot serve {}", path.display()), error)
        }
    })
}

/// What the configuration's warnings are made of.
pub(crate) fn facts() -> Machine {
    Machine {
        hostname: machine::hostname(),
        ephemeral: machine::ephemeral_ports(),
        reserved: machine::reserved_ports(),
        unprivileged_start: machine::unprivileged_port_start().unwrap_or(1024),
        may_bind_privileged: machine::has_capability(machine::CAP_NET_BIND_SERVICE),
        fd_limit: machine::fd_limit().unwrap_or(u64::MAX),
    }
}
