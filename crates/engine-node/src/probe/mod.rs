//! Probes: is a running Container started, ready, alive?
//!
//! A start is watched closely, at first every millisecond, because nothing else tells when
//! an App begins to listen; once it is ready, the probes' own periods apply. What follows
//! from an answer is decided by `core`.

mod check;

use std::time::Duration;

use stead_core::fleet::Health;
use stead_core::manifest::{self, Check};

pub(crate) use check::Target;

/// The first pause between two attempts of a start. It grows by a quarter each time, up to
/// the probe's period or [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(1);
/// The longest pause between two attempts of a start where the probe names none.
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// A program started for each attempt costs more than a connection.
const FIRST_EXEC_PAUSE: Duration = Duration::from_millis(20);
/// How long one attempt of a start may take.
const START_ATTEMPT: Duration = Duration::from_secs(2);

/// What is watched.
pub(crate) struct Watched {
    /// The Container.
    pub(crate) target: Target,
    /// What to ask.
    pub(crate) health: manifest::Health,
}

impl Watched {
    /// What decides that the start is over: the startup probe, else what decides that it is
    /// ready.
    fn start_check(&self) -> Option<(Check, Duration)> {
        match &self.health.startup {
            Some(startup) => Some((startup.check.clone(), startup.period.duration())),
            None => self.ready_check(),
        }
    }

    /// The readiness probe, else a connection to the port. `None`: that it runs is all there is
    /// to know.
    fn ready_check(&self) -> Option<(Check, Duration)> {
        if let Some(readiness) = &self.health.readiness {
            return Some((readiness.check.clone(), LONGEST_PAUSE));
        }
        let port = std::num::NonZeroU16::new(self.target.port?)?;
        Some((Check::Tcp { port: manifest::Port(port) }, LONGEST_PAUSE))
    }
}

/// Watches a Container until the task is dropped. `tell` gets each change of health, with
/// what the probe saw. One that is known to be unready is over its start, and is asked for its
/// readiness as closely as a start.
pub(crate) async fn watch(watched: Watched, known: Health, tell: impl Fn(Health, String)) {
    let mut ready = known == Health::Ready;
    if known == Health::Starting {
        success(&watched, watched.start_check()).await;
        let refusal = unready_at_start(&watched).await;
        ready = refusal.is_none();
        match refusal {
            None => tell(Health::Ready, String::new()),
            Some(why) => tell(Health::Unready, why),
        }
    }
    tokio::join!(readiness(&watched, ready, &tell), liveness(&watched, &tell));
}

/// Waits until a Container that was just started is ready.
pub(crate) async fn started(watched: &Watched) {
    success(watched, watched.start_check()).await;
}

/// Returns at the first success.
async fn success(watched: &Watched, check: Option<(Check, Duration)>) {
    let Some((check, longest)) = check else { return };
    let target = &watched.target;
    let mut pause = match check {
        Check::Exec { .. } => FIRST_EXEC_PAUSE,
        Check::Http { .. } | Check::Tcp { .. } => FIRST_PAUSE,
    };
    while target.ask(&check, START_ATTEMPT).await.is_err() {
        // Paces a retry.
        tokio::time::sleep(pause).await;
        pause = (pause * 5 / 4).min(longest);
    }
}

/// What a readiness probe says once a startup probe of its own has succeeded.
async fn unready_at_start(watched: &Watched) -> Option<String> {
    let (Some(_), Some(probe)) = (&watched.health.startup, &watched.health.readiness) else {
        return None;
    };
    watched.target.ask(&probe.check, probe.timeout.duration()).await.err()
}

async fn readiness(watched: &Watched, mut ready: bool, tell: &impl Fn(Health, String)) {
    if !ready {
        success(watched, watched.ready_check()).await;
        ready = true;
        tell(Health::Ready, String::new());
    }
    let Some(probe) = &watched.health.readiness else { return };
    let mut failures = 0;
    let mut ticks = ticks(probe.period.duration());
    loop {
        ticks.tick().await;
        match watched.target.ask(&probe.check, probe.timeout.duration()).await {
            Ok(()) => {
                failures = 0;
                if !ready {
                    ready = true;
                    tell(Health::Ready, String::new());
                }
            }
            Err(why) => {
                failures += 1;
                if ready && failures >= probe.failures {
                    ready = false;
                    tell(Health::Unready, why);
                }
            }
        }
    }
}

/// Ends once the probe has given up: what happens to the Container then is final.
async fn liveness(watched: &Watched, tell: &impl Fn(Health, String)) {
    let Some(probe) = &watched.health.liveness else { return };
    let mut failures = 0;
    let mut ticks = ticks(probe.period.duration());
    loop {
        ticks.tick().await;
        match watched.target.ask(&probe.check, probe.timeout.duration()).await {
            Ok(()) => failures = 0,
            Err(why) => {
                failures += 1;
                if failures >= probe.failures {
                    return tell(Health::Dead, why);
                }
            }
        }
    }
}

/// Ticks whose first is one period away and that do not pile up behind a slow answer.
fn ticks(period: Duration) -> tokio::time::Interval {
    let period = period.max(FIRST_PAUSE);
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + period, period);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    ticks
}
