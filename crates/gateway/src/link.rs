//! The line to the control plane.
//!
//! Guarantees: a change is acknowledged after it is in force; what still holds is said again
//! on each new connection, so that neither side must remember what the other has heard.
//! Without a control plane the gateway goes on with what it has, and keeps trying.
//!
//! Assumes the socket is writable by the control plane's user only: what comes over it is
//! believed.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use stead_core::routes::{ToGateway, ToServe};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Interval, MissedTickBehavior, interval, sleep};

use crate::backend::Hint;
use crate::gateway::{Known, Phase, Shared};
use crate::report::{report, watched};

/// Between two attempts to connect: from the first to the last.
const PACE: (Duration, Duration) = (Duration::from_millis(50), Duration::from_millis(200));
/// Between two reports.
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Keeps the line until the gateway ends.
pub(crate) async fn keep(shared: Arc<Shared>, socket: &Path, mut hints: UnboundedReceiver<Hint>) {
    let mut pace = PACE.0;
    loop {
        match UnixStream::connect(socket).await {
            Ok(stream) => {
                let began = Instant::now();
                match talk(&shared, stream, &mut hints).await {
                    Ok(()) => return,
                    Err(error) => tracing::info!(%error, "control plane is gone"),
                }
                if began.elapsed() > PACE.1 {
                    pace = PACE.0;
                }
            }
            Err(error) => tracing::debug!(%error, "control plane cannot be reached"),
        }
        shared.known.send_if_modified(|known| {
            let first = *known == Known::NotYet;
            if first {
                *known = Known::Unreachable;
            }
            first
        });
        tokio::select! {
            () = sleep(pace) => {}
            () = shared.reached(Phase::Cut) => return,
        }
        pace = (pace * 2).min(PACE.1);
        // Nobody could hear them; what still holds is said again.
        while hints.try_recv().is_ok() {}
    }
}

/// Talks until the gateway ends, or fails when the control plane does.
async fn talk(
    shared: &Shared,
    stream: UnixStream,
    hints: &mut UnboundedReceiver<Hint>,
) -> std::io::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut lines = BufReader::new(read).lines();
    let mut tick = paced(REPORT_EVERY);
    let mut quick: Option<Interval> = None;
    let hello = ToServe::Hello {
        pid: std::process::id(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        generation: shared.routes.generation(),
    };
    say(&mut write, &hello).await?;
    let mut greeted = false;
    loop {
        tokio::select! {
            line = lines.next_line() => {
                let line = line?.ok_or(std::io::ErrorKind::UnexpectedEof)?;
                if let Some(asked) = hear(shared, &line).await {
                    say(&mut write, &ToServe::Report(report(shared))).await?;
                    say(&mut write, &ToServe::Told { asked }).await?;
                    continue;
                }
                say(&mut write, &ToServe::Ack { generation: shared.routes.generation() }).await?;
                let every = shared.routes.report_every().filter(|every| *every < REPORT_EVERY);
                if every != quick.as_ref().map(Interval::period) {
                    quick = every.map(paced);
                }
                if !greeted {
                    greeted = true;
                    shared.known.send_replace(Known::Acknowledged);
                    say_again(shared, &mut write).await?;
                }
            }
            Some(hint) = hints.recv(), if greeted => {
                if let Some(message) = message(shared, hint) {
                    say(&mut write, &message).await?;
                }
            }
            _ = tick.tick() => say(&mut write, &ToServe::Report(report(shared))).await?,
            () = next_tick(&mut quick) => {
                say(&mut write, &ToServe::Report(watched(shared))).await?;
            }
            () = shared.reached(Phase::Cut) => {
                // The last word: everything that was in flight has ended.
                return say(&mut write, &ToServe::Report(report(shared))).await;
            }
        }
    }
}

fn paced(every: Duration) -> Interval {
    let mut tick = interval(every);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    tick
}

/// Never, when there is none.
async fn next_tick(interval: &mut Option<Interval>) {
    match interval {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}

/// Does what the control plane says. Gives its question, if it is one.
async fn hear(shared: &Shared, line: &str) -> Option<u64> {
    let change = match serde_json::from_str::<ToGateway>(line) {
        Ok(ToGateway::Tell { asked }) => return Some(asked),
        Ok(message) => message.into_change()?,
        // A newer control plane may say what we do not know; we go on with what we have.
        Err(error) => {
            tracing::warn!(%error, "message of the control plane not understood");
            return None;
        }
    };
    let _prepared = shared.routes.prepare(&change).await;
    match shared.routes.apply(change) {
        Ok(generation) => tracing::debug!(%generation, "routes applied"),
        Err(error) => tracing::warn!(%error, "routes not applied"),
    }
    None
}

/// What a hint has come to.
fn message(shared: &Shared, hint: Hint) -> Option<ToServe> {
    match hint {
        Hint::Drained(container) => {
            let generation = shared.routes.confirm_drained(&container)?;
            Some(ToServe::Drained { container, generation })
        }
        Hint::Parked(app) => Some(ToServe::Parked { app }),
    }
}

/// What still holds.
async fn say_again(shared: &Shared, write: &mut OwnedWriteHalf) -> std::io::Result<()> {
    let (generation, drained) = shared.routes.drained();
    for container in drained {
        say(write, &ToServe::Drained { container, generation }).await?;
    }
    for app in shared.routes.apps() {
        if app.in_gap() {
            say(write, &ToServe::Parked { app: app.key.clone() }).await?;
        }
    }
    Ok(())
}

async fn say(write: &mut OwnedWriteHalf, message: &ToServe) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    write.write_all(&line).await
}
