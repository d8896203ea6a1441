//! Static files: what one processor serves, and how slow the slowest per cent is, beside nginx
//! with the same folder.
//!
//! The load and the servers share the machine's processors, so requests are counted per second
//! of processor time that the server itself used.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use stead_testkit::load::{Mix, Plan, Report};

use crate::answer::wait_for_ok;
use crate::contest::{Better, Contestant, Outcome, interleave};
use crate::goals::loopback;
use crate::peers::Nginx;
use crate::platform::Platform;
use crate::workshop::Workshop;

const APP: &str = "stead-bench-site";
/// Files by their paths, and how many clients ask for each.
const FILES: [(&str, usize, usize); 2] = [("/page.html", 10_000, 32), ("/large.bin", 4 << 20, 4)];
/// How long one turn of a load takes.
const TURN: Duration = Duration::from_secs(3);
/// The load under which latency is measured, per second.
const CALM: f64 = 1000.0;
/// What the kernel counts processor time in (`USER_HZ`), per second.
const TICKS: f64 = 100.0;

/// Somebody who serves the folder.
#[derive(Clone)]
struct Server {
    name: &'static str,
    address: SocketAddr,
    host: String,
    /// Whether a process, by its command line, is one of its own.
    is_own: fn(&str) -> bool,
}

pub(super) fn measure(workshop: &mut Workshop, rounds: usize) -> anyhow::Result<Vec<Outcome>> {
    let folder = workshop.folder().join("site");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("index.html"), "hello")?;
    for (path, size, _) in FILES {
        fs::write(folder.join(&path[1..]), noise(size))?;
    }
    let mut servers = Vec::new();
    let mut platform = None;
    if workshop.wants("stead") {
        let up = workshop.platform()?;
        let manifest = workshop.folder().join("site.yaml");
        let text = format!("app: {APP}\nsource: {}\nsite: {{}}\n", folder.display());
        fs::write(&manifest, text)?;
        up.deploy_file(&manifest)?;
        servers.push(Server {
            name: "stead gateway",
            address: Platform::gateway(),
            host: Platform::host(APP),
            is_own: |command| command.contains("stead gateway"),
        });
        platform = Some(up);
    }
    let mut nginx = None;
    if workshop.wants("nginx") {
        let address = loopback(24_300);
        nginx = Some(Nginx::files(workshop.folder(), address, &folder)?);
        servers.push(Server {
            name: "nginx",
            address,
            host: "bench".to_owned(),
            is_own: |command| command.starts_with("nginx: worker"),
        });
    }
    for server in &servers {
        let up = wait_for_ok(server.address, &server.host, "/");
        anyhow::ensure!(up, "{} does not serve the folder", server.name);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let outcomes = contest(&servers, &runtime, rounds);
    drop(nginx);
    if let Some(platform) = platform {
        platform.delete(APP)?;
    }
    Ok(outcomes)
}

fn contest(servers: &[Server], runtime: &tokio::runtime::Runtime, rounds: usize) -> Vec<Outcome> {
    let mut outcomes = Vec::new();
    for (path, size, clients) in FILES {
        let turns = servers.iter().map(|server| {
            Contestant::new(server.name, move || server.per_processor(runtime, path, clients))
        });
        outcomes.push(Outcome {
            title: format!("Static file of {size} bytes, {clients} clients"),
            goal: "nginx",
            unit: "requests per second of one processor",
            better: Better::More,
            rows: interleave(turns.collect(), rounds),
            notes: vec![
                "nginx sends files by sendfile from two workers and keeps them open; stead copies \
                 them, from memory where they are small, and writes an access log."
                    .to_owned(),
            ],
        });
    }
    let turns = servers
        .iter()
        .map(|server| Contestant::new(server.name, move || server.slowest(runtime, FILES[0].0)));
    outcomes.push(Outcome {
        title: format!("Static file of {} bytes at {CALM} requests per second", FILES[0].1),
        goal: "nginx",
        unit: "ms at the 99th percentile",
        better: Better::Less,
        rows: interleave(turns.collect(), rounds),
        notes: Vec::new(),
    });
    outcomes
}

impl Server {
    fn plan(&self, path: &str, clients: usize) -> Plan {
        let plan = Plan::new(self.address, self.host.clone()).duration(TURN);
        let mix = Mix { keep_alive: clients, ..Mix::NOBODY };
        Plan { path: path.to_owned(), pause: Duration::ZERO, ..plan.mix(mix) }
    }

    /// Requests per second of processor time, as fast as the clients can ask.
    fn per_processor(
        &self,
        runtime: &tokio::runtime::Runtime,
        path: &str,
        clients: usize,
    ) -> anyhow::Result<f64> {
        let before = self.processor_time()?;
        let report = run(runtime, self.plan(path, clients))?;
        let used = self.processor_time()? - before;
        anyhow::ensure!(used > 0.0, "no processor time was used");
        Ok(report.ok as f64 / used)
    }

    /// The 99th percentile under a calm load, in milliseconds.
    fn slowest(&self, runtime: &tokio::runtime::Runtime, path: &str) -> anyhow::Result<f64> {
        let plan = Plan { per_second: Some(CALM), ..self.plan(path, 8) };
        Ok(run(runtime, plan)?.latency.p99_ms)
    }

    /// Seconds that its processes have used.
    fn processor_time(&self) -> anyhow::Result<f64> {
        let mut ticks = 0;
        for entry in fs::read_dir("/proc")? {
            let process = entry?.path();
            let Ok(command) = fs::read(process.join("cmdline")) else { continue };
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if (self.is_own)(&command) {
                ticks += ticks_of(&process)?;
            }
        }
        Ok(ticks as f64 / TICKS)
    }
}

/// Processor time of a process, user and system, with threads that have ended (proc(5)).
fn ticks_of(process: &Path) -> anyhow::Result<u64> {
    let stat = fs::read_to_string(process.join("stat"))?;
    let fields = stat.rsplit_once(") ").context("a stat without a name")?.1;
    let mut times = fields.split(' ').skip(11).take(2).map(str::parse::<u64>);
    let user = times.next().context("a stat without times")??;
    let system = times.next().context("a stat without times")??;
    Ok(user + system)
}

fn run(runtime: &tokio::runtime::Runtime, plan: Plan) -> anyhow::Result<Report> {
    let report = runtime.block_on(async { plan.start().finish().await });
    anyhow::ensure!(report.failed.is_empty(), "{} requests failed", report.failed.len());
    anyhow::ensure!(report.ok > 0, "nothing was answered");
    Ok(report)
}

/// Bytes that no coding makes smaller, the same each time.
fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    (0..size).map(|_| next()).collect()
}
