//! The simulated engine, sound or not, as a [`Subject`].

use std::sync::Arc;

use async_trait::async_trait;
use stead_core::engine::Engine;
use stead_core::registry::Login;
use stead_core::secret::Secret;

use super::super::{Images, Registries, Subject, Witness};
use super::{Defect, FaultyEngine};
use crate::sim::{SimEngine, SimMachine};

/// A simulated engine, sound or with a defect, on a machine of its own.
pub struct SimSubject {
    machine: SimMachine,
    witness: Arc<Witness>,
    defect: Option<Defect>,
    engine: Option<Arc<dyn Engine>>,
}

impl SimSubject {
    /// Opens it. Must be called inside a tokio runtime.
    pub fn open(witness: Arc<Witness>, defect: Option<Defect>) -> Self {
        let machine = SimMachine::new();
        let mut subject = Self { machine, witness, defect, engine: None };
        subject.open_engine();
        subject
    }

    fn open_engine(&mut self) {
        let (machine, witness) = (self.machine.clone(), self.witness.clone());
        self.engine = Some(match self.defect {
            Some(defect) => Arc::new(FaultyEngine::open(machine, witness, defect)),
            None => Arc::new(SimEngine::open(machine, witness.clone(), witness)),
        });
    }
}

#[async_trait]
impl Subject for SimSubject {
    fn engine(&self) -> Arc<dyn Engine> {
        self.engine.clone().expect("it is open between two calls")
    }

    async fn restart(&mut self) {
        self.engine = None;
        match self.defect {
            Some(Defect::ForgetsAtRestart) => self.machine = SimMachine::new(),
            Some(Defect::ForgetsTraffic) => self.machine.forget_traffic(),
            Some(Defect::WaitsToBeAsked) => self.machine.forget_fleets(),
            _ => {}
        }
        self.open_engine();
    }

    fn images(&self) -> Images {
        Images {
            good: "sim/ready:1".into(),
            second: "sim/ready:2".into(),
            crashing: "sim/crash:1".into(),
            crash_code: 3,
            never_ready: "sim/never-ready:1".into(),
        }
    }

    fn registries(&self) -> Registries {
        let host = |name: &str| name.parse().expect("it is a host");
        let password = Secret::new("right".into()).expect("it is a password");
        let login = Login { user: "user".into(), password };
        Registries { guarded: host("guarded"), login, open: host("open"), away: host("away") }
    }
}
