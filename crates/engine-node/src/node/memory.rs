//! How much memory the machine has left, for all workers together.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use stead_core::fleet::MemorySeen;
use stead_core::time::Micros;

use crate::sandbox::memory_available;

/// How old an answer may be.
pub(super) const FRESH: Micros = Micros::from_secs(1);
/// Below this much, what is kept for convenience goes.
const LITTLE: u64 = 128 << 20;
/// As is below this share of the machine's memory: one in so many bytes.
const SHARE: u64 = 20;

/// What was last seen, and when.
pub(super) struct Memory {
    /// Bytes of the machine.
    total: u64,
    last: Mutex<Option<(Instant, Option<MemorySeen>)>>,
}

impl Memory {
    pub(super) fn new() -> Self {
        let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        Self { total: total(&text).unwrap_or_default(), last: Mutex::default() }
    }

    /// What there was at most a second ago. `None` where the machine does not tell.
    pub(super) fn seen(&self) -> Option<MemorySeen> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some((at, seen)) if at.elapsed() < FRESH.duration() => seen,
            _ => {
                let free = memory_available().ok();
                let seen = free.map(|free| MemorySeen { free, pressed: self.pressed(free) });
                *last = Some((Instant::now(), seen));
                seen
            }
        }
    }

    fn pressed(&self, free: u64) -> bool {
        free < LITTLE.max(self.total / SHARE)
    }
}

/// `MemTotal`, in bytes.
fn total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn little_is_a_share_of_much() {
        let of = |gigabytes: u64| Memory { total: gigabytes << 30, last: Mutex::default() };
        assert_eq!(total("MemTotal:       2048 kB\nMemFree: 3 kB\n"), Some(2 << 20));
        assert!(of(1).pressed(LITTLE - 1) && !of(1).pressed(LITTLE));
        assert!(of(20).pressed((1 << 30) - 1) && !of(20).pressed(1 << 30));
        assert!(Memory::new().seen().is_some_and(|seen| seen.free > 0));
    }
}
