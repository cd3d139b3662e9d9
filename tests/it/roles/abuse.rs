//! What a process can do with a socket that it shares with the agent.

use std::io::Write as _;
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::setsockopt;
use nix::{setsockopt_impl, sockopt_impl};
use socket2::{SockFilter, Socket, Type};

/// A filter lets through packets of at most so many bytes: a handshake's, and a greeting's.
const SHORT: u32 = 60;

sockopt_impl!(
    /// No copy of the socket can take its filter away, or change it: socket(7).
    LockFilter, SetOnly, libc::SOL_SOCKET, libc::SO_LOCK_FILTER, bool
);

/// Does it:
/// - `shutdown` it, for all who have it;
/// - `block` its address for others by clearing SO_REUSEADDR;
/// - `share` it by setting SO_REUSEPORT;
/// - `device`: bind it to one device only, which the kernel prefers;
/// - `filter`: make it and its connections deaf to longer packets, for good;
/// - `lock`: let nobody attach a filter;
/// - `options`: give it a tiny buffer, no lingering and no patience;
/// - `rejoin`: try for ever to listen on it again by every means, and answer what comes.
///
/// What the kernel says to it is the kernel's business.
pub(super) fn to(socket: &Arc<Socket>, word: &str) {
    let is_stream = socket.r#type().is_ok_and(|kind| kind == Type::STREAM);
    match word {
        "shutdown" if is_stream => drop(socket.shutdown(Shutdown::Both)),
        // Of datagrams it deafens whoever has this socket, and nobody else.
        "shutdown" => {}
        "block" => drop(socket.set_reuse_address(false)),
        "share" => drop(socket.set_reuse_port(true)),
        "device" => drop(socket.bind_device(Some(b"lo"))),
        "filter" => {
            drop(socket.attach_filter(&short_packets_only()));
            let _ = setsockopt(socket, LockFilter, &true);
        }
        "lock" => {
            let _ = setsockopt(socket, LockFilter, &true);
        }
        "options" => {
            drop(socket.set_recv_buffer_size(1));
            drop(socket.set_linger(Some(Duration::ZERO)));
            if is_stream {
                drop(socket.set_tcp_user_timeout(Some(Duration::from_millis(1))));
            }
        }
        "rejoin" => {
            let socket = Arc::clone(socket);
            std::thread::spawn(move || rejoin(&socket, is_stream));
        }
        other => panic!("no such abuse: {other:?}"),
    }
}

/// `A = length; if A > SHORT { drop } else { keep }`, in the classic BPF of the kernel's
/// Documentation/networking/filter.rst.
fn short_packets_only() -> [SockFilter; 4] {
    const LOAD_LENGTH: u16 = 0x80;
    const JUMP_IF_GREATER: u16 = 0x25;
    const RETURN: u16 = 0x06;
    [
        SockFilter::new(LOAD_LENGTH, 0, 0, 0),
        SockFilter::new(JUMP_IF_GREATER, 0, 1, SHORT),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ]
}

fn rejoin(socket: &Socket, is_stream: bool) {
    loop {
        let _ = socket.set_reuse_port(true);
        let _ = socket.bind_device(Some(b"lo"));
        if is_stream && socket.listen(100).is_ok() && socket.set_nonblocking(true).is_ok() {
            while let Ok((stream, _)) = socket.accept() {
                drop(answer(stream.into()));
            }
        }
    }
}

/// Says who it is, whether the client sends a line or not.
fn answer(stream: TcpStream) -> std::io::Result<()> {
    let answer = format!("{} {}\n", std::process::id(), stream.local_addr()?.port());
    (&stream).write_all(answer.as_bytes())?;
    // What is not read when a socket is closed resets the connection, and with it the answer.
    stream.shutdown(Shutdown::Write)?;
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    std::io::copy(&mut &stream, &mut std::io::sink()).map(drop)
}
