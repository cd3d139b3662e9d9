//! Whole processes: `portpool exec POOL -- true` beside `true`, and beside s6's way to do it.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::floor::timed;
use crate::measure::{Variant, take_turns};
use crate::place::{Place, Process, is_installed};
use crate::{Effort, Outcome};

const CONFIGURATION: &str = "[pool.web]\nports = \"7000-7009\"\n";
const PROGRAM: &str = "/bin/true";
const PLAIN: &str = "fork and exec of true";

pub(crate) fn measure(place: &Place, effort: Effort) -> Outcome {
    let agent = place.agent("exec.sock", CONFIGURATION)?;
    let peer = Peer::start(place)?;
    let mut variants = vec![
        Variant::new(PLAIN, || run(&mut Command::new(PROGRAM))),
        // What any program costs that does nothing but become another.
        Variant::new("env true", || run(Command::new("env").arg(PROGRAM))).beside(PLAIN),
        Variant::new("portpool exec POOL -- true", || {
            let mut command = place.portpool();
            command.arg("--socket").arg(&agent.socket);
            command.args(["exec", "web", "--", PROGRAM]);
            run(&mut command)
        })
        .beside(PLAIN),
        Variant::new("  of it: portpool --version", || {
            run(place.portpool().arg("--version"))
        })
        .beside(PLAIN),
    ];
    if let Some(peer) = &peer {
        variants.push(
            Variant::new("s6-fdholder-retrieve SOCKET ID true", || {
                let mut command = Command::new("s6-fdholder-retrieve");
                command.arg(&peer.socket).args(["web", PROGRAM]);
                run(&mut command)
            })
            .beside(PLAIN),
        );
    }
    take_turns(
        "Whole processes",
        effort.rounds,
        effort.processes,
        &mut variants,
    )
}

fn run(command: &mut Command) -> Outcome<Duration> {
    command.stdin(Stdio::null()).stdout(Stdio::null());
    let (took, status) = timed(|| Ok(command.status()?))?;
    match status.success() {
        true => Ok(took),
        false => Err(format!("{command:?}: {status}").into()),
    }
}

/// s6-fdholderd, which has one listener that somebody else bound, for root.
struct Peer {
    socket: PathBuf,
    _process: Process,
}

impl Peer {
    fn start(place: &Place) -> Outcome<Option<Peer>> {
        if !is_installed("s6-fdholder-daemon") {
            println!("\nSKIPPED: no s6-fdholder-daemon beside us (Debian package s6)");
            return Ok(None);
        }
        let rules = place.path("rules");
        let root = rules.join("uid/0");
        std::fs::create_dir_all(root.join("env"))?;
        std::fs::write(root.join("allow"), "")?;
        for right in ["S6_FDHOLDER_STORE_REGEX", "S6_FDHOLDER_RETRIEVE_REGEX"] {
            std::fs::write(root.join("env").join(right), ".")?;
        }
        let socket = place.path("s6");
        let mut command = Command::new("s6-fdholder-daemon");
        // With -1 it says by a line that it is ready.
        command.args(["-1", "-i"]).arg(&rules).arg(&socket);
        let process = Process::start(command)?;
        store(&socket)?;
        Ok(Some(Peer {
            socket,
            _process: process,
        }))
    }
}

fn store(socket: &Path) -> Outcome {
    let listener: OwnedFd = std::net::TcpListener::bind("127.0.0.1:0")?.into();
    let begun = Instant::now();
    let status = Command::new("s6-fdholder-store")
        .arg(socket)
        .arg("web")
        .stdin(listener)
        .status()?;
    match status.success() {
        true => Ok(()),
        false => Err(format!("s6-fdholder-store: {status} after {:?}", begun.elapsed()).into()),
    }
}
