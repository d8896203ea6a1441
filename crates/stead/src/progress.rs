//! How a Rollout is watched: a live view on a terminal, plain lines elsewhere.
//!
//! Both go to standard error, so that standard output carries nothing but the answer.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use stead_core::api::{InstanceView, Progress};
use stead_core::ids::Ordinal;
use stead_core::rollout::{Phase, Reach};

use crate::output::human;
use crate::output::{Format, Output};

/// Most Instances that get a line of their own on a terminal.
const LINES: usize = 12;

/// Shows a Rollout while it goes on.
pub(crate) enum View {
    /// Bars and spinners.
    Live(Live),
    /// A line for each change.
    Lines(Lines),
    /// Nothing: a program reads the outcome.
    Silent,
}

impl View {
    /// The view that fits where the output goes.
    pub(crate) fn new(output: Output) -> Self {
        if output.format != Format::Table {
            Self::Silent
        } else if io::stderr().is_terminal() {
            Self::Live(Live::new())
        } else {
            Self::Lines(Lines::new())
        }
    }

    /// Shows where it is now.
    pub(crate) fn update(&mut self, progress: &Progress) {
        match self {
            Self::Live(live) => live.update(progress),
            Self::Lines(lines) => {
                for line in lines.update(progress) {
                    eprintln!("{line}");
                }
            }
            Self::Silent => {}
        }
    }

    /// Says something beside the progress.
    pub(crate) fn note(&self, text: &str) {
        match self {
            // A failure to draw is no failure of the rollout.
            Self::Live(live) => drop(live.bars.println(text)),
            Self::Lines(_) => eprintln!("{text}"),
            Self::Silent => {}
        }
    }

    /// Leaves the terminal as it was.
    pub(crate) fn close(self) {
        if let Self::Live(live) = self {
            drop(live.bars.clear());
        }
    }
}

/// One line on what the Rollout as a whole does.
fn headline(progress: &Progress) -> String {
    let rollout = &progress.rollout;
    let what = match rollout.phase {
        Phase::Pulling => "fetching the image",
        Phase::Undoing { .. } => "going back",
        _ => rollout.phase.name(),
    };
    let batch = match &rollout.phase {
        Phase::Progressing { batch, reach: Reach::Of(_), .. } => format!(", batch {}", batch + 1),
        _ => String::new(),
    };
    let what = format!("{what}{batch}");
    let why = human::plain(&progress.why);
    if progress.instances == 0 && !why.is_empty() {
        // A site, or what is scaled to none.
        return format!("rollout {} {what}: {why}", rollout.number);
    }
    let count = format!("{} of {} instances done", progress.done, progress.instances);
    let why = if why == count { String::new() } else { format!(" ({why})") };
    format!("rollout {} {what}: {count}{why}", rollout.number)
}

/// Where an Instance is, with the step it is in, and with what went wrong before as long as it
/// is not ready again.
fn state(view: &InstanceView) -> String {
    match &view.trouble {
        _ if view.state == "ready" && view.doing.is_some() => {
            let doing = view.doing.iter().map(|doing| human::plain(&doing.what));
            format!("ready; {}", doing.collect::<String>())
        }
        Some(trouble) if view.state != "ready" => {
            format!("{}: {}", view.state, human::plain(&trouble.message))
        }
        _ => view.state.clone(),
    }
}

/// The view on a terminal.
pub(crate) struct Live {
    bars: MultiProgress,
    head: ProgressBar,
    pull: Option<ProgressBar>,
    instances: BTreeMap<Ordinal, ProgressBar>,
}

impl Live {
    fn new() -> Self {
        let bars = MultiProgress::new();
        let head = bars.add(spinner("{spinner} {elapsed_precise} {msg}"));
        head.set_message("waiting for the platform");
        Self { bars, head, pull: None, instances: BTreeMap::new() }
    }

    fn update(&mut self, progress: &Progress) {
        self.head.set_message(headline(progress));
        match (&progress.pull, &self.pull) {
            (Some(pull), _) => {
                let bar = self.pull.get_or_insert_with(|| {
                    let bar = ProgressBar::new(0).with_style(style(
                        "  image [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {msg}",
                    ));
                    self.bars.insert_after(&self.head, bar)
                });
                bar.set_length(pull.total.max(pull.bytes));
                bar.set_position(pull.bytes);
                bar.set_message(format!("{} of {} layers", pull.layers_done, pull.layers));
            }
            (None, Some(bar)) => {
                bar.finish_and_clear();
                self.pull = None;
            }
            (None, None) => {}
        }
        for view in progress.states.iter().take(LINES) {
            let bar = self
                .instances
                .entry(view.instance)
                .or_insert_with(|| self.bars.add(spinner("  {spinner} {msg}")));
            let ip = view.ip.as_deref().unwrap_or("-");
            bar.set_message(format!("instance {:<3} {ip:<15} {}", view.instance, state(view)));
        }
        let gone: Vec<Ordinal> = self
            .instances
            .keys()
            .copied()
            .filter(|known| !progress.states.iter().any(|view| view.instance == *known))
            .collect();
        for ordinal in gone {
            if let Some(bar) = self.instances.remove(&ordinal) {
                bar.finish_and_clear();
            }
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are constants")
}

fn spinner(template: &str) -> ProgressBar {
    let bar = ProgressBar::new_spinner().with_style(style(template));
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// The view in a log.
pub(crate) struct Lines {
    begun: Instant,
    head: String,
    layers: u32,
    states: BTreeMap<Ordinal, String>,
}

impl Lines {
    fn new() -> Self {
        Self { begun: Instant::now(), head: String::new(), layers: 0, states: BTreeMap::new() }
    }

    /// What is new since the last call.
    fn update(&mut self, progress: &Progress) -> Vec<String> {
        let at = format!("[{:>8.3}s]", self.begun.elapsed().as_secs_f64());
        let mut lines = Vec::new();
        let head = headline(progress);
        if self.head != head {
            lines.push(format!("{at} {head}"));
            self.head = head;
        }
        if let Some(pull) = progress.pull.as_ref().filter(|pull| pull.layers_done != self.layers) {
            self.layers = pull.layers_done;
            lines.push(format!(
                "{at} image: {} of {} layers, {}",
                pull.layers_done,
                pull.layers,
                human::bytes(pull.bytes)
            ));
        }
        for view in &progress.states {
            let state = state(view);
            if self.states.get(&view.instance) != Some(&state) {
                lines.push(format!("{at} instance {}: {state}", view.instance));
                self.states.insert(view.instance, state);
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use stead_core::fleet::Revision;
    use stead_core::ids::{ReleaseNo, RolloutNo};
    use stead_core::rollout::{Rollout, RolloutKind};
    use stead_core::time::{Micros, Time};

    use super::*;

    fn progress(done: u32, state: &str) -> Progress {
        Progress {
            rollout: Rollout {
                number: RolloutNo(3),
                kind: RolloutKind::Deploy,
                from: None,
                before: None,
                again: Default::default(),
                paused: None,
                meanwhile: None,
                to: Revision { release: ReleaseNo(2), run: 3, since: 0 },
                only: None,
                phase: Phase::Progressing {
                    batch: 0,
                    reach: Reach::All,
                    done,
                    since: Time(0),
                    gate: None,
                },
                started: Time(0),
                deadline: Micros::from_secs(1),
                auto_rollback: true,
                by: "root".into(),
                message: None,
            },
            generation: Default::default(),
            why: "as planned".into(),
            stopped: false,
            instances: 1,
            done,
            pull: None,
            states: vec![InstanceView {
                instance: Ordinal(0),
                ip: None,
                revision: None,
                state: state.into(),
                container: None,
                since: None,
                health: None,
                traffic: None,
                crashes: 0,
                last_exit: None,
                trouble: None,
                slot: Default::default(),
                containers: Vec::new(),
                doing: None,
            }],
        }
    }

    #[test]
    fn only_what_changed_is_a_line() {
        let mut lines = Lines::new();
        let without_time = |lines: Vec<String>| -> Vec<String> {
            lines.into_iter().map(|l| l.split_once("] ").unwrap().1.to_owned()).collect()
        };
        assert_eq!(
            without_time(lines.update(&progress(0, "starting"))),
            ["rollout 3 progressing: 0 of 1 instances done (as planned)", "instance 0: starting"]
        );
        assert!(lines.update(&progress(0, "starting")).is_empty());
        assert_eq!(without_time(lines.update(&progress(0, "ready"))), ["instance 0: ready"]);
    }

    #[test]
    fn the_live_view_takes_whatever_comes() {
        let mut live = Live::new();
        live.bars.set_draw_target(indicatif::ProgressDrawTarget::hidden());
        let mut pulling = progress(0, "pending");
        pulling.pull = Some(stead_core::engine::PullProgress::default());
        live.update(&pulling);
        assert!(live.pull.is_some());
        let mut empty = progress(1, "ready");
        empty.states.clear();
        live.update(&empty);
        assert!(live.pull.is_none() && live.instances.is_empty());
    }
}
