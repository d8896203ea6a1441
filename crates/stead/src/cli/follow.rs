//! Follows a Rollout to its end, and says how it ended.
//!
//! What is asked for is committed before it is followed, so whatever happens here (Ctrl-C, a
//! timeout, a restart of `serve`) the Rollout goes on.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use stead_core::api::{Accepted, AppView, Bar, Progress};
use stead_core::engine::LogLine;
use stead_core::error::{Code, UserError};
use stead_core::ids::{ContainerId, ReleaseNo, RolloutNo};
use stead_core::manifest::Span;
use stead_core::name::AppKey;
use stead_core::rollout::{Phase, Rollout};
use stead_core::time::Micros;
use tokio::time::Instant;

use super::{Context, app_path, look};
use crate::failure::Quiet;
use crate::output::{human, waterfall};
use crate::progress::View;

/// How long a platform may be away before following it is given up.
const AWAY: Duration = Duration::from_secs(60);
/// Between two attempts to reach it.
const PACE: Duration = Duration::from_millis(200);
/// Last lines of output shown of a Container that failed.
const LOG_LINES: usize = 20;

/// Whether to wait, and how long.
#[derive(Debug, Clone, Args)]
pub(super) struct Wait {
    /// Return once the change is committed
    #[arg(long)]
    no_wait: bool,
    /// Wait at most so long; the Rollout goes on after that
    #[arg(long, value_name = "D", conflicts_with = "no_wait")]
    timeout: Option<Span>,
}

/// How a Rollout ended, for programs.
#[derive(Serialize)]
struct Outcome {
    app: AppKey,
    release: ReleaseNo,
    rollout: RolloutNo,
    phase: &'static str,
    /// For how long it is still watched.
    #[serde(skip_serializing_if = "Option::is_none")]
    watched: Option<Micros>,
    /// What a person is waited for.
    #[serde(skip_serializing_if = "Option::is_none")]
    waits: Option<String>,
    urls: Vec<String>,
    took: Option<Micros>,
    bars: Vec<Bar>,
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<UserError>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<LogLine>,
}

/// What of a Rollout is what the person wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    /// That it goes through.
    Forward,
    /// That what ran before runs again, by a Rollout of its own or by giving this one up.
    Back,
}

/// Follows the Rollout that was accepted.
///
/// # Errors
/// Why it failed, when the new Release did not come to run; that it takes too long.
pub(super) async fn rollout(
    context: &Context,
    accepted: Accepted,
    wait: &Wait,
    aim: Aim,
) -> Result<()> {
    let Some(number) = accepted.rollout.filter(|_| !wait.no_wait) else {
        return context.output.show(&accepted, committed);
    };
    let mut view = View::new(context.output);
    let mut last_words = LastWords::default();
    let watched = tokio::select! {
        end = watch(context, &accepted, &mut view, &mut last_words, aim) => end.map(Some),
        () = elapsed(wait.timeout) => Err(too_long(number, wait.timeout).into()),
        _ = tokio::signal::ctrl_c() => Ok(None),
    };
    view.close();
    match watched? {
        Some(end) => finish(context, accepted.app, end, last_words, aim).await,
        None => {
            eprintln!(
                "rollout {number} goes on; `stead rollout status {app}` shows it, `stead rollout \
                 abort {app}` ends it",
                app = accepted.app.app
            );
            Err(Quiet(1).into())
        }
    }
}

fn committed(accepted: &Accepted) -> String {
    let release = accepted.release.map(|n| format!(", release {n}")).unwrap_or_default();
    let rollout = accepted.rollout.map(|n| format!(", rollout {n}")).unwrap_or_default();
    format!("{}{release}{rollout}: committed", accepted.app)
}

async fn elapsed(timeout: Option<Span>) {
    match timeout {
        Some(span) => tokio::time::sleep(Duration::from_millis(span.millis())).await,
        None => std::future::pending().await,
    }
}

fn too_long(number: RolloutNo, timeout: Option<Span>) -> UserError {
    let after = timeout.map(|span| format!(" after {span}")).unwrap_or_default();
    UserError::new(
        Code::RolloutTimedOut,
        format!("rollout {number} is still under way{after}, and goes on"),
        "`stead rollout status` shows where it is, `stead rollout abort` ends it",
    )
}

/// Whether waiting ends here: every Instance is changed, it failed, a person has to decide, or
/// a person stopped the App. A Release that is only watched any more serves everybody.
fn is_enough(progress: &Progress, aim: Aim) -> bool {
    let phase = &progress.rollout.phase;
    let asks = aim == Aim::Forward && asks_a_person(&progress.rollout);
    phase.is_final() || phase.is_through() || asks || progress.stopped
}

/// Whether the Rollout goes on only when a person promotes it.
fn asks_a_person(rollout: &Rollout) -> bool {
    matches!(&rollout.phase, Phase::Progressing { gate: Some(gate), .. } if gate.until.is_none())
}

/// Watches until waiting ends. Survives a restart of the platform.
async fn watch(
    context: &Context,
    accepted: &Accepted,
    view: &mut View,
    last_words: &mut LastWords,
    aim: Aim,
) -> Result<Progress> {
    let (app, number) = (&accepted.app, accepted.rollout.unwrap_or_default());
    let path = format!("{}/rollouts/{number}/progress", app_path(app));
    let mut away: Option<Instant> = None;
    loop {
        let mut stream = match context.client.follow(&path).await {
            Ok(stream) => stream,
            Err(error) => {
                let down = error
                    .downcast_ref::<UserError>()
                    .is_some_and(|error| error.code == Code::PlatformDown);
                let since = *away.get_or_insert_with(Instant::now);
                if !down || since.elapsed() > AWAY {
                    return Err(error);
                }
                tokio::time::sleep(PACE).await;
                continue;
            }
        };
        while let Some(progress) = stream.next::<Progress>().await? {
            away = None;
            view.update(&progress);
            last_words.note(context, app, &progress).await;
            // What was looked at before the change says nothing about it.
            let current = progress.generation >= accepted.generation;
            if progress.rollout.phase.is_final() || (current && is_enough(&progress, aim)) {
                return Ok(progress);
            }
        }
        // The stream broke off before the end: the platform is being restarted.
        let since = *away.get_or_insert_with(Instant::now);
        if since.elapsed() < PACE {
            view.note("the platform is away; waiting for it");
        }
        tokio::time::sleep(PACE).await;
    }
}

/// Output of the Containers that failed, fetched while they are still there.
#[derive(Default)]
struct LastWords {
    containers: BTreeSet<ContainerId>,
    lines: Vec<LogLine>,
}

impl LastWords {
    async fn note(&mut self, context: &Context, app: &AppKey, progress: &Progress) {
        let rollout = &progress.rollout;
        for view in &progress.states {
            if view.revision == Some(rollout.to) {
                self.containers.extend(view.container.clone());
            }
        }
        if rollout.failure().is_none() || !self.lines.is_empty() {
            return;
        }
        let path = format!("{}/logs?tail={LOG_LINES}", app_path(app));
        // Logs are a help, not a part of the outcome.
        let lines: Vec<LogLine> = context.client.get(&path).await.unwrap_or_default();
        let ours = lines.into_iter().filter(|line| self.containers.contains(&line.container));
        self.lines = ours.collect();
    }
}

async fn finish(
    context: &Context,
    app: AppKey,
    end: Progress,
    last_words: LastWords,
    aim: Aim,
) -> Result<()> {
    let rollout = &end.rollout;
    let waterfall = look::waterfall_of(context, &app, Some(rollout.number)).await.ok();
    let urls = context.client.get::<AppView>(&app_path(&app)).await.map(|view| view.urls);
    let failure = match &rollout.phase {
        phase if end.stopped && !phase.is_final() => Some(UserError::new(
            Code::NoInstance,
            format!("app {app} was stopped while rollout {} was under way", rollout.number),
            format!("`stead start {}` starts it again, and the rollout goes on", app.app),
        )),
        Phase::Superseded { .. } => Some(UserError::new(
            Code::RolloutAborted,
            format!("rollout {} of app {app} was superseded by a newer change", rollout.number),
            "`stead rollout status` shows the newer one",
        )),
        Phase::Undone { why, .. } if aim == Aim::Back && why.code == Code::RolloutAborted => None,
        _ => rollout.failure().cloned(),
    };
    let outcome = Outcome {
        release: rollout.to.release,
        rollout: rollout.number,
        phase: rollout.phase.name(),
        watched: match &rollout.phase {
            Phase::Watching { until, .. } => Some(until.since(human::now())),
            _ => None,
        },
        waits: asks_a_person(rollout).then(|| end.why.clone()),
        urls: urls.unwrap_or_default(),
        took: waterfall.as_ref().and_then(|waterfall| waterfall.total),
        bars: waterfall.map(|waterfall| waterfall.bars).unwrap_or_default(),
        logs: last_words.lines,
        failure,
        app,
    };
    context.output.show(&outcome, outcome_text)?;
    match outcome.failure {
        Some(failure) => Err(failure.into()),
        None => Ok(()),
    }
}

fn outcome_text(outcome: &Outcome) -> String {
    let Outcome { app, release, rollout, .. } = outcome;
    let took = outcome.took.map(|took| format!(" in {took}")).unwrap_or_default();
    let state = match outcome.phase {
        _ if outcome.waits.is_some() => format!("release {release} waits for you"),
        "done" | "watching" => format!("release {release} runs"),
        "undone" if outcome.failure.is_none() => {
            format!("release {release} was given up, the one before runs")
        }
        "undone" => format!("release {release} failed, the one before runs"),
        "held" => format!("release {release} failed and is held"),
        other => format!("release {release}: {other}"),
    };
    let mut lines = vec![format!("{app}: {state} (rollout {rollout}{took})")];
    if let Some(why) = &outcome.waits {
        let name = &app.app;
        lines.push(format!("  gate    {}", human::plain(why)));
        lines.push(format!("  next    `stead rollout promote {name}` goes on,"));
        lines.push(format!("          `stead rollout abort {name}` goes back"));
    }
    if let Some(left) = outcome.watched {
        let left = human::length(left);
        lines.push(format!("  watch   for {left} more; it is undone if it proves bad"));
    }
    let phases = waterfall::summary(&outcome.bars);
    if !phases.is_empty() {
        lines.push(format!("  phases  {phases}"));
    }
    if outcome.failure.is_none() {
        lines.extend(outcome.urls.iter().map(|url| format!("  url     {}", human::plain(url))));
    }
    if !outcome.logs.is_empty() {
        lines.push("  last output of what failed:".to_owned());
        let line = |line: &LogLine| format!("    {} | {}", line.instance, human::plain(&line.text));
        lines.extend(outcome.logs.iter().map(line));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_shows_the_last_words() {
        let mut outcome = Outcome {
            app: "default/web".parse().unwrap(),
            release: ReleaseNo(2),
            rollout: RolloutNo(3),
            phase: "undone",
            watched: None,
            waits: None,
            urls: vec!["http://web.default.localhost:8080/".into()],
            took: Some(Micros::from_millis(1500)),
            bars: Vec::new(),
            failure: Some(UserError::new(Code::ExitedAtOnce, "it ended", "look at the logs")),
            logs: vec![LogLine {
                time: String::new(),
                stream: "stderr".into(),
                instance: stead_core::ids::Ordinal(0),
                container: ContainerId("c1".into()),
                text: "no such \x1b[31mfile".into(),
            }],
        };
        assert_eq!(
            outcome_text(&outcome),
            "default/web: release 2 failed, the one before runs (rollout 3 in 1500.0 ms)\n  \
             last output of what failed:\n    0 | no such [31mfile"
        );
        outcome = Outcome { phase: "done", failure: None, logs: Vec::new(), ..outcome };
        assert_eq!(
            outcome_text(&outcome),
            "default/web: release 2 runs (rollout 3 in 1500.0 ms)\n  url     \
             http://web.default.localhost:8080/"
        );
        outcome = Outcome { phase: "watching", watched: Some(Micros::from_secs(120)), ..outcome };
        let text = outcome_text(&outcome);
        assert!(text.contains("release 2 runs"), "{text}");
        assert!(text.contains("  watch   for 2m more; it is undone if it proves bad"), "{text}");
        let waits = Some("batch 1 is through; a person promotes it".to_owned());
        outcome = Outcome { phase: "progressing", watched: None, waits, ..outcome };
        let text = outcome_text(&outcome);
        assert!(text.contains("release 2 waits for you"), "{text}");
        assert!(text.contains("`stead rollout promote web` goes on"), "{text}");
    }
}
