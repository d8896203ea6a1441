//! What every engine must do, as named checks that can be run against any of them.
//!
//! [`run`] opens a fresh [`Subject`] for each check, with a [`Witness`] for its gateway and
//! its Events, and reports which checks failed and why. That the checks can fail is tested
//! with [`FaultyEngine`]s: each has one defect, and the check that is for it must reject it.
//!
//! The suite looks only at what [`Engine`] shows and at what the Witness was asked; it knows
//! nothing of processes, networks or simulators.

mod archive;
mod checks;
mod faulty;
mod parcel;
mod stage;
mod witness;

use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use stead_core::engine::Engine;
use stead_core::manifest::Manifest;
use stead_core::registry::{Login, RegistryHost};

use self::checks::Check;
pub use faulty::{Defect, FaultyEngine, SimSubject};
pub use witness::{Seen, Witness};

/// References of images that the engine under test can run.
#[derive(Debug, Clone)]
pub struct Images {
    /// Becomes ready within a second and stays so.
    pub good: String,
    /// Another image that does.
    pub second: String,
    /// Ends by itself within a second, with [`Images::crash_code`], before it is ready.
    pub crashing: String,
    /// Exit code of `crashing`.
    pub crash_code: i32,
    /// Runs and never becomes ready.
    pub never_ready: String,
}

/// Registries that the engine under test can ask.
#[derive(Debug, Clone)]
pub struct Registries {
    /// Answers only with this login, whose password is not `wrong`.
    pub guarded: RegistryHost,
    /// What `guarded` accepts.
    pub login: Login,
    /// Answers everybody.
    pub open: RegistryHost,
    /// Does not answer.
    pub away: RegistryHost,
}

/// An engine under test and the machine below it.
#[async_trait]
pub trait Subject: Send + Sync {
    /// The engine. The suite keeps it no longer than one call.
    fn engine(&self) -> Arc<dyn Engine>;

    /// Ends the engine as a crash would, and opens another on the same machine with the same
    /// Witness. Resolves once the new one takes calls.
    async fn restart(&mut self);

    /// The images to test with.
    fn images(&self) -> Images;

    /// The registries to test with.
    fn registries(&self) -> Registries;

    /// Fits a check's settings to this machine: a probe, a port. By default nothing.
    fn fit(&self, _settings: &mut Manifest) {}

    /// Removes everything. Called after each check, failed or not.
    async fn end(self: Box<Self>) {}
}

/// What became of the checks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Names of the checks that passed.
    pub passed: Vec<&'static str>,
    /// The others, and why they failed.
    pub failed: Vec<(&'static str, String)>,
    /// Those that the engine says it lacks a capability for, and which. They were not run.
    pub lacking: Vec<(&'static str, &'static str)>,
}

impl Report {
    /// Whether the check `name` failed.
    pub fn rejects(&self, name: &str) -> bool {
        self.failed.iter().any(|(failed, _)| *failed == name)
    }

    /// Passes when every check did that was run.
    ///
    /// # Panics
    /// When one failed, naming all that did.
    #[track_caller]
    pub fn assert_passed(&self) {
        assert!(self.failed.is_empty(), "{self}");
        assert!(!self.passed.is_empty(), "no check was run");
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for name in &self.passed {
            writeln!(f, "ok      {name}")?;
        }
        for (name, why) in &self.failed {
            writeln!(f, "FAILED  {name}: {why}")?;
        }
        for (name, capability) in &self.lacking {
            writeln!(f, "lacks   {name}: {capability}")?;
        }
        let (passed, failed) = (self.passed.len(), self.failed.len());
        write!(f, "{passed} passed, {failed} failed, {} lacking", self.lacking.len())
    }
}

/// Runs every check, each on a Subject of its own that `open` makes around a Witness.
pub async fn run<F, O>(open: F) -> Report
where
    F: Fn(Arc<Witness>) -> O,
    O: Future<Output = Box<dyn Subject>>,
{
    run_only(&[], open).await
}

/// Runs the checks that `names` lists; all of them if it lists none.
pub async fn run_only<F, O>(names: &[&str], open: F) -> Report
where
    F: Fn(Arc<Witness>) -> O,
    O: Future<Output = Box<dyn Subject>>,
{
    let mut report = Report::default();
    for Check { name, lacks, run } in checks::ALL {
        if !names.is_empty() && !names.contains(name) {
            continue;
        }
        let witness = Arc::new(Witness::default());
        let subject = open(witness.clone()).await;
        if let Some(capability) = lacks(&subject.engine().capabilities()) {
            report.lacking.push((name, capability));
            subject.end().await;
            continue;
        }
        let mut stage = stage::Stage::new(subject, witness.clone(), name);
        // A broken rule says more than what followed from it.
        let result = run(&mut stage).await;
        let result = stage.verdict().and(result);
        stage.end().await;
        match result {
            Ok(()) => report.passed.push(name),
            Err(why) => report.failed.push((name, why)),
        }
    }
    report
}

/// The names of all checks, in the order they are run.
pub fn names() -> impl Iterator<Item = &'static str> {
    checks::ALL.iter().map(|check| check.name)
}
