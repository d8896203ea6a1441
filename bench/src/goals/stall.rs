//! Goal 5: an upgrade under a thousand requests per second: what fails, and for how long service
//! stalls.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use crate::answer::wait_for;
use crate::contest::{Better, Outcome, Row};
use crate::goals::under_load::{Loaded, Way, releases};
use crate::goals::{loopback, other};
use crate::peers::{Docker, Nginx};
use crate::platform::{App, Platform};
use crate::workshop::Workshop;

const NAME: &str = "stead-bench-stall";
const APPS: [(&str, App); 2] = [
    ("stead, in-place", App::new("stall-in-place", "in-place")),
    ("stead, handover", App::new("stall-handover", "handover")),
];
/// Load before the upgrade, and after it.
const AROUND: Duration = Duration::from_secs(2);

/// What came of one upgrade.
struct Noted {
    failed: f64,
    /// Milliseconds.
    stall: f64,
}

pub(super) fn measure(workshop: &mut Workshop, rounds: usize) -> anyhow::Result<Vec<Outcome>> {
    let mut ways = Vec::new();
    for (name, app) in APPS {
        if workshop.wants(name) {
            let platform = workshop.platform()?;
            platform.deploy(app, "1")?;
            platform.settled(app.name, 1)?;
            let host = Platform::host(app.name);
            ways.push(Way::new(name, Platform::gateway(), host.clone(), move |version| {
                platform.deploy(app, version)?;
                wait_for(Platform::gateway(), &host, version).map(drop)
            }));
        }
    }
    let folder = workshop.folder().to_owned();
    if workshop.wants("docker") {
        workshop.docker()?;
        let front = Front::start(&folder.join("replaced"), "replaced", 24_000, 0)?;
        let host = "bench".to_owned();
        ways.push(Way::new("docker, replaced", front.listen, host.clone(), move |version| {
            front.replace(version)?;
            wait_for(front.listen, "bench", version).map(drop)
        }));
        let front = Front::start(&folder.join("beside"), "beside", 24_100, 0)?;
        let name = "docker, new one first";
        ways.push(Way::new(name, front.listen, host, move |version| front.start_beside(version)));
    }

    releases(&mut ways, rounds, (AROUND, AROUND), |Loaded { report, .. }| Noted {
        failed: report.failed.len() as f64,
        // Either nobody got a good answer for a while, or somebody waited long for one.
        stall: report.longest_gap_ms.max(report.latency.max_ms - report.latency.p50_ms),
    })?;
    let outcomes = outcomes(&ways);
    for (name, app) in APPS {
        if workshop.wants(name) {
            workshop.platform()?.delete(app.name)?;
        }
    }
    Ok(outcomes)
}

fn outcomes(ways: &[Way<Noted>]) -> Vec<Outcome> {
    let rows = |figure: fn(&Noted) -> f64| -> Vec<Row> {
        ways.iter().map(|way| way.row(figure)).collect()
    };
    vec![
        Outcome {
            title: "Goal 5: upgrade under 1000 requests per second: failed requests".to_owned(),
            goal: "0",
            unit: "failed",
            better: Better::Less,
            rows: rows(|noted| noted.failed),
            notes: vec!["A request that dies with a kept connection counts as failed.".to_owned()],
        },
        Outcome {
            title: "Goal 5: upgrade under 1000 requests per second: worst stall".to_owned(),
            goal: "100x shorter than docker",
            unit: "ms",
            better: Better::Less,
            rows: rows(|noted| noted.stall),
            notes: vec![
                "The longest time without any good answer, or the slowest good answer beyond the \
                 median, whichever is longer."
                    .to_owned(),
                "docker, replaced: stop, remove, run, reload of nginx. New one first: run, \
                 reload, then remove; for that two copies must be able to run at once."
                    .to_owned(),
            ],
        },
    ]
}

/// nginx in front of a docker container. Dropped, it removes the container.
pub(super) struct Front {
    nginx: Nginx,
    name: &'static str,
    listen: SocketAddr,
    base: u16,
    start_delay: u64,
}

impl Front {
    /// On ports from `base`; the App takes so many milliseconds until it listens.
    pub(super) fn start(
        folder: &Path,
        name: &'static str,
        base: u16,
        start_delay: u64,
    ) -> anyhow::Result<Self> {
        let (listen, upstream) = (loopback(base), loopback(base + 1));
        Docker::run_slow(&container(name, "1"), "1", upstream, start_delay)?;
        wait_for(upstream, "bench", "1")?;
        let nginx = Nginx::start(folder, listen, upstream)?;
        wait_for(listen, "bench", "1")?;
        Ok(Self { nginx, name, listen, base, start_delay })
    }

    /// Where nginx listens.
    pub(super) fn listen(&self) -> SocketAddr {
        self.listen
    }

    /// Stops and removes the old container, runs the new one, moves nginx.
    fn replace(&self, version: &'static str) -> anyhow::Result<()> {
        Docker::remove(&container(self.name, other(version)))?;
        let upstream = self.run(version)?;
        self.nginx.reload(upstream)
    }

    /// Runs the new container, moves nginx, then removes the old container.
    pub(super) fn start_beside(&self, version: &'static str) -> anyhow::Result<()> {
        let upstream = self.run(version)?;
        self.nginx.reload(upstream)?;
        wait_for(self.listen, "bench", version)?;
        Docker::remove(&container(self.name, other(version)))
    }

    fn run(&self, version: &'static str) -> anyhow::Result<SocketAddr> {
        let upstream = loopback(self.base + if version == "1" { 1 } else { 2 });
        Docker::run_slow(&container(self.name, version), version, upstream, self.start_delay)?;
        wait_for(upstream, "bench", version)?;
        Ok(upstream)
    }
}

impl Drop for Front {
    fn drop(&mut self) {
        for version in crate::workshop::VERSIONS {
            // Only one of them runs.
            let _ = Docker::remove(&container(self.name, version));
        }
    }
}

fn container(name: &str, version: &str) -> String {
    format!("{NAME}-{name}-{version}")
}
