//! An HTTP/1.1 server on the standard library and the unmodified `listenfd` crate. It binds nothing: it answers
//! on the listeners it is handed, so the port is the pool's business and never this program's.
//!
//! ```sh
//! portpool exec api-server -- cargo run --example http_plain
//! curl http://localhost:9000/
//! ```

use std::error::Error;
use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{self, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use listenfd::ListenFd;

/// Threads a listener, which bounds the connections served at once; the others wait in the backlog.
const WORKERS: usize = 32;
/// A client silent for this long gives its thread back.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most bytes of a request that are read.
const MAX_HEAD: u64 = 8 * 1024;

static BUSY: AtomicUsize = AtomicUsize::new(0);

fn main() -> ExitCode {
    let Err(error) = run() else {
        return ExitCode::SUCCESS;
    };
    eprintln!("http_plain: {error}");
    ExitCode::FAILURE
}

fn run() -> Result<(), Box<dyn Error>> {
    let stopping = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&stopping))?;
    let mut handed = ListenFd::from_env();
    if handed.len() == 0 {
        return Err("no listener in LISTEN_FDS: run it under `portpool exec POOL --`".into());
    }
    for index in 0..handed.len() {
        let listener = handed.take_tcp_listener(index)?.map(Arc::new);
        for listener in std::iter::repeat_n(listener, WORKERS).flatten() {
            let stopping = Arc::clone(&stopping);
            thread::spawn(move || serve(&listener, &stopping));
        }
    }
    // A signal handler can do little more than set the flag.
    while !stopping.load(Ordering::SeqCst) {
        thread::sleep(Duration::from_millis(50));
    }
    // What is being answered has a second. The listener is left alone: shutdown() would hit the agent's copy too.
    for _ in 0..100 {
        if BUSY.load(Ordering::SeqCst) > 0 {
            thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(())
}

fn serve(listener: &TcpListener, stopping: &AtomicBool) {
    while !stopping.load(Ordering::SeqCst) {
        match listener.accept() {
            Ok((stream, _)) => {
                BUSY.fetch_add(1, Ordering::SeqCst);
                let _ = answer(&stream); // A client that goes away does no harm.
                BUSY.fetch_sub(1, Ordering::SeqCst);
            }
            Err(error) if error.kind() == ErrorKind::InvalidInput => {
                eprintln!("http_plain: the listener was taken away");
                process::exit(1);
            }
            Err(_) => thread::sleep(Duration::from_millis(100)), // Out of fds, say: do not spin.
        }
    }
}

fn answer(mut stream: &TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut lines = BufReader::new(stream.take(MAX_HEAD)).split(b'\n');
    let request = lines.next().transpose()?.unwrap_or_default();
    let mut complete = false;
    for line in lines {
        complete = line?.trim_ascii().is_empty();
        if complete {
            break;
        }
    }
    let (status, body) = match (complete, request.starts_with(b"GET ")) {
        (true, true) => ("200 OK", describe(stream)?),
        (true, false) => ("501 Not Implemented", r#"{"error":"only GET"}"#.into()),
        (false, _) => ("400 Bad Request", r#"{"error":"no request"}"#.into()),
    };
    let length = body.len();
    let head =
        format!("HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {length}");
    stream.write_all(format!("{head}\r\nConnection: close\r\n\r\n{body}").as_bytes())?;
    // To close with bytes unread would reset the connection, and with it the answer.
    stream.shutdown(Shutdown::Write)?;
    stream.read(&mut [0; 4096]).map(drop)
}

fn describe(stream: &TcpStream) -> io::Result<String> {
    // Ask the connection, not the listener: the agent may serve a port by a listener bound elsewhere.
    let port = stream.local_addr()?.port();
    let instance = std::env::var("PORTPOOL_INSTANCE").ok();
    let instance = instance.and_then(|number| number.parse::<u32>().ok());
    let instance = instance.map_or("null".into(), |number| number.to_string());
    let pid = process::id();
    Ok(format!(
        r#"{{"service":"http_plain","port":{port},"pid":{pid},"instance":{instance}}}"#
    ))
}
