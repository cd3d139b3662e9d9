//! The servers' side of `tests/it/exchange.rs`: a client sends a line and is answered `PID PORT`.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::io::Errno;

use super::say;

/// When nothing has come for so long to a listener that is not steered to any more, all has come: longer
/// than a handshake takes on loopback.
const DRAINED: Timespec = Timespec {
    tv_sec: 0,
    tv_nsec: 50_000_000,
};

/// How long a client may take to send its line.
const PATIENCE: Duration = Duration::from_secs(5);

/// `exchange drain|leave [READY_FD]`: serves the listener of LISTEN_FDS, one client after the other, says
/// `ready PID`, and says so to READY_FD. At SIGTERM it serves the client it has in hand, with `drain` those
/// that are queued too, and ends.
pub(super) fn exchange(arguments: &[String]) {
    let drains = match arguments[0].as_str() {
        "drain" => true,
        "leave" => false,
        other => panic!("neither drain nor leave: {other:?}"),
    };
    let mut fds = listenfd::ListenFd::from_env();
    let listener = fds.take_tcp_listener(0).expect("a TCP listener");
    let listener = listener.expect("a socket");
    listener.set_nonblocking(true).expect("a flag");
    let (ends, signalled) = UnixStream::pair().expect("a pair of sockets");
    let terminates = signal_hook::consts::SIGTERM;
    signal_hook::low_level::pipe::register(terminates, signalled).expect("a handler");
    if let Some(number) = arguments.get(1) {
        let path = format!("/proc/self/fd/{number}");
        let ready = std::fs::File::options().write(true).open(path);
        let said = ready.and_then(|mut ready| ready.write_all(b"READY=1\n"));
        said.expect("somebody waits for it");
    }
    say(&format!("ready {}", std::process::id()));
    while !is_told(&ends, &listener) {
        serve_next(&listener);
    }
    if drains {
        serve(&listener, &AtomicBool::new(true));
    }
}

/// `crash exits|aborts|says-nothing`: a service that never gets ready.
pub(super) fn crash(how: &str) {
    match how {
        "exits" => std::process::exit(3),
        "aborts" => std::process::abort(),
        "says-nothing" => {}
        other => panic!("no such crash: {other:?}"),
    }
}

/// Serves until the slot is another's and nothing is left in the queue. A listener that is shut meanwhile may be
/// healed.
pub(super) fn serve(listener: &TcpListener, is_replaced: &AtomicBool) {
    listener.set_nonblocking(true).expect("a flag");
    let waits = epoll::create(epoll::CreateFlags::CLOEXEC).expect("an epoll");
    // Edge-triggered: that it is shut is said once, and not until it is healed.
    let edges = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(&waits, listener, epoll::EventData::new_u64(0), edges).expect("a wait");
    let mut events = Vec::with_capacity(1);
    loop {
        events.clear();
        match epoll::wait(&waits, spare_capacity(&mut events), Some(&DRAINED)) {
            Ok(0) if is_replaced.load(Ordering::Relaxed) => return,
            Ok(_) | Err(Errno::INTR) => while serve_next(listener) {},
            Err(error) => panic!("{error}"),
        }
    }
}

/// The same for datagrams, each of which is answered with `PID PORT`.
pub(super) fn serve_datagrams(socket: &UdpSocket, is_replaced: &AtomicBool) {
    socket.set_nonblocking(true).expect("a flag");
    let port = socket.local_addr().expect("a local address").port();
    let mut buffer = [0; 64];
    loop {
        match poll(&mut [PollFd::new(socket, PollFlags::IN)], Some(&DRAINED)) {
            Ok(0) if is_replaced.load(Ordering::Relaxed) => return,
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => {
                if let Ok((_, sender)) = socket.recv_from(&mut buffer) {
                    let answer = format!("{} {port}\n", std::process::id());
                    drop(socket.send_to(answer.as_bytes(), sender));
                }
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Serves the client that waits, if one does.
pub(super) fn serve_next(listener: &TcpListener) -> bool {
    match listener.accept() {
        Ok((stream, _)) => {
            drop(answer(stream));
            true
        }
        Err(_) => false,
    }
}

/// A client may go away at any time: that is no fault of ours.
fn answer(stream: TcpStream) -> std::io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let port = stream.local_addr()?.port();
    let mut line = String::new();
    BufReader::new(&stream).read_line(&mut line)?;
    let answer = format!("{} {port}\n", std::process::id());
    (&stream).write_all(answer.as_bytes())
}

/// Waits for the next client, or for SIGTERM; whether it was that.
fn is_told(ends: &UnixStream, listener: &TcpListener) -> bool {
    let mut waits = [
        PollFd::new(ends, PollFlags::IN),
        PollFd::new(listener, PollFlags::IN),
    ];
    match poll(&mut waits, None) {
        Err(Errno::INTR) => false,
        outcome => outcome
            .map(|_| !waits[0].revents().is_empty())
            .expect("a poll"),
    }
}
