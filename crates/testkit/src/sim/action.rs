//! What happens to a simulated world from outside, written down so that it can be repeated.

use std::fmt;

use serde::{Deserialize, Serialize};
use stead_core::manifest::Strategy;
use stead_core::time::Micros;

use super::node::Fault;

/// What a person deploys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deployment {
    /// Behaviour of the image: a name of [`super::Script`].
    pub image: String,
    /// Its tag. The same tag is the same image.
    pub tag: u8,
    /// How Instances change.
    pub strategy: Strategy,
    /// With a volume of its own, which needs a Sandbox of another shape.
    pub volume: bool,
    /// Whether it goes back by itself when it fails.
    pub auto_rollback: bool,
    /// Instances that may be out of service at once.
    pub max_unavailable: u32,
    /// Instances that may run above the wanted number.
    pub max_surge: u32,
    /// In so many batches.
    pub batches: u32,
    /// A person is waited for between them.
    pub manual: bool,
    /// So many Instances stay on the old Release until a person promotes the new one.
    pub partition: u32,
    /// The share of the requests that the first batch gets, in per cent.
    pub weight: Option<u8>,
    /// How long the old Container stays frozen.
    pub keep: Micros,
    /// How long it is watched after the last batch.
    pub watch: Micros,
    /// With hooks before and after an update, and before an Instance goes.
    pub hooks: bool,
    /// The image of a sidecar.
    pub sidecar: Option<String>,
    /// Memory that each Instance may use, in MiB.
    pub memory: u64,
}

impl Default for Deployment {
    /// A good image, handed over at once.
    fn default() -> Self {
        Self {
            image: "ready".into(),
            tag: 0,
            strategy: Strategy::Handover,
            volume: false,
            auto_rollback: true,
            max_unavailable: 0,
            max_surge: 0,
            batches: 1,
            manual: false,
            partition: 0,
            weight: None,
            keep: Micros(0),
            watch: Micros(0),
            hooks: false,
            sidecar: None,
            memory: 64,
        }
    }
}

/// One thing that happens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Action {
    /// Time passes.
    Wait(Micros),
    /// A new Release.
    Deploy(Deployment),
    /// The Release before.
    Rollback,
    /// Every Instance runs again.
    Restart,
    /// One Instance runs again.
    RestartOne(u32),
    /// Another number of Instances.
    Scale(u32),
    /// A person stops the App.
    Stop,
    /// A person starts it again.
    Start,
    /// A person ends the Rollout.
    Abort,
    /// A person pauses the Rollout.
    Pause,
    /// A person lets it go on.
    Resume,
    /// A person is content: with the batch, or with the whole Release.
    Promote {
        /// With the whole Release.
        all: bool,
    },
    /// A person takes one Instance away by name.
    Remove(u32),
    /// The gateway's figures prove that the new Release is worse.
    Worse,
    /// The machine has so many MiB of memory left; under 32 it is pressed.
    Memory(u64),
    /// A person deletes the App.
    Delete,
    /// Something happens to a Container.
    Fault(u32, Fault),
    /// `serve` ends at once, control and engine, and starts again after so long.
    CrashServe(Micros),
    /// The control plane alone ends at once, and starts again after so long.
    CrashControl(Micros),
    /// Hints get lost for so long.
    LoseHints(Micros),
}

impl Action {
    /// Whether requests can be expected to survive it without fail.
    pub fn is_calm(&self) -> bool {
        match self {
            Action::Deploy(deployment) => deployment.is_good(),
            // With no Instance there is nobody to answer.
            Action::Scale(instances) => *instances > 0,
            Action::Fault(..) | Action::CrashServe(_) | Action::CrashControl(_) => false,
            // The last Instance may go.
            Action::Remove(_) => false,
            _ => true,
        }
    }
}

impl Deployment {
    /// Whether its image does what it should.
    pub fn is_good(&self) -> bool {
        let sidecar = self.sidecar.as_ref();
        super::script(&self.reference()).works()
            && sidecar.is_none_or(|image| super::script(image).works())
    }

    /// The image's reference.
    pub fn reference(&self) -> String {
        format!("sim/{}:{}", self.image, self.tag)
    }
}

/// A seed and what happened: enough to repeat a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Log {
    /// Seed of all chance in it.
    pub seed: u64,
    /// What happened, in order.
    pub actions: Vec<Action>,
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&serde_json::to_string(self).map_err(|_| fmt::Error)?)
    }
}

/// Why a run failed, with the log that repeats it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What went wrong.
    pub what: String,
    /// When, in the world's time.
    pub at: Micros,
    /// What led to it.
    pub log: Log,
    /// The last things that happened inside the world.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "after {}: {}", self.at, self.what)?;
        for line in &self.trace {
            writeln!(f, "  {line}")?;
        }
        write!(f, "repeat it with replay(r#\"{}\"#)", self.log)
    }
}

impl std::error::Error for Failure {}
