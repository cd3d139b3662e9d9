//! What steering costs everybody else: connections and datagrams to ports that are not ours, with
//! an agent that steers, with one that does not, and without any.
//!
//! The kernel runs the program for each connection's first packet and for each datagram to a socket
//! that is not connected. While no program of that kind is attached anywhere on the machine it does
//! not even look for one, so the agents come and go from round to round.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use portpool::Client;
use socket2::SockRef;

use crate::map::LeastProgram;
use crate::place::{Agent, Place, on_one_processor};
use crate::rates::{Rates, print};
use crate::{Effort, Outcome};

const CONFIGURATION: &str = "[pool.web]\nports = \"7000-7099\"\n";

const NONE: &str = "connect, accept and close, no agent";
const NONE_UDP: &str = "a datagram sent and received, no agent";

/// What is on the host beside the bystander.
#[derive(Debug, Clone, Copy)]
enum Beside {
    Nobody,
    /// No agent, but a program that does nothing: what is beyond this is the agent's.
    LeastProgram,
    Steering,
    /// To see what an agent costs that attaches nothing: nothing, or the figures are worth nothing.
    NotSteering,
}

pub(crate) fn measure(place: &Place, effort: Effort) -> Outcome {
    if !steers(place)? {
        println!("\nSKIPPED: what steering costs bystanders; it needs CAP_BPF and CAP_NET_ADMIN");
        return Ok(());
    }
    let bystander = Bystander::new()?;
    let mut connections = [
        Rates::new(NONE),
        Rates::new("  a program that does nothing").beside(NONE),
        Rates::new("  an agent that steers 100 other ports").beside(NONE),
        Rates::new("  an agent that does not steer").beside(NONE),
    ];
    let mut datagrams = [
        Rates::new(NONE_UDP),
        Rates::new("  a program that does nothing").beside(NONE_UDP),
        Rates::new("  an agent that steers 100 other ports").beside(NONE_UDP),
        Rates::new("  an agent that does not steer").beside(NONE_UDP),
    ];
    let mut order = [
        (0, Beside::Nobody),
        (1, Beside::LeastProgram),
        (2, Beside::Steering),
        (3, Beside::NotSteering),
    ];
    on_one_processor(&[], || {
        for _ in 0..effort.short_rounds {
            for (line, beside) in order {
                let _company = beside.start(place)?;
                bystander.connections(effort.short_turn / 4)?;
                connections[line]
                    .rounds
                    .push(bystander.connections(effort.short_turn)?);
                bystander.datagrams(effort.short_turn / 4)?;
                datagrams[line]
                    .rounds
                    .push(bystander.datagrams(effort.short_turn)?);
            }
            // What comes first, and what after whom, is another the next time.
            order.reverse();
            order.rotate_left(1);
        }
        Ok(())
    })?;
    print("Bystanders: TCP on a port that is not ours", &connections);
    print("Bystanders: UDP on a port that is not ours", &datagrams);
    Ok(())
}

fn steers(place: &Place) -> Outcome<bool> {
    let agent = place.agent("steers.sock", CONFIGURATION)?;
    let status = Client::connect_to(&agent.socket)?.status()?;
    Ok(status.level == "enforced")
}

/// What ends with the turn.
type Company = (Option<LeastProgram>, Option<Agent>);

impl Beside {
    fn start(self, place: &Place) -> Outcome<Company> {
        let agent = |arguments| place.agent_with("bystanders.sock", CONFIGURATION, arguments);
        Ok(match self {
            Beside::Nobody => (None, None),
            Beside::LeastProgram => (Some(LeastProgram::attach()?), None),
            Beside::Steering => (None, Some(agent(&[])?)),
            Beside::NotSteering => (None, Some(agent(&["--no-steering"])?)),
        })
    }
}

/// A program on ports that are in no pool, both ends of it.
#[derive(Debug)]
struct Bystander {
    listener: TcpListener,
    address: SocketAddr,
    receiver: UdpSocket,
    sender: UdpSocket,
}

impl Bystander {
    fn new() -> Outcome<Bystander> {
        let listener = TcpListener::bind("127.0.0.1:20000")?;
        let address = listener.local_addr()?;
        // Only the sender is connected: a connected receiver is found without the program.
        let receiver = UdpSocket::bind("127.0.0.1:20000")?;
        let sender = UdpSocket::bind("127.0.0.1:0")?;
        sender.connect(receiver.local_addr()?)?;
        Ok(Bystander {
            listener,
            address,
            receiver,
            sender,
        })
    }

    /// Connections a second.
    fn connections(&self, time: Duration) -> Outcome<f64> {
        rate(time, || {
            let client = TcpStream::connect(self.address)?;
            let (server, _) = self.listener.accept()?;
            // A reset leaves nothing in TIME_WAIT that the next ones would have to look past.
            SockRef::from(&client).set_linger(Some(Duration::ZERO))?;
            drop(client);
            drop(server);
            Ok(())
        })
    }

    /// Datagrams a second.
    fn datagrams(&self, time: Duration) -> Outcome<f64> {
        let mut buffer = [0; 64];
        rate(time, || {
            self.sender.send(b"datagram")?;
            self.receiver.recv(&mut buffer)?;
            Ok(())
        })
    }
}

/// How often a second the work is done.
fn rate(time: Duration, mut work: impl FnMut() -> Outcome) -> Outcome<f64> {
    let begun = Instant::now();
    let mut done = 0u32;
    loop {
        for _ in 0..32 {
            work()?;
        }
        done += 32;
        let elapsed = begun.elapsed();
        if elapsed >= time {
            return Ok(f64::from(done) / elapsed.as_secs_f64());
        }
    }
}
