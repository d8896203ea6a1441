//! Measures what a Sandbox costs: `cargo run --release -p stead-engine-node --example
//! sandbox_timings [ROUNDS]`. Needs root and `/bin/busybox`, linked statically.
//!
//! Times are wall-clock milliseconds as a caller sees them: median, 99th percentile, worst.

use std::path::Path;
use std::time::{Duration, Instant};

use stead_engine_node::sandbox::{
    ContainerSpec, ExecSpec, Host, HostConfig, Resources, Sandbox, SandboxError, SandboxSpec, Slot,
    Timings,
};

const GRACE: Duration = Duration::from_secs(5);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let rounds = std::env::args().nth(1).map_or(Ok(100), |text| text.parse())?;
    let runtime = tokio::runtime::Runtime::new()?;
    runtime.block_on(measure(rounds))
}

async fn measure(rounds: usize) -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join(format!("sandbox-timings-{}", std::process::id()));
    make_image(&folder.join("image"))?;
    let config = HostConfig {
        run_dir: folder.join("run"),
        data_dir: folder.join("data"),
        name: format!("b{:x}", std::process::id() & 0xff_ffff),
        ..HostConfig::default()
    };
    let begun = Instant::now();
    let (host, _) = Host::open(config).await?;
    println!("open                      {:>8.3} ms", millis(begun.elapsed()));

    let measured = all(&host, &folder, rounds).await;
    host.destroy_all().await?;
    std::fs::remove_dir_all(&folder)?;
    measured
}

async fn all(host: &Host, folder: &Path, rounds: usize) -> Result<(), Box<dyn std::error::Error>> {
    let (mut pooled, mut unpooled) = (Vec::new(), Vec::new());
    let (mut prepare, mut start, mut remove) = (Vec::new(), Vec::new(), Vec::new());
    let mut phases = Vec::new();
    for round in 0..rounds {
        while host.pooled() < 4 {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let id = format!("s{round}");
        let begun = Instant::now();
        let sandbox = host.create(spec(&id)).await?;
        pooled.push(begun.elapsed());
        let (prepared, started) = begin(&sandbox, folder, "main").await?;
        prepare.push(prepared.total);
        phases.push(prepared);
        start.push(started);
        let begun = Instant::now();
        host.remove(&id).await?;
        remove.push(begun.elapsed());
    }
    for round in 0..rounds {
        // An address that no pooled one has is made on the spot.
        let id = format!("u{round}");
        let wanted_ip = Some([10, 88, 40, round as u8].into());
        let begun = Instant::now();
        host.create(SandboxSpec { wanted_ip, ..spec(&id) }).await?;
        unpooled.push(begun.elapsed());
        host.remove(&id).await?;
    }

    let sandbox = host.create(spec("swap")).await?;
    begin(&sandbox, folder, "c0").await?;
    println!("holder, private memory    {:>8} KiB", holder_memory(folder)?);
    let (mut swap, mut exec) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        let (old, new) = (format!("c{}", round - 1), format!("c{round}"));
        sandbox.prepare(container(folder, &new)).await?;
        let begun = Instant::now();
        sandbox.stop(&old, libc::SIGTERM, GRACE).await?;
        sandbox.start(&new).await?;
        swap.push(begun.elapsed());
        sandbox.discard(&old).await?;
        let begun = Instant::now();
        let spec = ExecSpec { argv: vec!["true".into()], ..ExecSpec::default() };
        sandbox.exec(&new, spec).await?.wait().await?;
        exec.push(begun.elapsed());
    }
    let (mut second, mut flip) = (Vec::new(), Vec::new());
    for round in 0..rounds.min(20) {
        let id = format!("b{round}");
        let sandbox = host.create(spec(&id)).await?;
        begin(&sandbox, folder, "a").await?;
        let in_b = ContainerSpec { slot: Slot::B, ..container(folder, "b") };
        second.push(sandbox.prepare(in_b).await?.slot);
        for slot in [Slot::B, Slot::A, Slot::B, Slot::A] {
            let begun = Instant::now();
            sandbox.flip(slot).await?;
            flip.push(begun.elapsed());
        }
        host.remove(&id).await?;
    }
    println!("after {rounds} swaps           {:>8} KiB", holder_memory(folder)?);
    for (what, times) in [
        ("create from the pool", pooled),
        ("create without the pool", unpooled),
        ("prepare", prepare),
        ("  folders", phases.iter().map(|phase| phase.folders).collect()),
        ("  root", phases.iter().map(|phase| phase.root).collect()),
        ("  volumes", phases.iter().map(|phase| phase.volumes).collect()),
        ("  process", phases.iter().map(|phase| phase.process).collect()),
        ("start", start),
        ("stop old, start new", swap),
        ("second slot", second),
        ("flip", flip),
        ("exec of true", exec),
        ("remove", remove),
    ] {
        report(what, times);
    }
    Ok(())
}

async fn begin(
    sandbox: &Sandbox,
    folder: &Path,
    id: &str,
) -> Result<(Timings, Duration), SandboxError> {
    let prepared = sandbox.prepare(container(folder, id)).await?;
    let begun = Instant::now();
    sandbox.start(id).await?;
    Ok((prepared, begun.elapsed()))
}

fn spec(id: &str) -> SandboxSpec {
    SandboxSpec {
        id: id.to_owned(),
        hostname: id.to_owned(),
        namespace: "default".to_owned(),
        ..SandboxSpec::default()
    }
}

fn container(folder: &Path, id: &str) -> ContainerSpec {
    ContainerSpec {
        id: id.to_owned(),
        layers: vec![folder.join("image")],
        argv: ["sleep", "1000"].map(str::to_owned).to_vec(),
        env: vec![("PATH".to_owned(), "/bin".to_owned())],
        resources: Resources {
            cpu_millis: Some(500),
            memory_bytes: Some(64 << 20),
            pids: Some(64),
        },
        log: folder.join("logs").join(format!("{id}.log")),
        ..ContainerSpec::default()
    }
}

fn make_image(folder: &Path) -> std::io::Result<()> {
    let bin = folder.join("bin");
    std::fs::create_dir_all(&bin)?;
    std::fs::copy("/bin/busybox", bin.join("sleep"))?;
    std::fs::copy("/bin/busybox", bin.join("true"))?;
    Ok(())
}

/// Memory that the holders of this run share with nobody, in KiB: the largest.
fn holder_memory(folder: &Path) -> std::io::Result<u64> {
    let mut largest = 0;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let ours = |file: &str| std::fs::read_to_string(entry.path().join(file));
        let environment = ours("environ").unwrap_or_default();
        let is_holder = ours("comm").is_ok_and(|name| name.starts_with("holder"));
        if !is_holder || !environment.contains(&*folder.to_string_lossy()) {
            continue;
        }
        let rollup = ours("smaps_rollup").unwrap_or_default();
        let private = rollup
            .lines()
            .filter_map(|line| line.strip_prefix("Private_")?.split_whitespace().nth(1))
            .filter_map(|number| number.parse::<u64>().ok())
            .sum();
        largest = largest.max(private);
    }
    Ok(largest)
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort_unstable();
    let at = |share: usize| times.get((times.len() * share / 100).min(times.len() - 1));
    let [median, late, worst] = [50, 99, 100].map(|share| millis(*at(share).unwrap_or(&GRACE)));
    println!("{what:<24}  {median:>8.3} / {late:.3} / {worst:.3} ms");
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1_000.0
}
