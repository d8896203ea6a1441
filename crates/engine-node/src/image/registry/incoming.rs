//! An answer whose body is still arriving.
//!
//! Promises: a body that arrives drop by drop is found out, as one that stops is. Does not
//! know what the body is.

use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::Response;

/// At least this much of a body arrives within the time in which one that stops is given up,
/// unless it ends before. Bytes.
const SLOWEST: u64 = 16 << 10;

/// A response being read.
pub(super) struct Incoming {
    pub(super) response: Response,
    /// How long it was waited for, and what came of that, since [`SLOWEST`] bytes had arrived.
    waited: Duration,
    arrived: u64,
}

/// Nothing, or next to nothing, arrived in time.
pub(super) struct TooSlow;

impl Incoming {
    pub(super) fn new(response: Response) -> Self {
        Self { response, waited: Duration::ZERO, arrived: 0 }
    }

    /// The next part, `None` at the end. Time is counted only while this waits, so that a slow
    /// reader is not blamed on the sender.
    pub(super) async fn next(
        &mut self,
        patience: Duration,
    ) -> Result<reqwest::Result<Option<Bytes>>, TooSlow> {
        let began = Instant::now();
        let left = patience.saturating_sub(self.waited);
        let next = tokio::time::timeout(left, self.response.chunk()).await;
        let next = next.map_err(|_| TooSlow)?;
        self.waited += began.elapsed();
        if let Ok(Some(part)) = &next {
            self.arrived += part.len() as u64;
            if self.arrived >= SLOWEST {
                (self.waited, self.arrived) = (Duration::ZERO, 0);
            }
        }
        Ok(next)
    }
}
