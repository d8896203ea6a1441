//! A Rollout as it is planned beforehand, shown on its way, and kept for ever.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{Bar, Ledger, LedgerView, Progress};
use crate::analysis::{Sample, Verdict};
use crate::app::Release;
use crate::fleet::{Fleet, FleetSeen, Part, Remake, Way};
use crate::ids::{Digest, Ordinal};
use crate::manifest::{Effect, FieldChange, Pause, diff};
use crate::name::AppKey;
use crate::rollout::{Rollout, stages};
use crate::time::Time;

/// What a change is going to do.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize, ToSchema)]
pub struct ChangePlan {
    /// The App runs nothing yet.
    pub new: bool,
    /// Fields that differ.
    pub changes: Vec<FieldChange>,
    /// What becomes of each Instance.
    pub instances: Vec<InstancePlan>,
    /// In which steps.
    pub batches: Vec<BatchPlan>,
}

/// What becomes of one Instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct InstancePlan {
    /// Its ordinal.
    pub instance: Ordinal,
    /// Its address, where it has one.
    pub ip: Option<String>,
    /// In which batch, from 1; `None` if it is not a matter of batches.
    pub batch: Option<u32>,
    /// How it gets to what it shall run; `None`: it goes.
    pub way: Option<Way>,
    /// Sidecars that are started, restarted or stopped by themselves.
    #[serde(default)]
    pub sidecars: Vec<String>,
}

/// One batch of a Rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct BatchPlan {
    /// So many Instances run the new Release once it is through.
    pub upto: u32,
    /// What share of the requests the new Release then gets, in per cent, where it is set apart
    /// from the Instances.
    pub weight: Option<u8>,
    /// Requests go to the new Release by rules.
    pub rules: bool,
    /// What is waited for before the next one.
    pub pause: Pause,
}

/// Asked what a deploy would do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct PlanView {
    /// The App.
    pub app: AppKey,
    /// What a deploy would do now.
    #[serde(flatten)]
    pub plan: ChangePlan,
}

/// A turn that a Rollout took.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Decision {
    /// When.
    pub at: Time,
    /// The phase that it entered, or stays in.
    pub phase: String,
    /// The batch, from 1, while there is one.
    pub batch: Option<u32>,
    /// Why.
    pub why: String,
    /// The person who decided; `None`: stead did.
    pub by: Option<String>,
    /// The figures of the new Release beside the old one at that moment.
    pub verdict: Option<Verdict>,
}

/// What is kept of a Rollout for ever.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(try_from = "serde_json::Value")]
pub struct Record {
    /// Who, what, why, and where it is or how it ended.
    pub rollout: Rollout,
    /// What it was going to do when it began.
    pub plan: ChangePlan,
    /// Every turn it took.
    pub decisions: Vec<Decision>,
    /// What the old Release did in the minutes before.
    pub base: Option<Sample>,
    /// The App's ledgers when it began.
    pub ledger_before: Vec<LedgerView>,
    /// What became of requests while it went on. Empty until it is over.
    pub ledger: Vec<LedgerView>,
    /// Every phase of every Instance. Empty until it is over: the events have them.
    pub bars: Vec<Bar>,
}

impl Record {
    /// The record of a Rollout of which nothing else is known.
    pub fn of(rollout: Rollout) -> Self {
        Self {
            rollout,
            plan: ChangePlan::default(),
            decisions: Vec::new(),
            base: None,
            ledger_before: Vec::new(),
            ledger: Vec::new(),
            bars: Vec::new(),
        }
    }
}

/// [`Record`], as it is written.
#[derive(Deserialize)]
struct Written {
    rollout: Rollout,
    #[serde(default)]
    plan: ChangePlan,
    #[serde(default)]
    decisions: Vec<Decision>,
    base: Option<Sample>,
    #[serde(default)]
    ledger_before: Vec<LedgerView>,
    #[serde(default)]
    ledger: Vec<LedgerView>,
    #[serde(default)]
    bars: Vec<Bar>,
}

impl TryFrom<serde_json::Value> for Record {
    type Error = serde_json::Error;

    fn try_from(value: serde_json::Value) -> Result<Self, serde_json::Error> {
        // Earlier versions kept the bare Rollout.
        if value.get("rollout").is_none() {
            return serde_json::from_value(value).map(Self::of);
        }
        let Written { rollout, plan, decisions, base, ledger_before, ledger, bars } =
            serde_json::from_value(value)?;
        Ok(Self { rollout, plan, decisions, base, ledger_before, ledger, bars })
    }
}

/// A Rollout with everything that is known of it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RolloutView {
    /// What is kept of it.
    pub record: Record,
    /// Where it and each Instance is now. `None` once another took its place.
    pub now: Option<Progress>,
    /// The figures so far, while it is judged.
    pub verdict: Option<Verdict>,
}

/// The step that an Instance is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Doing {
    /// What the Instance does, in words.
    pub what: String,
    /// Since when, where that is known.
    pub since: Option<Time>,
}

impl ChangePlan {
    /// What the change from `old` to `new` does. `fleet` is what shall be in the end, with the
    /// Releases that run now among its Releases; `began` is the Rollout that carries it out.
    pub fn of(
        old: Option<&Release>,
        new: &Release,
        fleet: &Fleet,
        seen: &FleetSeen,
        began: &Rollout,
    ) -> Self {
        let changes = old.map(|old| changes(old, new)).unwrap_or_default();
        let ordinals: Vec<Ordinal> = fleet.ordinals().collect();
        let rules = &new.settings.rollout;
        let trial = began.is_trial() && began.only.is_none();
        let stages = if trial { stages(rules, fleet.instances) } else { Vec::new() };
        let turns = rules.order(&ordinals);
        let batch = |ordinal: Ordinal| {
            let turn = turns.iter().position(|one| *one == ordinal)?;
            let stage = stages.iter().position(|stage| turn < stage.upto as usize)?;
            u32::try_from(stage + 1).ok()
        };
        let mut sidecars: Vec<String> = changes
            .iter()
            .filter(|change| change.effect >= Effect::RestartContainer)
            .filter_map(|change| match &change.part {
                Part::Sidecar(name) => Some(name.clone()),
                Part::Main => None,
            })
            .collect();
        sidecars.dedup();
        let ip = |ordinal: &Ordinal| {
            let sandbox = seen.instances.get(ordinal)?.sandbox.as_ref()?;
            Some(sandbox.ip.to_string())
        };
        let wanted = ordinals.iter().map(|ordinal| {
            let way = fleet.way(seen, *ordinal);
            let alone = matches!(way, Some(Way::Update | Way::Handover | Way::InPlace { .. }));
            InstancePlan {
                instance: *ordinal,
                ip: ip(ordinal),
                batch: batch(*ordinal),
                way,
                sidecars: if alone { sidecars.clone() } else { Vec::new() },
            }
        });
        let gone = seen.instances.keys().filter(|ordinal| !ordinals.contains(ordinal));
        let gone = gone.map(|ordinal| InstancePlan {
            instance: *ordinal,
            ip: ip(ordinal),
            batch: None,
            way: None,
            sidecars: Vec::new(),
        });
        let batches = stages.iter().map(|stage| BatchPlan {
            upto: stage.upto,
            weight: stage.batch.and_then(|batch| batch.weight()),
            rules: stage.batch.is_some_and(|batch| !batch.matches.is_empty()),
            pause: stage.pause,
        });
        Self {
            new: old.is_none(),
            instances: wanted.chain(gone).collect(),
            batches: batches.collect(),
            changes,
        }
    }
}

/// Every field that differs, and images behind a tag that moved.
fn changes(old: &Release, new: &Release) -> Vec<FieldChange> {
    let mut changes = diff(&old.settings, &new.settings);
    // Each by its versions instead.
    changes.retain(|change| !(change.part.is_main() && change.path == "secrets"));
    let names: BTreeSet<_> = old.secrets.keys().chain(new.secrets.keys()).collect();
    for name in names {
        let version = |of: &Release| of.secrets.get(name).map(|n| format!("version {n}").into());
        let (from, to) = (version(old), version(new));
        if from != to {
            let (path, effect) = (format!("secrets.{name}"), Effect::RestartContainer);
            changes.push(FieldChange { path, from, to, effect, part: Part::Main });
        }
    }
    let mut image = |path: String, part: Part, from: Option<&Digest>, to: Option<&Digest>| {
        let source = if part.is_main() { "source" } else { "sidecars" };
        let said = changes.iter().any(|c| c.part == part && c.path.starts_with(source));
        if from != to && !(from.is_none() || to.is_none()) && !said {
            let shown = |digest: Option<&Digest>| digest.map(|d| d.short().into());
            let effect = Effect::RestartContainer;
            changes.push(FieldChange { path, from: shown(from), to: shown(to), effect, part });
        }
    };
    image("image".to_owned(), Part::Main, Some(&old.image), Some(&new.image));
    for (name, to) in &new.sidecars {
        let path = format!("sidecars.{name}.image");
        image(path, Part::Sidecar(name.clone()), old.sidecars.get(name), Some(to));
    }
    changes
}

impl InstancePlan {
    /// What becomes of it, for people: a clause without a subject.
    pub fn sentence(&self) -> String {
        let mut text = match &self.way {
            None => "is removed".to_owned(),
            Some(Way::Create) => "is created".to_owned(),
            Some(Way::Keep) => "stays as it is".to_owned(),
            Some(Way::Update) if self.sidecars.is_empty() => {
                "goes on with the new settings; it is not restarted".to_owned()
            }
            Some(Way::Update) => "goes on; the app itself is not restarted".to_owned(),
            Some(Way::Handover) => {
                "is handed over: the new container takes over from the old one when it is ready; \
                 keeps its IP"
                    .to_owned()
            }
            Some(Way::InPlace { because }) => {
                let why = because.as_ref().map(|why| format!(", because {why}"));
                format!(
                    "gets a new container in place of the old one, keeps its IP{}",
                    why.unwrap_or_default()
                )
            }
            Some(Way::Recreate { because }) => {
                let why = match because {
                    Remake::Shape => "its volumes or its isolation differ",
                    Remake::Strategy => "the strategy says so",
                };
                format!("gets a new sandbox and a new IP, because {why}")
            }
        };
        if !self.sidecars.is_empty() {
            text.push_str(&format!(
                "; sidecars changed by themselves: {}",
                self.sidecars.join(", ")
            ));
        }
        text
    }
}

impl ChangePlan {
    /// How many processes of the App itself are restarted, for people.
    pub fn summary(&self) -> String {
        let restarts = |plan: &&InstancePlan| {
            matches!(plan.way, Some(Way::Handover | Way::InPlace { .. } | Way::Recreate { .. }))
        };
        let ways = self.instances.iter();
        let there = ways.clone().filter(|plan| !matches!(plan.way, None | Some(Way::Create)));
        let (restarted, there) = (ways.filter(restarts).count(), there.count());
        let mut names: Vec<&str> = self
            .instances
            .iter()
            .flat_map(|plan| plan.sidecars.iter().map(String::as_str))
            .collect();
        names.sort_unstable();
        names.dedup();
        match (restarted, names.is_empty()) {
            (0, true) => format!("Of {there} instances none is restarted."),
            (0, false) => {
                format!(
                    "Only sidecars are restarted ({}); the app itself is not.",
                    names.join(", ")
                )
            }
            (count, _) => format!("Of {there} instances {count} are restarted, once each."),
        }
    }
}

impl Ledger {
    /// What came since `earlier`, an older state of the same ledger.
    pub fn since(&self, earlier: &Self) -> Self {
        let failed = self.failed.iter().map(|(reason, count)| {
            let before = earlier.failed.get(reason).copied().unwrap_or(0);
            (reason.clone(), count.saturating_sub(before))
        });
        Self {
            // Those that were under way then are received in this time as well.
            received: (self.received + earlier.in_flight).saturating_sub(earlier.received),
            completed: self.completed.saturating_sub(earlier.completed),
            client_aborted: self.client_aborted.saturating_sub(earlier.client_aborted),
            failed: failed.filter(|(_, count)| *count > 0).collect(),
            in_flight: self.in_flight,
            parked: self.parked.saturating_sub(earlier.parked),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Code, UserError};
    use crate::fleet::{Lineup, Revision};
    use crate::ids::{ReleaseNo, RolloutNo};
    use crate::rollout::{Phase, RolloutKind};
    use crate::time::Micros;

    #[test]
    fn a_record_is_read_back_and_so_is_what_earlier_versions_kept() {
        let revision = Revision { release: ReleaseNo(1), run: 1, since: 0 };
        let lineup = Lineup::all(revision).with([Ordinal(1)], revision);
        let why = UserError::new(Code::Internal, "it is so", "");
        let rollout = Rollout {
            number: RolloutNo(1),
            kind: RolloutKind::Deploy,
            from: Some(lineup.clone()),
            meanwhile: None,
            before: None,
            to: revision,
            only: None,
            again: [(Ordinal(1), 3)].into(),
            paused: None,
            phase: Phase::Undone { at: Time(2), why },
            started: Time(1),
            deadline: Micros(1),
            auto_rollback: true,
            by: "ann".into(),
            message: None,
        };
        let bare = serde_json::to_string(&rollout).unwrap();
        let record = serde_json::from_str::<Record>(&bare).unwrap();
        assert_eq!(record, Record::of(rollout));
        let whole = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<Record>(&whole).unwrap(), record);
    }

    #[test]
    fn the_ledger_of_some_time_balances() {
        let before = Ledger { received: 10, completed: 7, in_flight: 3, ..Ledger::default() };
        let failed = [("cut".to_owned(), 1)].into();
        let now = Ledger { received: 20, completed: 17, failed, in_flight: 2, ..Ledger::default() };
        assert!(before.balances() && now.balances());
        let between = now.since(&before);
        assert!(between.balances(), "{between:?}");
        assert_eq!((between.received, between.completed, between.failures()), (13, 10, 1));
    }
}
