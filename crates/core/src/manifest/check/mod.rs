//! Rules between fields and ranges of numbers: what the type of a single field cannot say.

mod rollout;
mod sidecars;
mod site;

use std::collections::{BTreeMap, BTreeSet};

use super::fields::{FileSource, Lifecycle, Manifest, PreStop, Resources};
use super::health::{Check, Health};
use super::hooks::HookRun;
use super::problem::{BadValue, FieldPath, Problem, quote};
use super::quantity::{Cpu, Memory, Span};
use super::text::{AbsPath, EnvName};
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
/// Shortest pace of a probe, and shortest time in which a hook can be done.
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
        let main = (FieldPath::default(), &self.files);
        let beside = self.sidecars.iter().enumerate().map(|(i, s)| (sidecars::path(i), &s.files));
        for (base, files) in std::iter::once(main).chain(beside) {
            for (path, source) in files {
                if matches!(source, FileSource::Path(_)) {
                    let bad = BadValue::new(Code::ManifestFileMissing, "{content: …}", "a path")
                        .hint("the server cannot read the caller's files: send the content");
                    found.push((base.key("files").key(path.as_str()), bad));
                }
            }
        }
        found.into_iter().map(|(path, bad)| Problem::new(bad, &path, None)).collect()
    }
}

/// Every rule that `manifest` breaks.
pub(super) fn all(manifest: &Manifest) -> Vec<(FieldPath, BadValue)> {
    let mut broken = Broken(Vec::new());
    let root = FieldPath::default();
    program(&root, &manifest.source, &manifest.command, &manifest.args, &mut broken);
    variables(&root, &manifest.env, &mut broken);
    secrets(manifest, &mut broken);
    resources(&root, &manifest.resources, &mut broken);
    probes(&root, &manifest.health, &mut broken);
    let path = |key: &str| FieldPath::of(&[key]);
    broken.range(path("instances"), manifest.instances, 0, MOST_INSTANCES);
    broken.range(path("park").key("max_requests"), manifest.park.max_requests, 0, MOST_PARKED);
    lifecycle(&manifest.lifecycle, &mut broken);
    hosts(manifest, &mut broken);
    volumes(manifest, &mut broken);
    let mounts = manifest.volumes.iter().map(|volume| &volume.mount);
    files(&root, &manifest.files, mounts.collect(), &mut broken);
    sidecars::check(manifest, &mut broken);
    site::check(manifest, &mut broken);
    rollout::check(manifest, &mut broken);
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
        path: FieldPath,
        value: T,
        least: T,
        most: T,
    ) {
        if value < least || value > most {
            let expected = format!("a value from {least} to {most}");
            self.add(path, BadValue::new(Code::ManifestRange, expected, value.to_string()));
        }
    }
}

fn program(
    base: &FieldPath,
    source: &str,
    command: &[String],
    args: &[String],
    broken: &mut Broken,
) {
    if source.is_empty() || source.len() > 4096 || source.contains(char::is_control) {
        let expected = "an image reference or a path, in one line";
        broken.add(base.key("source"), BadValue::text(Code::ManifestText, expected, source));
    }
    if command.first().is_some_and(String::is_empty) {
        broken.add(base.key("command").index(0), no_program("\"\""));
    }
    for (key, list) in [("command", command), ("args", args)] {
        arguments(&base.key(key), list, broken);
    }
}

fn no_program(found: &str) -> BadValue {
    BadValue::new(Code::ManifestText, "a program to run", found)
}

/// A program that must be there, and its arguments.
fn call(path: &FieldPath, argv: &[String], broken: &mut Broken) {
    if argv.first().is_none_or(String::is_empty) {
        broken.add(path.clone(), no_program("none"));
    } else {
        arguments(path, argv, broken);
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

fn variables(base: &FieldPath, env: &BTreeMap<EnvName, String>, broken: &mut Broken) {
    for (name, value) in env {
        let bytes = name.as_str().len() + 1 + value.len();
        if value.contains('\0') || bytes > LONGEST_ARGUMENT {
            let expected = "at most 128 KiB of text without NUL";
            let bad = BadValue::text(Code::ManifestEnv, expected, value);
            broken.add(base.key("env").key(name.as_str()), bad);
        }
    }
}

/// Each becomes a variable of its own.
fn secrets(manifest: &Manifest, broken: &mut Broken) {
    let mut seen = BTreeSet::new();
    for (index, name) in manifest.secrets.iter().enumerate() {
        let path = FieldPath::of(&["secrets"]).index(index);
        if !seen.insert(name) {
            let expected = "each secret once";
            broken.add(path, BadValue::text(Code::ManifestDuplicate, expected, name.as_str()));
        } else if manifest.env.contains_key(name) {
            let bad = BadValue::text(
                Code::ManifestConflict,
                "a name that env does not set",
                name.as_str(),
            );
            broken.add(path, bad.hint("take it out of env: its value would be readable there"));
        }
    }
}

fn resources(base: &FieldPath, resources: &Resources, broken: &mut Broken) {
    let path = |key| base.key("resources").key(key);
    if let Some(cpu) = resources.cpu {
        broken.range(path("cpu"), cpu, LEAST_CPU, MOST_CPU);
    }
    if let Some(memory) = resources.memory {
        broken.range(path("memory"), memory, LEAST_MEMORY, Memory::from_bytes(1 << 50));
    }
    broken.range(path("pids"), resources.pids, LEAST_PIDS, MOST_PIDS);
}

fn probes(base: &FieldPath, health: &Health, broken: &mut Broken) {
    let base = base.key("health");
    for (name, check, period, timeout) in health.checks() {
        let path = base.key(name);
        broken.range(path.key("period"), period, LEAST_PERIOD, Span::MAX);
        broken.range(path.key("timeout"), timeout, LEAST_PERIOD, Span::MAX);
        if let Check::Exec { argv } = check {
            arguments(&path.key("exec"), argv, broken);
        }
    }
    for (name, probe) in [("readiness", &health.readiness), ("liveness", &health.liveness)] {
        if let Some(probe) = probe {
            broken.range(base.key(name).key("failures"), probe.failures, 1, 1000);
        }
    }
}

fn lifecycle(lifecycle: &Lifecycle, broken: &mut Broken) {
    let path = FieldPath::of(&["lifecycle"]);
    if let Some(PreStop::Exec(argv)) = &lifecycle.pre_stop {
        call(&path.key("pre_stop").key("exec"), argv, broken);
    }
    if !lifecycle.post_start.is_empty() {
        call(&path.key("post_start"), &lifecycle.post_start, broken);
    }
    for (name, hook) in lifecycle.hooks.iter() {
        let path = path.key("hooks").key(name);
        if let HookRun::Exec(argv) = &hook.run {
            call(&path.key("exec"), argv, broken);
        }
        broken.range(path.key("deadline"), hook.deadline, LEAST_PERIOD, Span::MAX);
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

fn volumes(manifest: &Manifest, broken: &mut Broken) {
    let mut names = BTreeSet::new();
    for (index, volume) in manifest.volumes.iter().enumerate() {
        if !names.insert(&volume.name) {
            let path = FieldPath::of(&["volumes"]).index(index).key("name");
            broken.add(path, twice("each volume once", volume.name.as_str()));
        }
    }
    let all = manifest.volumes.iter().map(|volume| &volume.mount);
    mounts(&FieldPath::default(), all, broken);
}

/// The places at which one Container sees volumes.
fn mounts<'a>(base: &FieldPath, all: impl Iterator<Item = &'a AbsPath>, broken: &mut Broken) {
    let mut places = BTreeSet::new();
    for (index, place) in all.enumerate() {
        let path = base.key("volumes").index(index).key("mount");
        if !places.insert(place) {
            broken.add(path.clone(), twice("each mount once", place.as_str()));
        }
        if is_reserved(place) {
            broken.add(path, reserved(place));
        }
    }
}

fn files(
    base: &FieldPath,
    files: &BTreeMap<AbsPath, FileSource>,
    mounts: BTreeSet<&AbsPath>,
    broken: &mut Broken,
) {
    for place in files.keys() {
        let path = base.key("files").key(place.as_str());
        if is_reserved(place) {
            broken.add(path, reserved(place));
        } else if mounts.contains(place) {
            let expected = "a file's path where no volume is mounted";
            broken.add(path, BadValue::text(Code::ManifestConflict, expected, place.as_str()));
        }
    }
}

fn is_reserved(path: &AbsPath) -> bool {
    RESERVED.iter().any(|root| {
        let rest = path.as_str().strip_prefix(root);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

fn reserved(path: &AbsPath) -> BadValue {
    let expected = "a path outside /proc, /sys and /dev";
    BadValue::text(Code::ManifestPath, expected, path.as_str())
}
