//! The engine's clock: core takes the time as an argument, here it is read.

use std::time::{SystemTime, UNIX_EPOCH};

use stead_core::time::Time;

/// The present moment.
pub(crate) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}
