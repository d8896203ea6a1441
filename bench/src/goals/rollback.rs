//! Goal 6: from the call that asks for the version before to its first answer. stead has it
//! frozen; the others deploy it again.

use crate::answer::{Answer, timed, wait_for};
use crate::contest::{Better, Contestant, Outcome, interleave};
use crate::goals::loopback;
use crate::peers::{Docker, Job};
use crate::platform::{App, Platform};
use crate::workshop::Workshop;

const NAME: &str = "stead-bench-rollback";

/// What is rolled back: its name here, and how long it takes until it listens, in milliseconds.
struct Service {
    title: &'static str,
    stead: App,
    start_delay: u64,
    /// Of the peers' ports.
    port: u16,
}

const SERVICES: [Service; 2] = [
    Service {
        title: "the trivial App",
        stead: App::new("rollback", "handover"),
        start_delay: 0,
        port: 25_000,
    },
    Service {
        title: "an App that takes five seconds to start",
        stead: App { start_delay: 5000, ..App::new("rollback-slow", "handover") },
        start_delay: 5000,
        port: 25_100,
    },
];

pub(super) fn measure(workshop: &mut Workshop, rounds: usize) -> anyhow::Result<Vec<Outcome>> {
    SERVICES.iter().map(|service| outcome(workshop, rounds, service)).collect()
}

fn outcome(workshop: &mut Workshop, rounds: usize, service: &Service) -> anyhow::Result<Outcome> {
    let Service { title, stead: app, start_delay, port } = *service;
    let mut contestants = Vec::new();
    if workshop.wants("stead") {
        contestants.push(stead(workshop.platform()?, app)?);
    }
    if workshop.wants("crun") {
        contestants.push(crun(workshop, start_delay, port)?);
    }
    if workshop.wants("podman") {
        let (podman, address) = (workshop.podman()?, loopback(port + 1));
        let run = move |version: &str| {
            // There is none before the first.
            let _ = podman.remove(NAME);
            podman.run_slow(NAME, version, address, start_delay)?;
            wait_for(address, "bench", version).map(drop)
        };
        contestants.push(back_and_forth("podman, deployed again", run));
    }
    if workshop.wants("docker") {
        workshop.docker()?;
        let address = loopback(port + 2);
        contestants.push(back_and_forth("docker, deployed again", move |version| {
            let _ = Docker::remove(NAME);
            Docker::run_slow(NAME, version, address, start_delay)?;
            wait_for(address, "bench", version).map(drop)
        }));
    }
    let rows = interleave(contestants, rounds);
    clean(workshop, service)?;
    Ok(Outcome {
        title: format!("Goal 6: rollback of {title}, call to first answer of the old version"),
        goal: "single-digit ms",
        unit: "ms",
        better: Better::Less,
        rows,
        notes: vec![
            "stead: the old Container is frozen and is thawed; API call over the Unix socket, \
             answers through the gateway."
                .to_owned(),
            "The others: remove, and run the old version again.".to_owned(),
        ],
    })
}

fn stead(platform: Platform, app: App) -> anyhow::Result<Contestant<'static>> {
    let host = Platform::host(app.name);
    platform.deploy(app, "1")?;
    platform.settled(app.name, 1)?;
    let Answer { started, .. } = wait_for(Platform::gateway(), &host, "1")?;
    let (forward, host_before) = (platform.clone(), host.clone());
    let mut contestant = Contestant::new("stead, thawed", move || {
        let mut again = String::new();
        let took = timed(|| {
            platform.rollback(app.name)?;
            again = wait_for(Platform::gateway(), &host, "1")?.started;
            Ok(())
        });
        anyhow::ensure!(again == started, "version 1 was started again instead of thawed");
        took
    });
    contestant.before(move || {
        forward.settled(app.name, 1)?;
        forward.deploy(app, "2")?;
        wait_for(Platform::gateway(), &host_before, "2")?;
        forward.settled(app.name, 1)
    });
    Ok(contestant)
}

fn crun(workshop: &Workshop, start_delay: u64, port: u16) -> anyhow::Result<Contestant<'static>> {
    let runtime = workshop.runtime("crun")?;
    let mut bundles = Vec::new();
    for version in crate::workshop::VERSIONS {
        let id = container(port, version);
        let env = [
            format!("VERSION={version}"),
            format!("PORT={port}"),
            format!("START_DELAY_MS={start_delay}"),
        ];
        let bundle = runtime.bundle(Job { id: &id, env: &env, own_network: false })?;
        bundles.push((id, bundle));
    }
    let run = move |version: &str| {
        for (id, _) in &bundles {
            // At most one of them runs.
            let _ = runtime.stop(id);
        }
        let (id, bundle) = &bundles[usize::from(version == "2")];
        runtime.start(id, bundle)?;
        wait_for(loopback(port), "bench", version).map(drop)
    };
    Ok(back_and_forth("crun, run again", run))
}

/// Version 2 before each turn, off the clock; version 1 again on it.
fn back_and_forth(
    name: &'static str,
    run: impl Fn(&str) -> anyhow::Result<()> + Clone + 'static,
) -> Contestant<'static> {
    let forward = run.clone();
    let mut contestant = Contestant::new(name, move || timed(|| run("1")));
    contestant.before(move || forward("2"));
    contestant
}

fn clean(workshop: &mut Workshop, service: &Service) -> anyhow::Result<()> {
    if workshop.wants("stead") {
        workshop.platform()?.delete(service.stead.name)?;
    }
    if workshop.wants("crun") {
        let runtime = workshop.runtime("crun")?;
        for version in crate::workshop::VERSIONS {
            // Only one of them runs.
            let _ = runtime.stop(&container(service.port, version));
        }
    }
    if workshop.wants("podman") {
        workshop.podman()?.remove(NAME)?;
    }
    if workshop.wants("docker") {
        Docker::remove(NAME)?;
    }
    Ok(())
}

/// The name of crun's container.
fn container(port: u16, version: &str) -> String {
    format!("{NAME}-{port}-{version}")
}
