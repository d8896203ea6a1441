//! The wall clock. The only place of this crate that reads it.

use std::time::{SystemTime, UNIX_EPOCH};

use stead_core::time::{Micros, Time};

/// Now. A clock before 1970 counts as 1970.
pub(crate) fn now() -> Time {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Time(Micros::from(since).0)
}
