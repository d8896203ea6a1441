//! Goal 5: under a thousand requests per second, the slowest request while a release is under
//! way beside the slowest before it.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use stead_testkit::load::{Mix, Plan};

use crate::answer::wait_for;
use crate::contest::{Better, Outcome, Row};
use crate::goals::other;
use crate::goals::stall::Front;
use crate::platform::{App, Platform};
use crate::workshop::Workshop;

/// Load before a release, to have something to compare with, and after it is through.
const BEFORE: Duration = Duration::from_secs(3);
const AFTER: Duration = Duration::from_millis(500);
const MIX: Mix = Mix { keep_alive: 12, one_shot: 4, ..Mix::NOBODY };
/// Of the service that starts slowly, in milliseconds.
const START_DELAY: u64 = 5000;

const APPS: [(&str, App); 4] = [
    ("stead, handover, nginx", App { image: "nginx", ..App::new("slowest-nginx", "handover") }),
    (
        "stead, handover, starts in 5 s",
        App { start_delay: START_DELAY, ..App::new("slowest-late", "handover") },
    ),
    (
        "stead, in-place, nginx",
        App { image: "nginx", ..App::new("slowest-nginx-in-place", "in-place") },
    ),
    (
        "stead, in-place, starts in 5 s",
        App { start_delay: START_DELAY, ..App::new("slowest-late-in-place", "in-place") },
    ),
];

/// Somebody who releases, and what came of it, release by release.
struct Way {
    name: &'static str,
    address: SocketAddr,
    host: String,
    release: Box<dyn FnMut(&'static str) -> anyhow::Result<()>>,
    version: &'static str,
    /// Slowest during the release beyond the slowest before it, milliseconds.
    beyond: Vec<f64>,
    before: Vec<f64>,
    failed: Vec<f64>,
    trouble: Option<String>,
}

impl Way {
    fn new(
        name: &'static str,
        address: SocketAddr,
        host: String,
        release: impl FnMut(&'static str) -> anyhow::Result<()> + 'static,
    ) -> Self {
        Self {
            name,
            address,
            host,
            release: Box::new(release),
            version: "1",
            beyond: Vec::new(),
            before: Vec::new(),
            failed: Vec::new(),
            trouble: None,
        }
    }
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
                wait_for(Platform::gateway(), &host, version)?;
                // Over when the old one is gone, too.
                platform.settled(app.name, 1)
            }));
        }
    }
    if workshop.wants("docker") {
        workshop.docker()?;
        let folder = workshop.folder().join("slowest");
        let front = Front::start(&folder, "slowest", 24_200, START_DELAY)?;
        let name = "docker, new one first, starts in 5 s";
        ways.push(Way::new(name, front.listen(), "bench".to_owned(), move |version| {
            front.start_beside(version)
        }));
    }

    let runtime = tokio::runtime::Runtime::new()?;
    for _ in 0..rounds {
        for way in &mut ways {
            if way.trouble.is_none()
                && let Err(error) = turn(&runtime, way)
            {
                way.trouble = Some(format!("{error:#}"));
            }
        }
    }
    let mut notes = vec![
        "Slowest request during the release minus the slowest of the three seconds before it. \
         From the call to when the old Container is gone."
            .to_owned(),
    ];
    for way in &ways {
        let median = |figures: &[f64]| Row::new("", figures.to_vec()).percentile(0.5);
        notes.push(format!(
            "{}: slowest before, p50: {:.2} ms; failed requests: {:.0}",
            way.name,
            median(&way.before).unwrap_or_default(),
            way.failed.iter().sum::<f64>(),
        ));
    }
    for (name, app) in APPS {
        if workshop.wants(name) {
            let platform = workshop.platform()?;
            if app.strategy == "handover" {
                notes.push(format!("{name}: {} requests were parked", platform.parked(app.name)?));
            }
            platform.delete(app.name)?;
        }
    }
    let row =
        |way: &Way| Row { trouble: way.trouble.clone(), ..Row::new(way.name, way.beyond.clone()) };
    Ok(vec![Outcome {
        title: "Goal 5: slowest request during a release beyond the slowest before it".to_owned(),
        goal: "handover: at most 5 ms, at the median of ten releases; nothing fails or is parked",
        unit: "ms",
        better: Better::Less,
        rows: ways.iter().map(row).collect(),
        notes,
    }])
}

/// One release under load.
fn turn(runtime: &tokio::runtime::Runtime, way: &mut Way) -> anyhow::Result<()> {
    let _context = runtime.enter();
    let plan = Plan {
        per_second: Some(1000.0),
        timeout: Duration::from_secs(10),
        ..Plan::new(way.address, way.host.clone()).mix(MIX)
    };
    let load = plan.start();
    // The load has its duration; this is not waiting for a condition.
    thread::sleep(BEFORE);
    way.version = other(way.version);
    let begun = load.elapsed_ms();
    (way.release)(way.version)?;
    let through = load.elapsed_ms();
    thread::sleep(AFTER);
    let report = runtime.block_on(load.stop());
    anyhow::ensure!(report.sent > 1000, "the load sent only {} requests", report.sent);
    // The first second warms connections and caches.
    let before = report.slowest_between(1000.0, begun - stead_testkit::load::Window::MS);
    let during = report.slowest_between(begun, through);
    way.before.push(before);
    way.beyond.push(during - before);
    way.failed.push(report.failed.len() as f64);
    Ok(())
}
