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
use crate::ledger::{Outcome, ReleaseCounters};
use crate::site::Edition;
use crate::upload::UploadWatch;
use crate::upstream::Line;
use stead_core::ids::ReleaseNo;
use stead_core::routes::FailReason;

/// A request.
pub(crate) struct Exchange {
    shared: Arc<Shared>,
    app: Arc<App>,
    record: Record,
    arrived: Instant,
    upload: Option<Arc<UploadWatch>>,
    claim: Option<Claim>,
    /// The Release of a site that answers it.
    site: Option<(ReleaseNo, Arc<ReleaseCounters>)>,
    /// When it was given to the Backend of its claim, or to the site.
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
            site: None,
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
        self.waited(parked, tries);
        self.claim.insert(claim)
    }

    /// It has waited so long for whoever answers it, after so many tries.
    pub(crate) fn waited(&mut self, parked: Duration, tries: u32) {
        self.record.parked = parked;
        self.record.tries = tries;
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

    /// A Release of a site answers it.
    pub(crate) fn served_by(&mut self, edition: &Edition) {
        edition.counters.sent(!self.record.parked.is_zero());
        self.site = Some((edition.release, edition.counters.clone()));
        self.sent = Some(Instant::now());
    }

    /// The counters of whoever it was given to.
    fn counters(&self) -> Option<&ReleaseCounters> {
        self.sent?;
        match (&self.claim, &self.site) {
            (Some(claim), _) => Some(&claim.backend().counters),
            (None, Some((_, counters))) => Some(counters),
            (None, None) => None,
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
        if let (Some(counters), Some(sent)) = (self.counters(), self.sent) {
            counters.answered(status, sent.elapsed());
        }
    }

    /// The same, of one that a site answers.
    pub(crate) fn with_status(mut self: Box<Self>, status: StatusCode) -> Box<Self> {
        self.answered(status);
        self
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
        self.app.counters.ended(self.counters(), outcome);
        self.shared.log.write(|| {
            let mut record = self.record.clone();
            record.app = Some(self.app.key.clone());
            record.outcome = Some(outcome);
            record.served_by = match (&self.claim, &self.site) {
                _ if self.sent.is_none() => None,
                (Some(claim), _) => Some(ServedBy::new(claim.backend())),
                (None, site) => site.as_ref().map(|(release, _)| ServedBy::site(*release)),
            };
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
