//! The goals of `performance.md` that are measured, one file each.

mod churn;
mod create;
mod footprint;
mod restart;
mod scale;
mod stall;
mod upgrade;

use std::net::SocketAddr;

use crate::contest::Outcome;
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
        title: "in-place upgrade, call to first answer of the new version",
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
        name: "restart",
        number: "7",
        title: "in-place restart, call to first answer",
        rounds: 20,
        measure: restart::measure,
    },
    Goal {
        name: "scale",
        number: "10",
        title: "1 to 100 instances, all serving",
        rounds: 2,
        measure: scale::measure,
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
