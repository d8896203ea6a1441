//! The goals of `performance.md` that are measured, one file each.

mod churn;
mod create;
mod footprint;
mod jvm;
mod pull;
mod restart;
mod rollback;
mod scale;
mod site;
mod slowest;
mod stall;
mod under_load;
mod upgrade;

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;

use crate::contest::Outcome;
use crate::platform::{Phases, Platform};
use crate::workshop::Workshop;

/// A goal and the program that measures it.
pub(crate) struct Goal {
    /// For the command line.
    pub(crate) name: &'static str,
    /// Its number in `performance.md`.
    pub(crate) number: &'static str,
    /// One line.
    pub(crate) title: &'static str,
    /// Rounds when nobody says otherwise.
    pub(crate) rounds: usize,
    /// Measures so many rounds.
    pub(crate) measure: fn(&mut Workshop, usize) -> anyhow::Result<Vec<Outcome>>,
}

/// In the order they are measured.
pub(crate) const GOALS: &[Goal] = &[
    Goal {
        name: "create",
        number: "1",
        title: "hardened create, exit, clean",
        rounds: 50,
        measure: create::measure,
    },
    Goal {
        name: "churn",
        number: "2",
        title: "containers per second, sustained",
        rounds: 5,
        measure: churn::measure,
    },
    Goal {
        name: "upgrade",
        number: "4",
        title: "upgrade, call to first answer of the new version",
        rounds: 20,
        measure: upgrade::measure,
    },
    Goal {
        name: "stall",
        number: "5",
        title: "upgrade under 1000 requests per second",
        rounds: 3,
        measure: stall::measure,
    },
    Goal {
        name: "slowest",
        number: "5",
        title: "slowest request during a release beside the slowest before it",
        rounds: 10,
        measure: slowest::measure,
    },
    Goal {
        name: "rollback",
        number: "6",
        title: "rollback, call to first answer of the old version",
        rounds: 10,
        measure: rollback::measure,
    },
    Goal {
        name: "restart",
        number: "7",
        title: "restart, call to first answer",
        rounds: 20,
        measure: restart::measure,
    },
    Goal {
        name: "jvm",
        number: "8",
        title: "start of a Spring Boot service, call to first answer",
        rounds: 7,
        measure: jvm::measure,
    },
    Goal {
        name: "scale",
        number: "10",
        title: "1 to 100 instances, all serving",
        rounds: 2,
        measure: scale::measure,
    },
    Goal {
        name: "pull",
        number: "11",
        title: "registry to first answer, 200 MB in eight layers",
        rounds: 5,
        measure: pull::measure,
    },
    Goal {
        name: "site",
        number: "s",
        title: "static files, beside nginx",
        rounds: 5,
        measure: site::measure,
    },
    Goal {
        name: "footprint",
        number: "f",
        title: "private memory at 0 and 100 Instances",
        rounds: 1,
        measure: footprint::measure,
    },
];

/// A port on loopback. In a network namespace of our own all are free; each contestant has its
/// own range.
fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// The other version.
fn other(version: &'static str) -> &'static str {
    if version == "1" { "2" } else { "1" }
}

/// Phases of one contestant's changes, collected by its turns and read after them.
#[derive(Debug, Clone)]
struct PhasesOf {
    name: &'static str,
    phases: Rc<RefCell<Phases>>,
}

impl PhasesOf {
    fn new(name: &'static str) -> Self {
        Self { name, phases: Rc::default() }
    }

    /// Adds the App's last change.
    fn collect(&self, platform: &Platform, app: &str) -> anyhow::Result<()> {
        self.phases.borrow_mut().collect(platform, app)
    }

    fn summary(&self) -> String {
        self.phases.borrow().summary(self.name)
    }
}
