//! Rules between fields and ranges of numbers: what the type of a single field cannot say.

use std::collections::BTreeSet;

use super::fields::{FileSource, Manifest, PreStop};
use super::health::{Check, Health};
use super::problem::{BadValue, FieldPath, Problem, quote};
use super::quantity::{Cpu, Memory, Span};
use super::unbuilt;
use crate::error::Code;

/// Smallest share of a processor: the kernel's least quota, 1 ms of a period of 100 ms.
const LEAST_CPU: Cpu = Cpu::from_millis(10);
/// Largest share of a processor: more than any machine has.
const MOST_CPU: Cpu = Cpu::from_millis(4_096_000);
/// Smallest memory in which a process can start.
const LEAST_MEMORY: Memory = Memory::from_bytes(4 << 20);
/// A main process, its init and some threads.
const LEAST_PIDS: u32 = 8;
/// The kernel's largest number of processes.
const MOST_PIDS: u32 = 4_000_000;
/// Shortest pace of a probe.
const LEAST_PERIOD: Span = Span::from_millis(10);
const MOST_INSTANCES: u32 = 1000;
const MOST_PARKED: u32 = 1_000_000;
/// Longest single argument or variable that Linux passes to a program, in bytes
/// (`MAX_ARG_STRLEN` of `execve(2)`, without the final NUL).
const LONGEST_ARGUMENT: usize = 128 * 1024 - 1;
/// Folders of a Container that belong to the kernel and the platform.
const RESERVED: [&str; 3] = ["/proc", "/sys", "/dev"];

impl Manifest {
    /// What is wrong with a manifest that came as JSON over the API: the rules that
    /// [`super::parse`] checks too, and that every file brings its content. Empty when all
    /// is well.
    pub fn problems(&self) -> Vec<Problem> {
        let mut found = all(self);
        for (path, source) in &self.files {
            if matches!(source, FileSource::Path(_)) {
                let bad = BadValue::new(Code::ManifestFileMissing, "{content: …}", "a path")
                    .hint("the server cannot read the caller's files: send the content");
                found.push((FieldPath::of(&["files", path.as_str()]), bad));
            }
        }
        found.into_iter().map(|(path, bad)| Problem::new(bad, &path, None)).collect()
    }
}

/// Every rule that `manifest` breaks.
pub(super) fn all(manifest: &Manifest) -> Vec<(FieldPath, BadValue)> {
    let mut broken = Broken(Vec::new());
    texts(manifest, &mut broken);
    numbers(manifest, &mut broken);
    probes(&manifest.health, &mut broken);
    hosts(manifest, &mut broken);
    mounts(manifest, &mut broken);
    broken.0.extend(unbuilt::check(manifest));
    broken.0
}

struct Broken(Vec<(FieldPath, BadValue)>);

impl Broken {
    fn add(&mut self, path: FieldPath, bad: BadValue) {
        self.0.push((path, bad));
    }

    fn range<T: PartialOrd + std::fmt::Display>(
        &mut self,
        path: &[&str],
        value: T,
        least: T,
        most: T,
    ) {
        if value < least || value > most {
            let expected = format!("a value from {least} to {most}");
            let bad = BadValue::new(Code::ManifestRange, expected, value.to_string());
            self.add(FieldPath::of(path), bad);
        }
    }
}

fn texts(manifest: &Manifest, broken: &mut Broken) {
    let source = &manifest.source;
    if source.is_empty() || source.len() > 4096 || source.contains(char::is_control) {
        let expected = "an image reference or a path, in one line";
        let bad = BadValue::text(Code::ManifestText, expected, source);
        broken.add(FieldPath::of(&["source"]), bad);
    }
    if manifest.command.first().is_some_and(String::is_empty) {
        let bad = BadValue::new(Code::ManifestText, "a program to run", "\"\"");
        broken.add(FieldPath::of(&["command"]).index(0), bad);
    }
    for (key, list) in [("command", &manifest.command), ("args", &manifest.args)] {
        arguments(&FieldPath::of(&[key]), list, broken);
    }
    for (name, value) in &manifest.env {
        let bytes = name.as_str().len() + 1 + value.len();
        if value.contains('\0') || bytes > LONGEST_ARGUMENT {
            let expected = "at most 128 KiB of text without NUL";
            let bad = BadValue::text(Code::ManifestEnv, expected, value);
            broken.add(FieldPath::of(&["env", name.as_str()]), bad);
        }
    }
    if let Some(PreStop::Exec(argv)) = &manifest.lifecycle.pre_stop {
        let path = FieldPath::of(&["lifecycle", "pre_stop", "exec"]);
        if argv.first().is_none_or(String::is_empty) {
            broken.add(path, BadValue::new(Code::ManifestText, "a program to run", "none"));
        } else {
            arguments(&path, argv, broken);
        }
    }
}

fn arguments(path: &FieldPath, list: &[String], broken: &mut Broken) {
    for (index, text) in list.iter().enumerate() {
        if text.contains('\0') || text.len() > LONGEST_ARGUMENT {
            let expected = "at most 128 KiB of text without NUL";
            broken.add(path.index(index), BadValue::text(Code::ManifestText, expected, text));
        }
    }
}

fn numbers(manifest: &Manifest, broken: &mut Broken) {
    let resources = &manifest.resources;
    if let Some(cpu) = resources.cpu {
        broken.range(&["resources", "cpu"], cpu, LEAST_CPU, MOST_CPU);
    }
    if let Some(memory) = resources.memory {
        broken.range(&["resources", "memory"], memory, LEAST_MEMORY, Memory::from_bytes(1 << 50));
    }
    broken.range(&["resources", "pids"], resources.pids, LEAST_PIDS, MOST_PIDS);
    broken.range(&["instances"], manifest.instances, 0, MOST_INSTANCES);
    broken.range(&["park", "max_requests"], manifest.park.max_requests, 0, MOST_PARKED);
    let rollout = &manifest.rollout;
    let deadline = rollout.progress_deadline;
    broken.range(&["rollout", "progress_deadline"], deadline, Span::from_secs(1), Span::MAX);
}

fn probes(health: &Health, broken: &mut Broken) {
    let mut pace = |name: &str, check: &Check, period, timeout| {
        broken.range(&["health", name, "period"], period, LEAST_PERIOD, Span::MAX);
        broken.range(&["health", name, "timeout"], timeout, LEAST_PERIOD, Span::MAX);
        if let Check::Exec { argv } = check {
            arguments(&FieldPath::of(&["health", name, "exec"]), argv, broken);
        }
    };
    if let Some(startup) = &health.startup {
        pace("startup", &startup.check, startup.period, startup.timeout);
    }
    let repeated = [("readiness", &health.readiness), ("liveness", &health.liveness)];
    for (name, probe) in repeated.iter().filter_map(|(n, probe)| Some((n, probe.as_ref()?))) {
        pace(name, &probe.check, probe.period, probe.timeout);
    }
    for (name, probe) in repeated.iter().filter_map(|(n, probe)| Some((n, probe.as_ref()?))) {
        broken.range(&["health", name, "failures"], probe.failures, 1, 1000);
    }
}

fn hosts(manifest: &Manifest, broken: &mut Broken) {
    let mut seen = BTreeSet::new();
    let hosts = manifest.http.iter().flat_map(|http| &http.hosts);
    for (index, host) in hosts.enumerate() {
        if !seen.insert(host) {
            let path = FieldPath::of(&["http", "hosts"]).index(index);
            broken.add(path, twice("each host once", host.as_str()));
        }
    }
}

fn twice(expected: &str, text: &str) -> BadValue {
    BadValue::new(Code::ManifestDuplicate, expected, format!("{} again", quote(text)))
}

fn mounts(manifest: &Manifest, broken: &mut Broken) {
    let reserved = |text: &str| {
        RESERVED.iter().any(|root| {
            text.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        })
    };
    let refuse_reserved = |text: &str| {
        BadValue::text(Code::ManifestPath, "a path outside /proc, /sys and /dev", text)
    };
    let mut names = BTreeSet::new();
    let mut places = BTreeSet::new();
    for (index, volume) in manifest.volumes.iter().enumerate() {
        let path = FieldPath::of(&["volumes"]).index(index);
        if !names.insert(&volume.name) {
            broken.add(path.key("name"), twice("each volume once", volume.name.as_str()));
        }
        if !places.insert(&volume.mount) {
            broken.add(path.key("mount"), twice("each mount once", volume.mount.as_str()));
        }
        if reserved(volume.mount.as_str()) {
            broken.add(path.key("mount"), refuse_reserved(volume.mount.as_str()));
        }
    }
    for place in manifest.files.keys() {
        let path = FieldPath::of(&["files", place.as_str()]);
        if reserved(place.as_str()) {
            broken.add(path, refuse_reserved(place.as_str()));
        } else if places.contains(place) {
            let expected = "a file's path where no volume is mounted";
            broken.add(path, BadValue::text(Code::ManifestConflict, expected, place.as_str()));
        }
    }
}
