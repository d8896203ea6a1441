//! `stead rollout status`: the whole story of a Rollout, from its record and from where it is.

use anyhow::Result;
use clap::Args;
use stead_core::analysis::{Against, Figures, Side, Verdict};
use stead_core::api::{AppView, Decision, InstanceView, Progress, Record, RolloutView};
use stead_core::error::{Code, UserError};
use stead_core::ids::RolloutNo;
use stead_core::name::AppName;
use stead_core::rollout::{Phase, Rollout, RolloutKind};
use stead_core::time::{Micros, Time};

use super::{Context, plan};
use crate::output::human;

#[derive(Debug, Args)]
pub(super) struct Status {
    /// The App
    app: AppName,
    /// Number of the Rollout [default: the one under way, or the last one]
    rollout: Option<RolloutNo>,
}

pub(super) async fn status(context: &Context, args: &Status) -> Result<()> {
    let path = context.path(&args.app);
    let number = match args.rollout {
        Some(number) => number,
        None => {
            let view: AppView = context.client.get(&path).await?;
            let rollout = view.rollout.ok_or_else(|| {
                UserError::new(
                    Code::NotFound,
                    format!("app {} has had no rollout", view.key),
                    "`stead deploy` begins one",
                )
            })?;
            rollout.number
        }
    };
    let view: RolloutView = context.client.get(&format!("{path}/rollouts/{number}")).await?;
    context.output.show(&view, |view| text(&args.app, view, human::now()))
}

fn text(app: &AppName, view: &RolloutView, now: Time) -> String {
    let RolloutView { record, now: progress, verdict } = view;
    let mut parts = vec![head(app, record, progress.as_ref(), now)];
    if let Some(progress) = progress.as_ref().filter(|_| !record.rollout.phase.is_final()) {
        parts.push(section("instances", progress.states.iter().map(|view| instance(view, now))));
    }
    let last = record.decisions.iter().rev().find_map(|decision| decision.verdict.as_ref());
    if let Some(verdict) = verdict.as_ref().or(last) {
        parts.push(section("figures", figures(verdict)));
    }
    if !record.plan.instances.is_empty() {
        let mut lines = Vec::new();
        if !record.plan.changes.is_empty() {
            lines.push(plan::fields(&record.plan.changes));
        }
        lines.push(plan::instances(&record.plan));
        if record.plan.batches.len() > 1 {
            lines.push(plan::batches(&record.plan.batches));
        }
        parts.push(section("plan", lines));
    }
    if !record.decisions.is_empty() {
        parts.push(section("what happened", record.decisions.iter().map(decision)));
    }
    if !record.ledger.is_empty() {
        let lines = record.ledger.iter().map(|view| {
            let ledger = &view.ledger;
            format!(
                "release {}: {} received, {} completed, {} aborted, {} failed",
                view.release,
                ledger.received,
                ledger.completed,
                ledger.client_aborted,
                ledger.failures()
            )
        });
        parts.push(section("requests", lines));
    }
    parts.join("\n\n")
}

fn section(name: &str, texts: impl IntoIterator<Item = String>) -> String {
    let mut lines = vec![name.to_owned()];
    for text in texts {
        lines.extend(text.lines().map(|line| format!("  {line}")));
    }
    lines.join("\n")
}

fn head(app: &AppName, record: &Record, progress: Option<&Progress>, now: Time) -> String {
    let rollout = &record.rollout;
    let from = rollout
        .from
        .as_ref()
        .map_or("nothing".to_owned(), |from| format!("release {}", from.base.release));
    let mut text = format!(
        "rollout {} {}: {} from {from} to release {}",
        rollout.number,
        rollout.phase.name(),
        kind(rollout.kind),
        rollout.to.release
    );
    if let Some(progress) = progress {
        text.push_str(&format!(", {} of {} instances done", progress.done, progress.instances));
    }
    let mut lines = vec![text];
    let mut line = |name: &str, value: String| lines.push(format!("  {name:<8}{value}"));
    let message = rollout.message.as_deref().map(|message| format!(": {}", human::plain(message)));
    line(
        "begun",
        format!(
            "{} by {}{}",
            human::ago(now, rollout.started),
            human::plain(&rollout.by),
            message.unwrap_or_default()
        ),
    );
    if let Some(now) = progress.filter(|_| !rollout.phase.is_final()) {
        line("now", format!("{}{}", batch(record), human::plain(&now.why)));
    }
    if let Some(paused) = &rollout.paused {
        let (ago, by) = (human::ago(now, paused.at), human::plain(&paused.by));
        line("paused", format!("{ago} by {by}; `stead rollout resume {app}` lets it go on"));
    }
    if let Some(waits) = waits(app, rollout, now) {
        line("waits", waits);
    }
    if let Some(why) = rollout.failure() {
        line("failed", format!("{}: {}", why.code, human::plain(&why.message)));
        line("help", human::plain(&why.hint));
    }
    lines.join("\n")
}

fn batch(record: &Record) -> String {
    match (&record.rollout.phase, record.plan.batches.len()) {
        (Phase::Progressing { batch, .. }, count @ 2..) => {
            format!("batch {} of {count}: ", batch + 1)
        }
        _ => String::new(),
    }
}

/// What it waits for, and what a person can do about it.
fn waits(app: &AppName, rollout: &Rollout, now: Time) -> Option<String> {
    match &rollout.phase {
        Phase::Progressing { gate: Some(gate), .. } => Some(match gate.until {
            None => format!(
                "for a person: `stead rollout promote {app}` goes on, `stead rollout abort {app}` \
                 goes back"
            ),
            Some(until) => {
                format!("{} more before the next batch", human::length(until.since(now)))
            }
        }),
        Phase::Watching { until, .. } => Some(format!(
            "it is watched for {} more, and undone if it proves bad",
            human::length(until.since(now))
        )),
        _ => None,
    }
}

fn kind(kind: RolloutKind) -> &'static str {
    match kind {
        RolloutKind::Deploy => "deploy",
        RolloutKind::Rollback => "rollback",
        RolloutKind::Restart => "restart",
        RolloutKind::Config => "change of settings",
    }
}

/// An Instance in one line: what it runs, and the step it is in.
fn instance(view: &InstanceView, now: Time) -> String {
    let runs =
        view.revision.map_or("-".to_owned(), |revision| format!("release {}", revision.release));
    let mut line = format!("instance {}: {runs}, {}", view.instance, view.state);
    if let Some(doing) = &view.doing {
        line.push_str(&format!("; {}", human::plain(&doing.what)));
        if let Some(since) = doing.since {
            line.push_str(&format!(" for {}", now.since(since)));
        }
    }
    if let Some(trouble) = view.trouble.as_ref().filter(|_| view.state != "ready") {
        line.push_str(&format!("; {}: {}", trouble.code, human::plain(&trouble.message)));
    }
    line
}

fn decision(decision: &Decision) -> String {
    let batch = decision.batch.map(|batch| format!(", batch {batch}")).unwrap_or_default();
    let by =
        decision.by.as_deref().map(|by| format!(" ({})", human::plain(by))).unwrap_or_default();
    format!(
        "{}  {}{batch}: {}{by}",
        human::stamp(decision.at),
        decision.phase,
        human::plain(&decision.why)
    )
}

fn figures(verdict: &Verdict) -> Vec<String> {
    let figures = verdict.figures();
    let mut lines = vec![match verdict {
        Verdict::Undecided { .. } => "nothing is proven yet".to_owned(),
        Verdict::Fine { .. } => "the new release is not worse".to_owned(),
        Verdict::Worse { why, .. } => format!("the new release is worse: {}", human::plain(why)),
    }];
    let against = match figures.against {
        Against::Old => "old, at the same time",
        Against::Base => "old, in the minutes before",
        Against::Nothing => "old, too few to compare with",
    };
    lines.push(side("new", &figures.new));
    lines.push(side(against, &figures.old));
    lines.extend(evidence(figures));
    lines
}

fn side(name: &str, side: &Side) -> String {
    let millis = |micros: Option<u64>| micros.map_or("-".to_owned(), |m| Micros(m).to_string());
    format!(
        "{name}: {} requests, {} errors, half within {}, 9 of 10 within {}",
        side.requests,
        side.errors,
        millis(side.p50_micros),
        millis(side.p90_micros)
    )
}

/// How strong the evidence is, and how strong it has to be.
fn evidence(figures: &Figures) -> Vec<String> {
    let errors = figures.errors.as_ref().map(|errors| ("errors", &errors.proof));
    let latency = figures.latency.as_ref().map(|latency| ("latency", &latency.proof));
    let line = |(name, proof): (&str, &stead_core::analysis::Proof)| {
        format!(
            "{name}: evidence of worse {} (proven at {}), of fine {} (proven at {})",
            proof.worse, proof.worse_needs, proof.fine, proof.fine_needs
        )
    };
    errors.into_iter().chain(latency).map(line).collect()
}

#[cfg(test)]
mod tests {
    use stead_core::analysis::{Sample, Settings, judge};
    use stead_core::api::Doing;
    use stead_core::fleet::{Lineup, Revision};
    use stead_core::ids::{Ordinal, ReleaseNo};
    use stead_core::rollout::{Gate, Reach};

    use super::*;

    fn at(secs: u64) -> Time {
        Time(secs * 1_000_000)
    }

    fn rollout(phase: Phase) -> Rollout {
        let revision = |n| Revision { release: ReleaseNo(n), run: n, since: 0 };
        Rollout {
            number: RolloutNo(2),
            kind: RolloutKind::Deploy,
            from: Some(Lineup::all(revision(1))),
            meanwhile: None,
            before: None,
            to: revision(2),
            only: None,
            again: Default::default(),
            paused: None,
            phase,
            started: at(100),
            deadline: Micros::from_secs(1),
            auto_rollback: true,
            by: "ann".into(),
            message: Some("a faster one".into()),
        }
    }

    #[test]
    fn a_gate_says_who_is_waited_for_and_what_to_do() {
        let gate = Some(Gate { since: at(110), until: None });
        let phase =
            Phase::Progressing { batch: 0, reach: Reach::All, done: 1, since: at(110), gate };
        let mut record = Record::of(rollout(phase));
        record.decisions.push(Decision {
            at: at(110),
            phase: "progressing".into(),
            batch: Some(1),
            why: "batch 1 is through".into(),
            by: None,
            verdict: None,
        });
        let (none, new) =
            (Sample::default(), Sample { requests: 9, errors: 2, ..Sample::default() });
        let verdict = Some(judge(&none, &none, &new, &Settings::default()));
        let view = RolloutView { record, now: None, verdict };
        let text = text(&"web".parse().unwrap(), &view, at(160));
        let begin = "rollout 2 progressing: deploy from release 1 to release 2\n  \
                     begun   1m ago by ann: a faster one\n  \
                     waits   for a person: `stead rollout promote web` goes on, `stead rollout \
                     abort web` goes back\n\nfigures\n  nothing is proven yet\n  \
                     new: 9 requests, 2 errors, half within -, 9 of 10 within -\n";
        assert!(text.starts_with(begin), "{text}");
        assert!(text.ends_with("Z  progressing, batch 1: batch 1 is through"), "{text}");
    }

    #[test]
    fn an_instance_says_its_step_and_since_when() {
        let view: InstanceView = serde_json::from_value(serde_json::json!({
            "instance": 3, "state": "ready", "crashes": 0,
            "revision": {"release": 1, "run": 1},
        }))
        .unwrap();
        let what = "handover: the new container is starting in slot b".to_owned();
        let doing = Some(Doing { what, since: Some(at(10)) });
        let view = InstanceView { instance: Ordinal(3), doing, ..view };
        assert_eq!(
            instance(&view, at(12)),
            "instance 3: release 1, ready; handover: the new container is starting in slot b for \
             2000.0 ms"
        );
    }
}
