//! A change of holder: a successor takes a slot over while its holder lives.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use crate::caller::Caller;
use crate::crowd::{Crowd, Duty};
use crate::floor::timed;
use crate::map::Map;
use crate::measure::{Variant, take_turns};
use crate::place::{Place, pools};
use crate::slot::Slot;
use crate::stranger::Stranger;
use crate::{Effort, Outcome};

const FLOOR: &str = "floor: a listener beside another's, and steered to";
const FLOOR_SERVED: &str = "floor: the same, and a connection to it";
const FLOOR_READY: &str = "floor: a round trip, and the map entry";

pub(crate) fn measure(place: &Place, effort: Effort) -> Outcome {
    let agent = place.agent("change.sock", &pools(3))?;
    let floor = Crowd::start(place.path("change"), Duty::Replace)?;
    let strangers = (
        Stranger::start(&agent.socket)?,
        Stranger::start(floor.socket())?,
    );
    let now = |at: &Path, stranger: &Stranger, pool| {
        Rivals::new(at, stranger, pool, r#","takeover":"now""#)
    };
    let mut at_agent = now(&agent.socket, &strangers.0, "p00")?;
    let mut at_floor = now(floor.socket(), &strangers.1, "p00")?;
    let mut serving = now(&agent.socket, &strangers.0, "p01")?;
    let mut serving_floor = now(floor.socket(), &strangers.1, "p01")?;
    let ready = r#","takeover":"ready""#;
    let mut preparing = Rivals::new(&agent.socket, &strangers.0, "p02", ready)?;
    let mut preparing_floor = Rivals::new(floor.socket(), &strangers.1, "p02", ready)?;
    let bystander = TcpListener::bind("127.0.0.1:0")?;
    let slot = Slot::reserve(7100, Map::new().ok().map(Rc::new))?;
    let listener = slot.listen()?;

    let mut variants = [
        Variant::new("the map entry alone", || {
            Ok(timed(|| slot.steer(&listener))?.0)
        }),
        Variant::new(FLOOR_READY, || preparing_floor.change_when_ready()),
        Variant::new("portpool: Ready, until its answer", || {
            preparing.change_when_ready()
        })
        .beside(FLOOR_READY),
        Variant::new(FLOOR, || at_floor.change()),
        Variant::new("portpool: acquire with takeover", || at_agent.change()).beside(FLOOR),
        // Nothing is attached that would bring the floor's own listener a connection.
        Variant::new(FLOOR_SERVED, || {
            let begun = Instant::now();
            serving_floor.change()?;
            serve_one(&bystander, bystander.local_addr()?)?;
            Ok(begun.elapsed())
        }),
        Variant::new(
            "portpool: the same, to the successor's first connection",
            || {
                let begun = Instant::now();
                serving.change()?;
                let successor = TcpListener::from(serving.listener.try_clone()?);
                serve_one(&successor, successor.local_addr()?)?;
                Ok(begun.elapsed())
            },
        )
        .beside(FLOOR_SERVED),
    ];
    take_turns(
        "A change of holder",
        effort.rounds,
        effort.handoffs,
        &mut variants,
    )
}

fn serve_one(listener: &TcpListener, address: SocketAddr) -> Outcome {
    let client = TcpStream::connect(address)?;
    let (server, _) = listener.accept()?;
    // The client first, so that what is in TIME_WAIT is at its port.
    drop(client);
    drop(server);
    Ok(())
}

/// Two lives of one service, who take a slot from one another.
struct Rivals {
    callers: [Caller; 2],
    /// Whose turn it is.
    next: usize,
    /// The latest one's.
    listener: OwnedFd,
}

impl Rivals {
    fn new(socket: &Path, stranger: &Stranger, pool: &str, takeover: &str) -> Outcome<Rivals> {
        let connections = [UnixStream::connect(socket)?, stranger.connect()?];
        let more = format!(r#"{takeover},"program":"service""#);
        let callers = connections.map(|stream| Caller::new(stream, pool, &more));
        let (_, listener) = callers[0].acquire()?;
        Ok(Rivals {
            callers,
            next: 1,
            listener,
        })
    }

    /// The other one takes the slot.
    fn change(&mut self) -> Outcome<Duration> {
        let (took, (_, listener)) = timed(|| self.callers[self.next].acquire())?;
        self.next = 1 - self.next;
        self.listener = listener;
        Ok(took)
    }

    /// The other one prepares to, and takes it with a word.
    fn change_when_ready(&mut self) -> Outcome<Duration> {
        let (lease, listener) = self.callers[self.next].acquire()?;
        let (took, ()) = timed(|| self.callers[self.next].ready(lease))?;
        self.next = 1 - self.next;
        self.listener = listener;
        Ok(took)
    }
}
