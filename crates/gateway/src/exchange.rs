//! One request from its arrival to its end, and what is to be remembered of it.
//!
//! Promises: however it ends, also by being dropped, it is counted once and logged once, and
//! only then its claim is given back: a Backend that is reported drained has been counted.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;

use crate::access_log::{Record, ServedBy};
use crate::app::App;
use crate::backend::Claim;
use crate::config::Limits;
use crate::gateway::{Phase, Shared};
use crate::ledger::Outcome;
use crate::upload::UploadWatch;
use crate::upstream::Line;
use stead_core::routes::FailReason;

/// A request.
pub(crate) struct Exchange {
    shared: Arc<Shared>,
    app: Arc<App>,
    record: Record,
    arrived: Instant,
    upload: Option<Arc<UploadWatch>>,
    claim: Option<Claim>,
    /// When it was given to the Backend of its claim.
    sent: Option<Instant>,
    settled: bool,
}

impl Exchange {
    /// A request for `app` arrived.
    pub(crate) fn arrived(
        shared: Arc<Shared>,
        app: Arc<App>,
        record: Record,
        arrived: Instant,
        upload: Option<Arc<UploadWatch>>,
    ) -> Box<Self> {
        app.counters.arrived();
        Box::new(Self {
            shared,
            app,
            record,
            arrived,
            upload,
            claim: None,
            sent: None,
            settled: false,
        })
    }

    pub(crate) fn app(&self) -> &Arc<App> {
        &self.app
    }

    /// The path that was asked for.
    pub(crate) fn path(&self) -> &str {
        self.record.uri.path()
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.shared.limits
    }

    pub(crate) fn upload(&self) -> Option<&UploadWatch> {
        self.upload.as_deref()
    }

    /// It has a claim, after `parked` and `tries`.
    pub(crate) fn claimed(&mut self, claim: Claim, parked: Duration, tries: u32) -> &Claim {
        self.record.parked = parked;
        self.record.tries = tries;
        self.claim.insert(claim)
    }

    /// The Backend did not take it: the claim is given back.
    pub(crate) fn unclaim(&mut self) {
        self.claim = None;
    }

    /// It is given to the Backend of its claim.
    pub(crate) fn sending(&mut self) {
        if let Some(claim) = &self.claim {
            claim.backend().counters.sent(!self.record.parked.is_zero());
            self.sent = Some(Instant::now());
        }
    }

    /// It came back unsent: the claim is given back.
    pub(crate) fn moved(&mut self) {
        if let Some(claim) = self.claim.take()
            && self.sent.take().is_some()
        {
            claim.backend().counters.moved();
        }
    }

    /// The App answered.
    pub(crate) fn answered(&mut self, status: StatusCode) {
        self.record.status = status.as_u16();
        self.record.answered = Some(self.arrived.elapsed());
        if let (Some(claim), Some(sent)) = (&self.claim, self.sent) {
            claim.backend().counters.answered(status, sent.elapsed());
        }
    }

    /// Bytes of the response were passed on.
    pub(crate) fn passed(&mut self, bytes: usize) {
        self.record.bytes_out += bytes as u64;
    }

    /// It ended; `line` carried it and may carry the next one.
    pub(crate) fn end(mut self: Box<Self>, outcome: Outcome, line: Option<Line>) {
        if let (Some(line), Some(claim)) = (line, &self.claim) {
            claim.keep(line);
        }
        self.settle(outcome);
    }

    /// It failed, and the client is answered `status`.
    pub(crate) fn fail(mut self: Box<Self>, reason: FailReason, status: StatusCode) {
        self.record.status = status.as_u16();
        self.settle(Outcome::Failed(reason));
    }

    fn settle(&mut self, outcome: Outcome) {
        self.settled = true;
        let release = match (&self.claim, self.sent) {
            (Some(claim), Some(_)) => Some(claim.backend()),
            _ => None,
        };
        self.app.counters.ended(release.map(|backend| &*backend.counters), outcome);
        self.shared.log.write(|| {
            let mut record = self.record.clone();
            record.app = Some(self.app.key.clone());
            record.outcome = Some(outcome);
            record.served_by = release.map(|backend| ServedBy::new(backend));
            record.bytes_in = self.upload.as_ref().map_or(0, |upload| upload.bytes());
            record.total = self.arrived.elapsed();
            record
        });
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.settled {
            // Dropped in the middle: the client's connection is gone, unless it is us who end.
            let outcome = if self.shared.has_reached(Phase::Cut) {
                Outcome::Failed(FailReason::Cut)
            } else {
                Outcome::ClientAborted
            };
            self.settle(outcome);
        }
    }
}
