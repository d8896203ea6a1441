//! stead, driven as the peers are: started by its command line, changed through its API, which
//! is HTTP with JSON over a Unix socket.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use crate::answer::PATIENCE;
use crate::contest::Row;

/// Run-time files; `/run` is ours alone in mount namespaces of our own.
const RUN: &str = "/run/stead";
const SOCKET: &str = "/run/stead/stead.sock";
/// The gateway's; ports are ours to choose in a network namespace of our own.
const HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8080);

/// How long the API may take for one answer. Removing an image's files is slow where the disk is
/// told of every block that is free (`discard`).
const ANSWER: Duration = Duration::from_secs(600);

/// An App to deploy.
#[derive(Debug, Clone, Copy)]
pub(crate) struct App {
    /// Its name.
    pub(crate) name: &'static str,
    /// How it changes.
    pub(crate) strategy: &'static str,
    /// Name of its images in the catalogue.
    pub(crate) image: &'static str,
    /// How long it takes until it listens, in milliseconds; the sample service alone does so.
    pub(crate) start_delay: u64,
    /// How many Instances.
    pub(crate) instances: u32,
}

impl App {
    /// One Instance of the sample service.
    pub(crate) const fn new(name: &'static str, strategy: &'static str) -> Self {
        Self { name, strategy, image: "trivial", start_delay: 0, instances: 1 }
    }
}

/// A running platform. Clones are other hands on the same one.
#[derive(Debug, Clone)]
pub(crate) struct Platform {
    program: PathBuf,
    data: PathBuf,
    registry: SocketAddr,
}

impl Platform {
    /// `stead up --detach`, with both versions of these images fetched.
    pub(crate) fn up(data: &Path, registry: SocketAddr, images: &[&str]) -> anyhow::Result<Self> {
        let program = env::current_exe()?.with_file_name("stead");
        fs::create_dir_all(data)?;
        let platform = Self { program, data: data.to_owned(), registry };
        let http = HTTP.to_string();
        platform.stead(&["up", "--detach", "--http", &http])?;
        for image in images {
            for version in crate::workshop::VERSIONS {
                let body = json!({ "reference": platform.image(image, version) });
                platform.ask("POST", "/images/pull", Some(&body))?;
            }
        }
        Ok(platform)
    }

    /// Ends the platform and all Apps.
    pub(crate) fn down(&self) {
        if let Err(error) = self.stead(&["down", "--all"]) {
            eprintln!("bench: {error:#}");
        }
    }

    /// Asks for a version of an App; returns when the API has accepted it. What comes after a
    /// release, such as watching it for some minutes, is left out: rounds follow each other.
    pub(crate) fn deploy(&self, app: App, version: &str) -> anyhow::Result<()> {
        self.deploy_source(app, &self.image(app.image, version))
    }

    /// Asks for one Instance of an App of its own image, which need not be on the node.
    pub(crate) fn deploy_reference(
        &self,
        name: &'static str,
        reference: &str,
    ) -> anyhow::Result<()> {
        self.deploy_source(App::new(name, "recreate"), reference)
    }

    fn deploy_source(&self, app: App, source: &str) -> anyhow::Result<()> {
        let App { name, strategy, start_delay, instances, .. } = app;
        let manifest = json!({
            "app": name,
            "source": source,
            "http": { "port": 8080 },
            "instances": instances,
            "health": { "startup": { "http": "/healthz" }, "readiness": { "http": "/healthz" } },
            "env": { "START_DELAY_MS": start_delay.to_string() },
            "rollout": { "strategy": strategy, "watch": "0s", "analysis": false },
        });
        let path = format!("/namespaces/default/apps/{name}/deploy");
        self.ask("POST", &path, Some(&json!({ "manifest": manifest })))?;
        Ok(())
    }

    /// Deploys what a manifest in a file says, as people do, and waits until it runs.
    pub(crate) fn deploy_file(&self, file: &Path) -> anyhow::Result<()> {
        let socket = format!("unix:{SOCKET}");
        let status = Command::new(&self.program)
            .args(["--server", &socket, "deploy", "--file"])
            .arg(file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .with_context(|| format!("{} cannot be started", self.program.display()))?;
        anyhow::ensure!(status.success(), "stead deploy {}: {status}", file.display());
        Ok(())
    }

    /// Waits until an archive of the App's classes is recorded; gives what it was measured at.
    pub(crate) fn recorded(&self, app: &str) -> anyhow::Result<String> {
        let path = format!("/namespaces/default/apps/{app}");
        let deadline = Instant::now() + PATIENCE * 15;
        while Instant::now() < deadline {
            let archive = self.ask("GET", &path, None)?["jvm"]["archive"].clone();
            match archive["state"].as_str() {
                Some("kept") => return Ok(archive.to_string()),
                Some("none") => bail!("no archive is recorded: {archive}"),
                _ => thread::sleep(Duration::from_millis(50)),
            }
        }
        bail!("waited in vain for the archive of {app}")
    }

    /// Waits until no Instance of an App is left.
    pub(crate) fn empty(&self, app: &str) -> anyhow::Result<()> {
        let path = format!("/namespaces/default/apps/{app}/instances");
        self.until("the Instances to be gone", || {
            Ok(self.ask("GET", &path, None)?.as_array().is_some_and(Vec::is_empty))
        })
    }

    /// Fetches an image.
    pub(crate) fn pull(&self, reference: &str) -> anyhow::Result<()> {
        self.ask("POST", "/images/pull", Some(&json!({ "reference": reference })))?;
        Ok(())
    }

    /// Removes every image that no App needs.
    pub(crate) fn prune(&self) -> anyhow::Result<()> {
        self.ask("POST", "/images/prune", Some(&json!({})))?;
        Ok(())
    }

    /// Whether there is an App of this name.
    pub(crate) fn has(&self, app: &str) -> bool {
        self.ask("GET", &format!("/namespaces/default/apps/{app}"), None).is_ok()
    }

    /// Asks for the Release before the present one.
    pub(crate) fn rollback(&self, app: &str) -> anyhow::Result<()> {
        self.verb(app, "rollback", &json!({}))
    }

    /// Requests that had to wait for a ready Instance, over all Releases.
    pub(crate) fn parked(&self, app: &str) -> anyhow::Result<u64> {
        let ledgers = self.ask("GET", &format!("/namespaces/default/apps/{app}/ledger"), None)?;
        let ledgers = ledgers.as_array().context("the ledgers are not a list")?;
        Ok(ledgers.iter().filter_map(|ledger| ledger["parked"].as_u64()).sum())
    }

    /// Asks for a restart.
    pub(crate) fn restart(&self, app: &str) -> anyhow::Result<()> {
        self.verb(app, "restart", &json!({}))
    }

    /// Asks for another number of Instances.
    pub(crate) fn scale(&self, app: &str, instances: u32) -> anyhow::Result<()> {
        self.verb(app, "scale", &json!({ "instances": instances }))
    }

    /// Deletes an App and waits until it is gone.
    pub(crate) fn delete(&self, app: &str) -> anyhow::Result<()> {
        let path = format!("/namespaces/default/apps/{app}");
        self.ask("DELETE", &path, None)?;
        self.until("the App to be gone", || Ok(self.ask("GET", &path, None).is_err()))
    }

    /// Waits until an App is settled with so many ready Instances.
    pub(crate) fn settled(&self, app: &str, instances: u64) -> anyhow::Result<()> {
        let path = format!("/namespaces/default/apps/{app}");
        self.until("the App to settle", || {
            let view = self.ask("GET", &path, None)?;
            Ok(view["state"] == "running" && view["ready"] == instances)
        })
    }

    /// Addresses of the App's Instances.
    pub(crate) fn instances(&self, app: &str) -> anyhow::Result<Vec<SocketAddr>> {
        let path = format!("/namespaces/default/apps/{app}/instances");
        let list = self.ask("GET", &path, None)?;
        let list = list.as_array().context("the list of Instances is not a list")?;
        list.iter()
            .map(|one| {
                let ip = one["ip"].as_str().context("an Instance has no address")?;
                Ok(SocketAddr::new(ip.parse()?, 8080))
            })
            .collect()
    }

    /// How long each phase of the App's last change took, in milliseconds.
    pub(crate) fn phases(&self, app: &str) -> anyhow::Result<Vec<(String, f64)>> {
        let path = format!("/namespaces/default/apps/{app}/waterfall");
        let waterfall = self.ask("GET", &path, None)?;
        let bars = waterfall["bars"].as_array().context("a waterfall without bars")?;
        let phase =
            |bar: &Value| Some((bar["phase"].as_str()?.to_owned(), bar["took"].as_f64()? / 1000.0));
        Ok(bars.iter().filter_map(phase).collect())
    }

    /// Where the gateway listens.
    pub(crate) fn gateway() -> SocketAddr {
        HTTP
    }

    /// The `Host` of an App.
    pub(crate) fn host(app: &str) -> String {
        format!("{app}.default.localhost")
    }

    fn image(&self, name: &str, version: &str) -> String {
        format!("{}/{name}:{version}", self.registry)
    }

    fn verb(&self, app: &str, verb: &str, body: &Value) -> anyhow::Result<()> {
        self.ask("POST", &format!("/namespaces/default/apps/{app}/{verb}"), Some(body))?;
        Ok(())
    }

    fn until(&self, what: &str, done: impl Fn() -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            if done()? {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(2));
        }
        bail!("waited in vain for {what}")
    }

    fn stead(&self, arguments: &[&str]) -> anyhow::Result<()> {
        let status = Command::new(&self.program)
            .args(arguments)
            .arg("--data-dir")
            .arg(&self.data)
            .args(["--run-dir", RUN])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .with_context(|| format!("{} cannot be started", self.program.display()))?;
        anyhow::ensure!(status.success(), "stead {}: {status}", arguments.join(" "));
        Ok(())
    }

    /// One request to the API.
    fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let mut stream = UnixStream::connect(SOCKET).context(SOCKET)?;
        stream.set_read_timeout(Some(ANSWER))?;
        let body = body.map(Value::to_string).unwrap_or_default();
        write!(
            stream,
            "{method} /api/v1{path} HTTP/1.1\r\nHost: stead\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let (head, body) = answer.split_once("\r\n\r\n").context("the API gave no answer")?;
        let status = head.split(' ').nth(1).unwrap_or_default();
        let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            unchunk(body)?
        } else {
            body.to_owned()
        };
        if !status.starts_with('2') {
            bail!("{method} {path}: {status}: {body}");
        }
        if body.is_empty() { Ok(Value::Null) } else { Ok(serde_json::from_str(&body)?) }
    }
}

fn unchunk(mut body: &str) -> anyhow::Result<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").context("a chunk without a size")?;
        let size = usize::from_str_radix(size.trim(), 16).context("a chunk size")?;
        if size == 0 {
            return Ok(whole);
        }
        whole.push_str(rest.get(..size).context("a cut chunk")?);
        body = rest.get(size + 2..).context("a cut chunk")?;
    }
}

/// Phases of several changes of one App: for the note that says where the time goes.
#[derive(Debug, Default)]
pub(crate) struct Phases {
    figures: BTreeMap<String, Vec<f64>>,
}

impl Phases {
    /// Adds the App's last change.
    pub(crate) fn collect(&mut self, platform: &Platform, app: &str) -> anyhow::Result<()> {
        for (phase, took) in platform.phases(app)? {
            self.figures.entry(phase).or_default().push(took);
        }
        Ok(())
    }

    /// The median of each phase, the longest first.
    pub(crate) fn summary(&self, of: &str) -> String {
        let median = |figures: &Vec<f64>| Row::new("", figures.clone()).percentile(0.5);
        let mut medians: Vec<_> = self
            .figures
            .iter()
            .filter_map(|(phase, figures)| Some((phase, median(figures)?)))
            .collect();
        medians.sort_by(|one, other| other.1.total_cmp(&one.1));
        let parts = medians.iter().map(|(phase, median)| format!("{phase} {median:.2}"));
        format!("phases of {of}, p50 in ms: {}", parts.collect::<Vec<_>>().join(", "))
    }
}
