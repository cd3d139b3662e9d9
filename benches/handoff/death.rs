//! The death of a holder: from SIGKILL to the answer of who waited for its slot.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};

use crate::caller::Caller;
use crate::crowd::{Crowd, Duty};
use crate::measure::{Variant, take_turns};
use crate::place::{Place, pools};
use crate::stranger::Stranger;
use crate::{Effort, Outcome};

const KERNEL: &str = "the kernel's own part: until its pidfd is readable";
const FLOOR: &str = "floor: until a new listener has come to who waited";

pub(crate) fn measure(place: &Place, effort: Effort) -> Outcome {
    let agent = place.agent("death.sock", &pools(2))?;
    let floor = Crowd::start(place.path("death"), Duty::Listen)?;
    let mut variants = [
        Variant::new(KERNEL, || kernels_part(floor.socket())),
        death_at(floor.socket(), FLOOR)?.beside(KERNEL),
        death_at(
            &agent.socket,
            "portpool: until the next holder has its answer",
        )?
        .beside(FLOOR),
    ];
    take_turns(
        "SIGKILL of a holder",
        effort.rounds,
        effort.processes,
        &mut variants,
    )
}

fn kernels_part(socket: &Path) -> Outcome<Duration> {
    let mut holder = Stranger::start(socket)?;
    drop(holder.connect()?);
    let process = holder.process()?;
    let begun = Instant::now();
    holder.kill()?;
    poll(&mut [PollFd::new(&process, PollFlags::IN)], None)?;
    Ok(begun.elapsed())
}

fn death_at<'a>(socket: &'a Path, name: &'static str) -> Outcome<Variant<'a>> {
    let waiter = Caller::new(UnixStream::connect(socket)?, "p00", r#","wait":-1"#);
    let other = Caller::new(UnixStream::connect(socket)?, "p01", "");
    Ok(Variant::new(name, move || {
        let mut holder = Stranger::start(socket)?;
        let held = Caller::new(holder.connect()?, "p00", "").acquire()?;
        waiter.ask()?;
        // Once this is answered the call before it waits.
        other.come_and_go()?;
        let begun = Instant::now();
        holder.kill()?;
        let (lease, listener) = waiter.granted()?;
        let took = begun.elapsed();
        waiter.release(lease)?;
        drop((held, listener));
        Ok(took)
    }))
}
