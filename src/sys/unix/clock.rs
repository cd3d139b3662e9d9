//! Time that does not jump.

use std::time::{Duration, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// Time since the machine's boot, sleep included: `CLOCK_BOOTTIME` of clock_gettime(2).
pub(crate) fn since_boot() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// Time since some moment, sleep left out: `CLOCK_MONOTONIC` of clock_gettime(2), which sd_notify(3)
/// counts by.
pub(crate) fn monotonic() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    Duration::new(seconds, u32::try_from(now.tv_nsec).unwrap_or(0))
}

/// The moment of the wall clock that was, or will be, at `moment` of [`since_boot`], as the clock
/// stands now.
pub(crate) fn wall_clock(moment: Duration) -> SystemTime {
    let (boot, wall) = (since_boot(), SystemTime::now());
    let then = match moment.checked_sub(boot) {
        Some(ahead) => wall.checked_add(ahead),
        None => wall.checked_sub(boot.saturating_sub(moment)),
    };
    then.unwrap_or(SystemTime::UNIX_EPOCH)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_and_what_will_be_is_told_by_the_wall_clock() {
        let hour = Duration::from_secs(3600);
        let boot = since_boot();
        let now = wall_clock(boot);
        let later = wall_clock(boot + hour).duration_since(now).unwrap();
        assert!(later.abs_diff(hour) < Duration::from_secs(5), "{later:?}");
        if let Some(before) = boot.checked_sub(Duration::from_secs(60)) {
            let ago = now.duration_since(wall_clock(before)).unwrap();
            assert!(
                ago.abs_diff(Duration::from_secs(60)) < Duration::from_secs(5),
                "{ago:?}"
            );
        }
    }
}
