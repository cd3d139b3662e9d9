//! Time that does not jump.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// Time since the machine's boot, sleep included: `CLOCK_BOOTTIME` of clock_gettime(2).
pub(crate) fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The moment of the wall clock that was at `moment` of [`since_boot`], as the clock stands now.
pub(crate) fn wall_clock(moment: Duration) -> SystemTime {
    let ago = since_boot().saturating_sub(moment);
    SystemTime::now()
        .checked_sub(ago)
        .unwrap_or(SystemTime::UNIX_EPOCH)
}
