//! What a client of a port sees: it connects, sends a line and is told who serves; and clients that do
//! it all the time, and keep count.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{BufRead, BufReader, Error, ErrorKind, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::SockRef;

/// How long an exchange may take; longer, and it has failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// How long a datagram's answer may take.
const DATAGRAM_PATIENCE: Duration = Duration::from_secs(2);

/// Why an exchange failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// Nobody listens.
    Refused,
    /// The connection ended without an answer.
    Reset,
    /// No answer came.
    TimedOut,
    /// An answer that is none.
    Wrong,
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        match error.kind() {
            ErrorKind::ConnectionRefused => Failure::Refused,
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Failure::TimedOut,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected => {
                Failure::Reset
            }
            kind => panic!("no failure of a server's: {kind:?}: {error}"),
        }
    }
}

/// Who answers there, over TCP.
pub(crate) fn ask(address: SocketAddr) -> Result<u32, Failure> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    // Closed at once and on both sides: no thousands of connections in TIME_WAIT.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    stream.write_all(b"who?\n")?;
    let mut answer = String::new();
    BufReader::new(&stream).read_line(&mut answer)?;
    match answer.ends_with('\n') {
        true => understand(&answer, address.port()),
        false => Err(Failure::Reset),
    }
}

/// Who answers there, over UDP.
pub(crate) fn ask_by_datagram(address: SocketAddr) -> Result<u32, Failure> {
    let any: std::net::IpAddr = match address {
        SocketAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.set_read_timeout(Some(DATAGRAM_PATIENCE))?;
    socket.send_to(b"who?\n", address)?;
    let mut answer = [0; 64];
    let length = socket.recv(&mut answer)?;
    understand(&String::from_utf8_lossy(&answer[..length]), address.port())
}

/// The pid in `PID PORT`, if the port is the one that was asked.
fn understand(answer: &str, port: u16) -> Result<u32, Failure> {
    let (pid, said) = answer.trim_end().split_once(' ').ok_or(Failure::Wrong)?;
    match pid.parse() {
        Ok(pid) if said == port.to_string() => Ok(pid),
        _ => Err(Failure::Wrong),
    }
}

/// What came of many exchanges.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tally {
    pub(crate) exchanges: u64,
    pub(crate) refused: u64,
    pub(crate) reset: u64,
    pub(crate) timed_out: u64,
    pub(crate) wrong: u64,
    /// The longest that an exchange took which did not fail.
    pub(crate) worst: Duration,
    /// Who answered.
    pub(crate) pids: BTreeSet<u32>,
}

impl Tally {
    pub(crate) fn failed(&self) -> u64 {
        self.refused + self.reset + self.timed_out + self.wrong
    }

    fn count(&mut self, outcome: Result<u32, Failure>, took: Duration) {
        self.exchanges += 1;
        match outcome {
            Ok(pid) => {
                self.worst = self.worst.max(took);
                self.pids.insert(pid);
            }
            Err(Failure::Refused) => self.refused += 1,
            Err(Failure::Reset) => self.reset += 1,
            Err(Failure::TimedOut) => self.timed_out += 1,
            Err(Failure::Wrong) => self.wrong += 1,
        }
    }

    fn add(mut self, other: Tally) -> Tally {
        self.exchanges += other.exchanges;
        self.refused += other.refused;
        self.reset += other.reset;
        self.timed_out += other.timed_out;
        self.wrong += other.wrong;
        self.worst = self.worst.max(other.worst);
        self.pids.extend(other.pids);
        self
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(
            f,
            "{} of {} exchanges failed ({} refused, {} reset, {} timed out, {} wrong), {:?} at worst",
            self.failed(),
            self.exchanges,
            self.refused,
            self.reset,
            self.timed_out,
            self.wrong,
            self.worst
        )
    }
}

/// Clients that go on until they are told to stop.
pub(crate) struct Clients {
    is_over: Arc<AtomicBool>,
    done: Arc<AtomicU64>,
    threads: Vec<JoinHandle<Tally>>,
}

impl Clients {
    /// So many at an address, on the host of the calling thread.
    pub(crate) fn start(count: usize, address: SocketAddr) -> Clients {
        let is_over = Arc::new(AtomicBool::new(false));
        let done = Arc::new(AtomicU64::new(0));
        let client = |_| {
            let (is_over, done) = (Arc::clone(&is_over), Arc::clone(&done));
            std::thread::spawn(move || {
                let mut tally = Tally::default();
                while !is_over.load(Ordering::Relaxed) {
                    let begun = Instant::now();
                    let outcome = ask(address);
                    tally.count(outcome, begun.elapsed());
                    done.fetch_add(1, Ordering::Relaxed);
                }
                tally
            })
        };
        Clients {
            threads: (0..count).map(client).collect(),
            is_over,
            done,
        }
    }

    /// How many exchanges have ended, one way or the other.
    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    pub(crate) fn stop(self) -> Tally {
        self.is_over.store(true, Ordering::Relaxed);
        let tallies = self.threads.into_iter().map(JoinHandle::join);
        tallies
            .map(|tally| tally.expect("a client's thread"))
            .fold(Tally::default(), Tally::add)
    }
}
