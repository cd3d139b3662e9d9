//! Handoffs to a process that runs: on a connection that it has, and on a new one each.

use std::rc::Rc;

use portpool::Client;

use crate::caller::Caller;
use crate::floor::{self, Also, Server, timed};
use crate::map::Map;
use crate::measure::{Variant, take_turns};
use crate::place::{Place, on_one_processor};
use crate::slot::Slot;
use crate::stranger::Stranger;
use crate::{Effort, Outcome};

const CONFIGURATION: &str = "[pool.web]\nports = \"7000-7009\"\n";

const FLOOR: &str = "floor: one descriptor";
const FLOOR_CYCLE: &str = "floor: one descriptor, and a round trip to give it back";
const FLOOR_FRESH: &str = "floor: one listener that is made for it";
const FLOOR_FRESH_CYCLE: &str = "floor: one listener, and a round trip that ends it";
const FLOOR_CONNECT: &str = "floor: connect, one descriptor, close";
const FLOOR_CONNECT_FRESH: &str = "floor: connect, one listener that is made for it, close";

pub(crate) fn measure(place: &Place, effort: Effort) -> Outcome {
    let agent = place.agent("lease.sock", CONFIGURATION)?;
    let connected = Server::start(place.path("floor1"), Also::Nothing)?;
    let stream = connected.connect()?;
    // A server has one client at a time, so the connections each time need another.
    let connecting = Server::start(place.path("floor2"), Also::Nothing)?;
    let watching = Server::start(place.path("floor3"), Also::Watch)?;
    let listening = Server::start(place.path("floor4"), Also::Listen)?;
    let fresh = listening.connect()?;
    let connecting_fresh = Server::start(place.path("floor5"), Also::Listen)?;
    let client = Client::connect_to(&agent.socket)?;
    let stranger = Stranger::start(&agent.socket)?;
    let other = Caller::new(stranger.connect()?, "web", "");
    let slot = Slot::reserve(7100, Map::new().ok().map(Rc::new))?;

    let everybody = [
        &agent.process,
        &connected.process,
        &connecting.process,
        &watching.process,
        &listening.process,
        &connecting_fresh.process,
    ];
    let handoffs = |title: &str| {
        let mut variants = [
            Variant::new(FLOOR, || Ok(timed(|| floor::ask(&stream))?.0)),
            Variant::new(FLOOR_CYCLE, || {
                let cycle = || {
                    let fd = floor::ask(&stream)?;
                    floor::give_back(&stream)?;
                    Ok(fd)
                };
                Ok(timed(cycle)?.0)
            }),
            Variant::new("  the slot's own calls: park to listening", || {
                slot.time_to_listen()
            }),
            Variant::new("  the slot's own calls: shutdown and close", || {
                slot.time_to_end()
            }),
            Variant::new("  the slot's own calls: to listening and back", || {
                slot.time_of_a_cycle()
            }),
            Variant::new(FLOOR_FRESH, || {
                let (took, _fd) = timed(|| floor::ask(&fresh))?;
                floor::give_back(&fresh)?;
                Ok(took)
            })
            .beside(FLOOR),
            Variant::new(FLOOR_FRESH_CYCLE, || {
                let cycle = || {
                    let fd = floor::ask(&fresh)?;
                    floor::give_back(&fresh)?;
                    Ok(fd)
                };
                Ok(timed(cycle)?.0)
            })
            .beside(FLOOR_CYCLE),
            Variant::new("portpool: acquire, after another process", || {
                other.come_and_go()?;
                let (took, lease) = timed(|| Ok(client.acquire("web")?))?;
                lease.release()?;
                Ok(took)
            })
            .beside(FLOOR_FRESH),
            Variant::new(
                "portpool: acquire and release, after another process",
                || {
                    other.come_and_go()?;
                    Ok(timed(|| Ok(client.acquire("web")?.release()?))?.0)
                },
            )
            .beside(FLOOR_FRESH_CYCLE),
            // The listener that was given back a moment ago is still there, and steered to again.
            Variant::new("portpool: acquire again", || {
                let (took, lease) = timed(|| Ok(client.acquire("web")?))?;
                lease.release()?;
                Ok(took)
            })
            .beside(FLOOR),
            Variant::new("portpool: acquire and release again", || {
                Ok(timed(|| Ok(client.acquire("web")?.release()?))?.0)
            })
            .beside(FLOOR_CYCLE),
            Variant::new(FLOOR_CONNECT, || {
                let session = || floor::ask(&connecting.connect()?);
                Ok(timed(session)?.0)
            }),
            Variant::new(
                "  the same, and the server waits for the process's end",
                || {
                    let session = || floor::ask(&watching.connect()?);
                    Ok(timed(session)?.0)
                },
            )
            .beside(FLOOR_CONNECT),
            Variant::new(FLOOR_CONNECT_FRESH, || {
                let session = || floor::ask(&connecting_fresh.connect()?);
                Ok(timed(session)?.0)
            })
            .beside(FLOOR_CONNECT),
            Variant::new("portpool: connect and acquire, after another", || {
                other.come_and_go()?;
                let session = || Ok(Client::connect_to(&agent.socket)?.acquire("web")?);
                let (took, lease) = timed(session)?;
                lease.release()?;
                Ok(took)
            })
            .beside(FLOOR_CONNECT_FRESH),
        ];
        take_turns(title, effort.rounds, effort.handoffs, &mut variants)
    };
    handoffs("Handoffs to a running process")?;
    on_one_processor(&everybody, || {
        handoffs("The same with client and server on one processor")
    })
}
