//! stead's embedded engine, called in process: for what the platform has no call for, a program
//! that runs once and is forgotten.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::ensure;
use stead_engine_node::sandbox::{ContainerSpec, Host, HostConfig, Resources, SandboxSpec, Status};
use tokio::runtime::Runtime;

use crate::contest::Row;

/// An engine with its own Sandboxes, links and cgroups.
#[derive(Debug)]
pub(crate) struct Engine {
    runtime: Runtime,
    host: Host,
    rootfs: PathBuf,
    folder: PathBuf,
    pool: usize,
    runs: AtomicU64,
    steps: Mutex<Vec<[f64; STEPS.len()]>>,
}

/// The steps of a run, in order.
const STEPS: [&str; 5] = ["create", "prepare", "start", "exit", "remove"];

impl Engine {
    /// An engine that keeps `pool` Sandboxes ready. `name` has at most eight letters.
    pub(crate) fn open(name: &str, folder: &Path, pool: usize) -> anyhow::Result<Self> {
        let runtime = Runtime::new()?;
        let config = HostConfig {
            run_dir: Path::new("/run").join(name),
            data_dir: folder.join(name),
            name: name.to_owned(),
            pool,
            ..HostConfig::default()
        };
        let (host, _) = runtime.block_on(Host::open(config))?;
        let rootfs = folder.join("rootfs");
        let folder = folder.join(name);
        Ok(Self {
            runtime,
            host,
            rootfs,
            folder,
            pool,
            runs: AtomicU64::new(0),
            steps: Mutex::default(),
        })
    }

    /// Where the time of the runs went: the median of each step.
    pub(crate) fn summary(&self) -> String {
        let steps = self.steps.lock().unwrap_or_else(PoisonError::into_inner);
        let median = |step: usize| {
            let figures = steps.iter().map(|run| run[step]).collect();
            Row::new("", figures).percentile(0.5).unwrap_or(f64::NAN)
        };
        let named = STEPS.iter().enumerate();
        let parts = named.map(|(step, name)| format!("{name} {:.2}", median(step)));
        format!("p50 in ms: {}", parts.collect::<Vec<_>>().join(", "))
    }

    /// Waits until the pool is full: the state between two deployments of a quiet machine.
    pub(crate) fn settle(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.host.pooled() < self.pool && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Creates a Sandbox, runs a program in it that exits at once, and removes it.
    pub(crate) fn run_once(&self) -> anyhow::Result<()> {
        self.runtime.block_on(self.run())
    }

    /// The same by so many tasks, `each` times each.
    pub(crate) fn run_many(self: &Arc<Self>, tasks: usize, each: usize) -> anyhow::Result<()> {
        self.runtime.block_on(async {
            let mut running = tokio::task::JoinSet::new();
            for _ in 0..tasks {
                let engine = Arc::clone(self);
                running.spawn(async move {
                    for _ in 0..each {
                        engine.run().await?;
                    }
                    anyhow::Ok(())
                });
            }
            // To the last one, also after an error: each holds on to the engine.
            let mut outcome = Ok(());
            while let Some(ended) = running.join_next().await {
                outcome = outcome.and(ended?);
            }
            outcome
        })
    }

    async fn run(&self) -> anyhow::Result<()> {
        let number = self.runs.fetch_add(1, Ordering::Relaxed);
        let mut times = vec![Instant::now()];
        let id = format!("bench-{number}");
        let sandbox = self
            .host
            .create(SandboxSpec {
                id: id.clone(),
                hostname: "bench".to_owned(),
                namespace: "default".to_owned(),
                ..SandboxSpec::default()
            })
            .await?;
        times.push(Instant::now());
        let container = ContainerSpec {
            id: "main".to_owned(),
            layers: vec![self.rootfs.clone()],
            argv: vec!["/hello".to_owned()],
            env: vec![("EXIT_AT_ONCE".to_owned(), "0".to_owned())],
            log: self.folder.join("output.log"),
            resources: Resources { pids: Some(64), ..Resources::default() },
            ..ContainerSpec::default()
        };
        sandbox.prepare(container).await?;
        times.push(Instant::now());
        sandbox.start("main").await?;
        times.push(Instant::now());
        let exit = sandbox.wait("main").await?;
        times.push(Instant::now());
        ensure!(exit.status == Status::Code(0), "the program ended with {exit:?}");
        self.host.remove(&id).await?;
        times.push(Instant::now());

        let mut steps = [0.0; STEPS.len()];
        for (step, pair) in steps.iter_mut().zip(times.windows(2)) {
            *step = (pair[1] - pair[0]).as_secs_f64() * 1000.0;
        }
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).push(steps);
        Ok(())
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(error) = self.runtime.block_on(self.host.destroy_all()) {
            eprintln!("bench: the engine left something behind: {error}");
        }
    }
}
