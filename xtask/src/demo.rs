//! The main job of stead on this machine, from nothing: build, start, deploy, upgrade in place
//! under load, roll back, restart, and the proof that no request was lost.
//!
//! It runs the same commands a person would, and prints each before it runs. The platform it
//! starts is apart from any other: a data folder below `target/`, a run folder of its own, free
//! ports. It is left running.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::packages;
use crate::run::{Program, cargo, program, root, target};

const RUN: &str = "/run/stead-demo";
const APP: &str = "hello";
/// A demonstration with fewer requests would prove little.
const AT_LEAST: u64 = 1000;

/// How to demonstrate.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Build without optimisation: quicker to build, slower to run.
    #[arg(long)]
    debug: bool,
    /// Stop the platform at the end instead of leaving it running.
    #[arg(long)]
    stop: bool,
}

/// Demonstrates.
///
/// # Errors
/// When a step fails or a request was lost.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "stead makes containers: become root (sudo -E cargo xtask demo)"
    );
    let stage = Stage::build(options)?;
    let outcome = stage.play();
    if options.stop || outcome.is_err() {
        let stopped = stage.stead(&["down", "--all"]).args_of_platform(&stage).run();
        outcome.and(stopped)
    } else {
        stage.next_commands();
        Ok(())
    }
}

/// Everything built, nothing started.
struct Stage {
    stead: PathBuf,
    load: PathBuf,
    images: [PathBuf; 2],
    data: PathBuf,
    api: SocketAddr,
    http: SocketAddr,
}

impl Stage {
    fn build(options: &Options) -> anyhow::Result<Self> {
        packages::install(packages::FOR_DEMO)?;
        say("building stead, the load generator and two versions of samples/hello");
        let mut build = vec!["build", "--package", "stead", "--package", "stead-testkit"];
        build.extend(["--bin", "stead", "--example", "load", "--example", "images"]);
        if !options.debug {
            build.push("--release");
        }
        cargo(build).run()?;
        let built = target().join(if options.debug { "debug" } else { "release" });
        let folder = target().join("demo");
        let image = |version: &str| folder.join(format!("trivial-{version}.tar"));
        let images = program(built.join("examples/images"), ["write"]);
        images.arg(&folder).arg("trivial:1").arg("trivial:2").output()?;
        Ok(Self {
            stead: built.join("stead"),
            load: built.join("examples/load"),
            images: [image("1"), image("2")],
            data: folder.join("data"),
            api: free(7070)?,
            http: free(8080)?,
        })
    }

    fn play(&self) -> anyhow::Result<()> {
        // From an earlier demonstration, perhaps of an older build.
        if Path::new(RUN).exists() {
            let _ = self.stead(&["down", "--all"]).args_of_platform(self).run();
        }
        fs::create_dir_all(&self.data)?;
        let (api, http) = (self.api.to_string(), self.http.to_string());
        self.shown(&["up", "--detach", "--listen", &api, "--http", &http], |up| {
            up.args_of_platform(self)
        })?;
        self.deploy(&self.images[0])?;

        say("sixteen clients: half keep-alive, the others one connection per request, some with \
             slow uploads");
        let mut load = Load::start(self)?;
        self.deploy(&self.images[1])?;
        load.go_on()?;
        self.shown(&["rollback", APP], |it| it)?;
        load.go_on()?;
        self.shown(&["restart", APP], |it| it)?;
        load.go_on()?;
        let report = load.stop()?;
        print_report(&report);

        self.shown(&["ps", APP], |it| it)?;
        self.shown(&["waterfall", APP], |it| it)?;
        let ledger = self.ledger(report["sent"].as_u64().unwrap_or(0))?;
        self.shown(&["ledger", APP], |it| it)?;
        judge(&report, &ledger)
    }

    fn deploy(&self, image: &Path) -> anyhow::Result<()> {
        let (image, manifest) = (shown_path(image), "samples/hello/app.yaml");
        self.shown(&["deploy", &image, "--file", manifest], |it| it)
    }

    /// The ledger once every request sent is in it: the gateway reports each second.
    fn ledger(&self, sent: u64) -> anyhow::Result<Value> {
        let deadline = Instant::now() + Duration::from_secs(15);
        loop {
            let text = self.stead(&["--output", "json", "ledger", APP]).output()?;
            let ledger: Value = serde_json::from_str(&text).context("the ledger")?;
            if sum(&ledger, "received") >= sent && sum(&ledger, "in_flight") == 0 {
                return Ok(ledger);
            }
            if Instant::now() > deadline {
                bail!("the ledger has {} of {sent} requests", sum(&ledger, "received"));
            }
            thread::sleep(Duration::from_millis(100));
        }
    }

    fn shown(
        &self,
        arguments: &[&str],
        more: impl FnOnce(Program) -> Program,
    ) -> anyhow::Result<()> {
        println!("\n$ stead {}", arguments.join(" "));
        more(self.stead(arguments)).run()
    }

    fn stead(&self, arguments: &[&str]) -> Program {
        program(&self.stead, arguments).env("STEAD_SERVER", server())
    }

    fn next_commands(&self) {
        let stead = shown_path(&self.stead);
        println!(
            "\nThe platform and the App go on running. To look around:\n\n\
             \x20 export STEAD_SERVER={}\n\
             \x20 curl http://{APP}.default.localhost:{}/\n\
             \x20 {stead} status {APP}\n\
             \x20 {stead} events {APP}\n\
             \x20 {stead} logs {APP}\n\
             \x20 {stead} deploy {} --file samples/hello/app.yaml\n\
             \x20 {stead} scale {APP} 3\n\n\
             To end it:\n\n\
             \x20 {stead} down --all --data-dir {} --run-dir {RUN}",
            server(),
            self.http.port(),
            shown_path(&self.images[1]),
            shown_path(&self.data),
        );
    }
}

trait OfPlatform {
    /// With the folders that `up` and `down` have to be told.
    fn args_of_platform(self, stage: &Stage) -> Self;
}

impl OfPlatform for Program {
    fn args_of_platform(self, stage: &Stage) -> Self {
        self.arg("--data-dir").arg(&stage.data).arg("--run-dir").arg(RUN)
    }
}

/// The load generator, running beside us.
struct Load {
    process: Child,
}

impl Load {
    fn start(stage: &Stage) -> anyhow::Result<Self> {
        let host = format!("{APP}.default.localhost");
        let mut command = program(&stage.load, [&stage.http.to_string(), &host])
            .arg("--at-least")
            .arg(AT_LEAST.to_string())
            .into_command();
        let process = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("the load generator cannot be started")?;
        let mut load = Self { process };
        load.go_on()?;
        Ok(load)
    }

    /// A moment of load between two changes; it must live through it.
    fn go_on(&mut self) -> anyhow::Result<()> {
        thread::sleep(Duration::from_secs(2));
        ensure!(self.process.try_wait()?.is_none(), "the load generator ended early");
        Ok(())
    }

    /// Ends the load and gives its report.
    fn stop(mut self) -> anyhow::Result<Value> {
        drop(self.process.stdin.take());
        let output = self.process.wait_with_output()?;
        serde_json::from_slice(&output.stdout).context("the report of the load generator")
    }
}

fn print_report(report: &Value) {
    let failed = report["failed"].as_array().map_or(0, Vec::len);
    println!("\n{} requests sent, {} answered, {failed} failed", report["sent"], report["ok"]);
    let latency = &report["latency"];
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    println!(
        "latency: p50 {:.2} ms, p99 {:.2} ms, slowest {:.2} ms",
        number(&latency["p50_ms"]),
        number(&latency["p99_ms"]),
        number(&latency["max_ms"])
    );
    if let Some(versions) = report["by_version"].as_object() {
        for (version, seen) in versions {
            println!("version {version}: {} answers", seen["count"]);
        }
    }
}

/// Both witnesses must agree: the client lost nothing, and the ledger says the same.
fn judge(report: &Value, ledger: &Value) -> anyhow::Result<()> {
    let lost = report["failed"].as_array().map_or(0, Vec::len);
    ensure!(lost == 0, "the clients saw {lost} failed requests");
    ensure!(report["sent"].as_u64() >= Some(AT_LEAST), "too few requests to prove anything");
    let failed = failures(ledger);
    ensure!(failed == 0, "the ledger has {failed} failed requests");
    println!("\nZero failed requests: the clients and the ledger agree.");
    std::io::stdout().flush()?;
    Ok(())
}

fn entries(ledger: &Value) -> &[Value] {
    ledger.as_array().map_or(&[], Vec::as_slice)
}

fn sum(ledger: &Value, field: &str) -> u64 {
    entries(ledger).iter().filter_map(|entry| entry[field].as_u64()).sum()
}

fn failures(ledger: &Value) -> u64 {
    let reasons = entries(ledger).iter().filter_map(|entry| entry["failed"].as_object());
    reasons.flat_map(|reasons| reasons.values()).filter_map(Value::as_u64).sum()
}

fn say(text: &str) {
    println!("\n# {text}");
}

fn server() -> String {
    format!("unix:{RUN}/stead.sock")
}

/// A path as short as it can be said from the root of the workspace.
fn shown_path(path: &Path) -> String {
    path.strip_prefix(root()).unwrap_or(path).display().to_string()
}

/// A free port on loopback: the usual one where it can be had.
fn free(usual: u16) -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", usual))
        .or_else(|_| TcpListener::bind("127.0.0.1:0"))
        .context("no free port on 127.0.0.1")?;
    Ok(listener.local_addr()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_loss_in_either_account_fails_the_demonstration() {
        let report = json!({ "sent": 2000, "failed": [] });
        let clean = json!([{ "release": 1, "received": 2000, "failed": {} }]);
        assert!(judge(&report, &clean).is_ok());
        let dirty = json!([{ "release": 1, "received": 2000, "failed": { "reset": 1 } }]);
        assert_eq!(failures(&dirty), 1);
        assert!(judge(&report, &dirty).is_err());
        assert!(judge(&json!({ "sent": 2000, "failed": [{}] }), &clean).is_err());
        assert!(judge(&json!({ "sent": 2, "failed": [] }), &clean).is_err());
    }
}
