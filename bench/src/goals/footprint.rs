//! Private memory of the platform's processes, idle, with no Instance and with a hundred.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::Context;

use crate::contest::{Better, Outcome, Row};
use crate::platform::App;
use crate::workshop::Workshop;

const INSTANCES: u32 = 100;
/// Caches and buffers of the last change settle before the look.
const SETTLE: Duration = Duration::from_secs(3);

pub(super) fn measure(workshop: &mut Workshop, _rounds: usize) -> anyhow::Result<Vec<Outcome>> {
    let mut rows = Vec::new();
    if workshop.wants("stead") {
        let platform = workshop.platform()?;
        thread::sleep(SETTLE);
        let (empty, slab_before) = (Memory::now()?, slab()?);
        let app = App { instances: INSTANCES, ..App::new("footprint", "in-place") };
        platform.deploy(app, "1")?;
        platform.settled("footprint", u64::from(INSTANCES))?;
        thread::sleep(SETTLE);
        let (full, slab_after) = (Memory::now()?, slab()?);
        platform.delete("footprint")?;
        let each = |mib: f64| mib / f64::from(INSTANCES);
        rows.extend([
            Row::new("stead serve, 0 Instances", vec![empty.serve]),
            Row::new("stead serve, 100 Instances", vec![full.serve]),
            Row::new("stead gateway, 0 Instances", vec![empty.gateway]),
            Row::new("stead gateway, 100 Instances", vec![full.gateway]),
            Row::new(
                "stead holder and init, per Instance",
                vec![each(full.holders - empty.holders)],
            ),
            Row::new("stead, kernel slab per Instance", vec![each(slab_after - slab_before)]),
        ]);
    }
    Ok(vec![Outcome {
        title: "Footprint: private memory, idle".to_owned(),
        goal: "serve 60 MiB, gateway 30 MiB, per Instance 0.7 MiB",
        unit: "MiB",
        better: Better::Less,
        rows,
        notes: vec![
            "The App's own process is not counted. Slab is the whole machine's: others' work \
             moves it."
                .to_owned(),
        ],
    }])
}

/// Private memory of each kind of process, MiB.
#[derive(Debug, Default)]
struct Memory {
    serve: f64,
    gateway: f64,
    holders: f64,
}

impl Memory {
    /// Of all processes here: the namespaces are ours alone.
    fn now() -> anyhow::Result<Self> {
        let mut memory = Self::default();
        for entry in fs::read_dir("/proc")? {
            let folder = entry?.path();
            let Ok(command) = fs::read(folder.join("cmdline")) else { continue };
            let words: Vec<_> = command.split(|byte| *byte == 0).collect();
            let program = words.first().map(|word| String::from_utf8_lossy(word).into_owned());
            let program = program.unwrap_or_default();
            let name = program.rsplit('/').next().unwrap_or_default();
            let role = words.get(1).copied().unwrap_or_default();
            let kind = match (name, role) {
                ("stead", b"serve") => &mut memory.serve,
                ("stead", b"gateway") => &mut memory.gateway,
                // Forked from it, the init of each Container has the same name.
                ("stead-holder", _) => &mut memory.holders,
                _ => continue,
            };
            *kind += private(&folder).unwrap_or(0.0);
        }
        Ok(memory)
    }
}

/// Private pages of a process, MiB; `None` when it has just ended.
fn private(process: &std::path::Path) -> Option<f64> {
    let text = fs::read_to_string(process.join("smaps_rollup")).ok()?;
    let private = text.lines().filter(|line| line.starts_with("Private_"));
    Some(private.filter_map(kib).sum::<f64>() / 1024.0)
}

fn slab() -> anyhow::Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let line = text.lines().find(|line| line.starts_with("Slab:"));
    Ok(line.and_then(kib).context("/proc/meminfo has no Slab")? / 1024.0)
}

/// `Name:   123 kB`
fn kib(line: &str) -> Option<f64> {
    line.split_whitespace().nth(1)?.parse().ok()
}
