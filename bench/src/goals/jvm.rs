//! Goal 8: from the command to the first answer of a Spring Boot service, the jar as Maven made it.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, bail};
use serde_json::json;

use crate::answer::{self, timed};
use crate::contest::{Better, Contestant, Outcome, interleave_cold};
use crate::goals::loopback;
use crate::platform::Platform;
use crate::workshop::Workshop;

/// What is asked for: it is answered once everything is up.
const PATH: &str = "/actuator/health";
/// Versions of Java, the goal for each, and the port of the plain start.
const VERSIONS: [(u32, &str, u16); 2] =
    [(17, "1.5x plain java -jar", 21_017), (25, "1.75x plain java -jar", 21_025)];

pub(super) fn measure(workshop: &mut Workshop, rounds: usize) -> anyhow::Result<Vec<Outcome>> {
    let jar = petstore()?;
    let folder = workshop.folder().to_owned();
    let mut outcomes = Vec::new();
    for (version, goal, port) in VERSIONS {
        let Some(home) = jdk(version) else {
            eprintln!("bench: no JDK {version} in /usr/lib/jvm: not measured");
            continue;
        };
        let platform = workshop.platform()?;
        let name = format!("petstore-{version}");
        deploy(&platform, &folder, &jar, &name, version)?;
        let start = platform.recorded(&name)?;
        let mut contestants = Vec::new();
        if workshop.wants("plain") {
            contestants.push(plain(&home, &jar, port));
        }
        if workshop.wants("stead") {
            contestants.push(stead(&platform, &name));
        }
        let rows = interleave_cold(contestants, rounds);
        platform.delete(&name)?;
        outcomes.push(Outcome {
            title: format!("Goal 8: start of a Spring Boot service, Java {version}"),
            goal,
            unit: "ms",
            better: Better::Less,
            rows,
            notes: vec![
                format!("plain: `java -jar {}` on the host, the same JDK.", jar.display()),
                "stead: scaled from 0 to 1, its own work and the gateway's included.".to_owned(),
                format!("what stead measured when it recorded the archive: {start}"),
            ],
        });
    }
    Ok(outcomes)
}

/// The sample, as `cargo xtask bench` had Maven build it.
fn petstore() -> anyhow::Result<PathBuf> {
    let target = std::env::current_exe()?;
    let target = target.ancestors().nth(2).context("a program lies in target/release")?;
    let folder = target.join("samples/petstore");
    let jars = fs::read_dir(&folder).with_context(|| folder.display().to_string())?.flatten();
    let mut jars: Vec<PathBuf> = jars.map(|entry| entry.path()).collect();
    jars.retain(|path| path.extension().is_some_and(|extension| extension == "jar"));
    jars.sort();
    jars.into_iter().next().context("target/samples/petstore holds no jar")
}

fn jdk(version: u32) -> Option<PathBuf> {
    let homes = fs::read_dir("/usr/lib/jvm").ok()?.flatten().map(|entry| entry.path());
    let mut fitting: Vec<PathBuf> = homes.filter(|home| is_of(home, version)).collect();
    fitting.sort();
    fitting.into_iter().next()
}

fn is_of(home: &Path, version: u32) -> bool {
    let release = fs::read_to_string(home.join("release")).unwrap_or_default();
    let of = |line: &str| line.strip_prefix("JAVA_VERSION=\"").map(str::to_owned);
    let found = release.lines().find_map(of);
    found.is_some_and(|found| found.split(['.', '"']).next() == Some(version.to_string().as_str()))
}

fn deploy(
    platform: &Platform,
    folder: &Path,
    jar: &Path,
    name: &str,
    version: u32,
) -> anyhow::Result<()> {
    let manifest = json!({
        "app": name,
        "source": jar,
        "runtime": { "java": version },
        "http": { "port": 8080 },
        "health": { "startup": { "http": PATH, "timeout": "120s" } },
        "rollout": { "watch": "0s", "analysis": false },
    });
    let file = folder.join(format!("{name}.json"));
    fs::write(&file, manifest.to_string())?;
    platform.deploy_file(&file)
}

/// A virtual machine on the host, ended when it is dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn plain(home: &Path, jar: &Path, port: u16) -> Contestant<'static> {
    let (java, jar) = (home.join("bin/java"), jar.to_owned());
    Contestant::new("plain java -jar", move || {
        let mut running = None;
        timed(|| {
            let child = Command::new(&java)
                .arg("-jar")
                .arg(&jar)
                .arg(format!("--server.port={port}"))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .with_context(|| java.display().to_string())?;
            running = Some(Running(child));
            answered(loopback(port), "localhost")
        })
    })
}

fn stead(platform: &Platform, name: &str) -> Contestant<'static> {
    let (platform, name) = (platform.clone(), name.to_owned());
    let (before, of) = (platform.clone(), name.clone());
    let mut stead = Contestant::new("stead, second start", move || {
        timed(|| {
            platform.scale(&name, 1)?;
            answered(Platform::gateway(), &Platform::host(&name))
        })
    });
    stead.before(move || {
        before.scale(&of, 0)?;
        before.empty(&of)
    });
    stead
}

fn answered(address: SocketAddr, host: &str) -> anyhow::Result<()> {
    if !answer::wait_for_ok(address, host, PATH) {
        bail!("no answer from {address} in time");
    }
    Ok(())
}
