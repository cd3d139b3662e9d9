//! A service manager as systemd is one to its services: it passes the control socket and what is in
//! its store, and takes in what it is given to keep.

use std::collections::VecDeque;
use std::io::{BufRead, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixDatagram, UnixListener};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};

use command_fds::{CommandFdExt, FdMapping};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg, sockopt};

use crate::say;

/// What it keeps, by name; the latest first, as systemd 257 passes them.
type Stored = Arc<Mutex<VecDeque<(String, OwnedFd)>>>;

/// `manager FOLDER COMMAND...`: is the manager of one service, which it starts at each line `start`,
/// and says `ready PID` when the service does. Other lines:
///
/// - `upgrade`: has it go over to another program by SIGUSR2, and waits until it is ready again
/// - `kill`: ends it with SIGKILL; `stop`: with SIGTERM
/// - `attempt`: starts it, waits for its end, and says how it ended
/// - `deaf`, `hears`: works on nothing it is told any more; works on all of it
/// - `stored`: says the names of what is stored
/// - `forget NAME`, `junk NAME`: drops what is stored by a name; puts something else there
/// - `scribble NAME OFFSET`: writes to the memory that is stored by a name
pub(crate) fn manager(arguments: &[String]) {
    let [folder, command @ ..] = arguments else {
        panic!("manager FOLDER COMMAND...")
    };
    let notify = format!("{folder}/notify");
    let socket = UnixDatagram::bind(&notify).expect("a socket");
    let control = UnixListener::bind(format!("{folder}/a.sock")).expect("a socket");
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
    std::fs::set_permissions(format!("{folder}/a.sock"), everybody).expect("a mode");
    let stored = Stored::default();
    let (told, ready) = channel();
    let keeps = Arc::clone(&stored);
    let hears = Arc::new(Mutex::new(()));
    let ears = Arc::clone(&hears);
    std::thread::spawn(move || take_in(&socket, &keeps, &told, &ears));
    let mut deaf = Vec::new();
    let mut service: Option<Child> = None;
    for line in std::io::stdin().lock().lines().map_while(Result::ok) {
        let words: Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["start"] => {
                while ready.try_recv().is_ok() {}
                let child = start(command, &notify, &control, &stored);
                wait_until_ready(child.id(), &ready);
                say(&format!("ready {}", child.id()));
                service = Some(child);
            }
            ["upgrade"] => {
                while ready.try_recv().is_ok() {}
                let pid = service.as_ref().expect("a service").id();
                let process = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid"));
                nix::sys::signal::kill(process, nix::sys::signal::Signal::SIGUSR2)
                    .expect("it lives");
                wait_until_ready(pid, &ready);
                say(&format!("ready {pid}"));
            }
            ["attempt"] => {
                let mut child = start(command, &notify, &control, &stored);
                say(&format!("ended {}", child.wait().expect("it ends")));
            }
            ["deaf"] => {
                deaf.push(hears.lock().expect("its ears"));
                say("deaf");
            }
            ["hears"] => {
                deaf.clear();
                say("hears");
            }
            ["kill"] => {
                let child = service.as_mut().expect("a service");
                child.kill().expect("it lives");
                child.wait().expect("it ends");
                say("ended");
            }
            ["stop"] => {
                let child = service.as_mut().expect("a service");
                let pid = i32::try_from(child.id()).expect("a pid");
                let pid = nix::unistd::Pid::from_raw(pid);
                nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("it lives");
                child.wait().expect("it ends");
                say("ended");
            }
            ["stored"] => {
                let stored = stored.lock().expect("the store");
                let mut names: Vec<&str> = stored.iter().map(|(name, _)| name.as_str()).collect();
                names.sort_unstable();
                say(&names.join(" "));
            }
            ["forget", name] => {
                stored
                    .lock()
                    .expect("the store")
                    .retain(|(known, _)| known != name);
                say("forgotten");
            }
            ["junk", name] => {
                let junk = std::fs::File::open("/dev/null").expect("a file");
                let mut stored = stored.lock().expect("the store");
                stored.push_front((name.to_owned(), junk.into()));
                say("stored");
            }
            ["scribble", name, offset] => {
                let stored = stored.lock().expect("the store");
                let (_, fd) = stored
                    .iter()
                    .find(|(known, _)| known == name)
                    .expect("it is there");
                let file = std::fs::File::from(fd.try_clone().expect("a copy"));
                let offset = offset.parse().expect("a number");
                let outcome = std::os::unix::fs::FileExt::write_at(&file, b"scribble", offset);
                say(&format!("{outcome:?}"));
            }
            _ => panic!("no such line: {line:?}"),
        }
    }
}

fn start(command: &[String], notify: &str, control: &UnixListener, stored: &Stored) -> Child {
    let stored = stored.lock().expect("the store");
    let copy = |fd: std::os::fd::BorrowedFd| fd.try_clone_to_owned().expect("a copy");
    let control = ("control".to_owned(), copy(control.as_fd()));
    let kept = stored
        .iter()
        .map(|(name, fd)| (name.clone(), copy(fd.as_fd())));
    let handed: Vec<(String, OwnedFd)> = std::iter::once(control).chain(kept).collect();
    let names: Vec<&str> = handed.iter().map(|(name, _)| name.as_str()).collect();
    // LISTEN_PID is to be the service's own, which only it knows; it ends with us.
    let mut service = Command::new("setpriv");
    service
        .args([
            "--pdeathsig",
            "KILL",
            "sh",
            "-c",
            r#"LISTEN_PID=$$ exec "$@""#,
            "sh",
        ])
        .args(command)
        .env("NOTIFY_SOCKET", notify)
        .env("FDSTORE", "4096")
        .env("LISTEN_FDS", handed.len().to_string())
        .env("LISTEN_FDNAMES", names.join(":"))
        .stdin(Stdio::null())
        .stdout(Stdio::null());
    let mappings = (3..)
        .zip(handed)
        .map(|(child_fd, (_, parent_fd))| FdMapping {
            parent_fd,
            child_fd,
        });
    service
        .fd_mappings(mappings.collect())
        .expect("different numbers");
    service.spawn().expect("a service")
}

fn wait_until_ready(pid: u32, ready: &Receiver<u32>) {
    while ready
        .recv_timeout(std::time::Duration::from_secs(20))
        .expect("it becomes ready")
        != pid
    {}
}

fn take_in(socket: &UnixDatagram, stored: &Stored, told: &Sender<u32>, ears: &Mutex<()>) {
    sockopt::set_socket_passcred(socket, true).expect("credentials");
    loop {
        let mut buffer = [0; 4096];
        let mut space =
            [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(253), ScmCredentials(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let message = recvmsg(socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC);
        let length = message.expect("a message").bytes;
        // What it has not worked on waits with it.
        drop(ears.lock());
        let mut fds = Vec::new();
        let mut sender = 0;
        for part in control.drain() {
            match part {
                RecvAncillaryMessage::ScmRights(rights) => fds.extend(rights),
                RecvAncillaryMessage::ScmCredentials(from) => {
                    sender = from.pid.as_raw_nonzero().get()
                }
                _ => {}
            }
        }
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        let value = |name: &str| {
            let mut lines = text.lines();
            lines.find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
        };
        let name = value("FDNAME").unwrap_or("stored").to_owned();
        let mut stored = stored.lock().expect("the store");
        if value("FDSTORE").is_some() {
            assert_eq!(value("FDPOLL"), Some("0"), "{text}");
            // The very same file again is not kept twice. Only what has the same name can be that.
            stored.retain(|(known, _)| *known != name);
            stored.extend(fds.into_iter().map(|fd| (name.clone(), fd)));
        } else if value("FDSTOREREMOVE").is_some() {
            stored.retain(|(known, _)| *known != name);
        }
        drop(stored);
        if value("READY").is_some() {
            let pid = u32::try_from(sender).expect("a pid");
            told.send(pid).expect("somebody waits");
        }
    }
}
