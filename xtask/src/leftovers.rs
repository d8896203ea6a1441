//! What tests left behind: processes, mounts, network namespaces, links, nftables tables, cgroups.
//!
//! Seen from inside the test namespaces ([`crate::harness`]), where everything but cgroups began
//! empty or is compared with a snapshot from before. cgroups are shared with the machine: new ones
//! count unless they belong to somebody known to make some at any time.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process};

use crate::run::program;

const CGROUPS: &str = "/sys/fs/cgroup";

/// Things of the machine at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    processes: BTreeSet<String>,
    mounts: BTreeSet<String>,
    namespaces: BTreeSet<String>,
    links: BTreeSet<String>,
    tables: BTreeSet<String>,
    cgroups: BTreeSet<PathBuf>,
}

impl Snapshot {
    /// Everything there is now.
    ///
    /// # Errors
    /// When the kernel's tables cannot be read.
    pub(crate) fn take() -> anyhow::Result<Self> {
        Ok(Self {
            processes: processes()?,
            mounts: mounts()?,
            namespaces: names_in("/run/netns"),
            links: lines(program("ip", ["-oneline", "-brief", "link"]).output()?),
            tables: lines(program("nft", ["list", "tables"]).output()?),
            cgroups: cgroups(),
        })
    }

    /// What is here now and was not before, described line by line.
    pub(crate) fn leftovers_since(&self, before: &Self) -> Vec<String> {
        let mut found = Vec::new();
        let mut compare = |what: &str, now: &BTreeSet<String>, before: &BTreeSet<String>| {
            found.extend(now.difference(before).map(|one| format!("{what} {one}")));
        };
        compare("process", &self.processes, &before.processes);
        compare("mount", &self.mounts, &before.mounts);
        compare("network namespace", &self.namespaces, &before.namespaces);
        compare("link", &self.links, &before.links);
        compare("nftables", &self.tables, &before.tables);
        let cgroups = self.cgroups.difference(&before.cgroups);
        found.extend(cgroups.map(|path| format!("cgroup {}", path.display())));
        found
    }

    /// Ends the processes that are new since `before` and removes its new cgroups. The rest goes
    /// with the namespaces.
    pub(crate) fn clean(&self, before: &Self) {
        for process in self.processes.difference(&before.processes) {
            let pid = process.split(' ').next().and_then(|pid| pid.parse().ok());
            if let Some(pid) = pid.and_then(Pid::from_raw) {
                let _ = kill_process(pid, Signal::KILL);
            }
        }
        remove_cgroups(self.cgroups.difference(&before.cgroups));
    }
}

/// Who else makes cgroups while tests run: systemd, login sessions, other engines.
const OTHERS: &[&str] =
    &["docker", "init.scope", "kubepods", "machine.slice", "system.slice", "user.slice"];

/// All cgroups but those of others.
pub(crate) fn cgroups() -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    collect_cgroups(Path::new(CGROUPS), &mut found);
    found
}

/// Removes empty cgroups, given in the order of their paths. A killed process leaves its cgroup a
/// moment later, so this waits for it, within limits.
pub(crate) fn remove_cgroups<'a>(cgroups: impl Iterator<Item = &'a PathBuf>) {
    // Children first: a path sorts before what lies below it.
    let cgroups: Vec<_> = cgroups.collect();
    let deadline = Instant::now() + Duration::from_secs(5);
    for path in cgroups.into_iter().rev() {
        while fs::remove_dir(path).is_err() && path.exists() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Live processes but ourselves, as `PID command line`.
fn processes() -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").context("/proc")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.parse::<u32>().is_err() || name == std::process::id().to_string() {
            continue;
        }
        // Ended meanwhile, or a zombie: neither is left behind.
        let Ok(stat) = fs::read_to_string(format!("/proc/{name}/stat")) else { continue };
        let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        if matches!(state, None | Some('Z' | 'X')) {
            continue;
        }
        let command = fs::read(format!("/proc/{name}/cmdline")).unwrap_or_default();
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        found.insert(format!("{name} {}", command.trim()));
    }
    Ok(found)
}

/// Mount points, without the ids that differ between two looks.
fn mounts() -> anyhow::Result<BTreeSet<String>> {
    let table = fs::read_to_string("/proc/self/mounts").context("/proc/self/mounts")?;
    Ok(table.lines().map(|line| line.split(' ').take(3).collect::<Vec<_>>().join(" ")).collect())
}

fn names_in(folder: &str) -> BTreeSet<String> {
    let Ok(entries) = fs::read_dir(folder) else { return BTreeSet::new() };
    entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn lines(text: String) -> BTreeSet<String> {
    // `ip -brief link`: only the name counts, its state changes.
    text.lines().map(|line| line.split(" <").next().unwrap_or(line).to_owned()).collect()
}

fn collect_cgroups(folder: &Path, found: &mut BTreeSet<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let path = entry.path();
            collect_cgroups(&path, found);
            let theirs = |word: &OsStr| OTHERS.iter().any(|name| word == *name);
            if !path.iter().any(theirs) {
                found.insert(path);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_that_stays_is_seen_and_ended() {
        let before = processes().unwrap();
        let (stdin, stdout) = (Stdio::piped(), Stdio::piped());
        let mut child = Command::new("cat").stdin(stdin).stdout(stdout).spawn().unwrap();
        // Only what answers is past its exec for sure: until then its command line is empty.
        child.stdin.as_mut().unwrap().write_all(b"?").unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let line = format!("{} cat", child.id());
        let now = processes().unwrap();
        assert!(now.contains(&line) && !before.contains(&line));

        let empty = || Snapshot {
            processes: BTreeSet::new(),
            mounts: BTreeSet::new(),
            namespaces: BTreeSet::new(),
            links: BTreeSet::new(),
            tables: BTreeSet::new(),
            cgroups: BTreeSet::new(),
        };
        let before = empty();
        let mut now = empty();
        now.processes.insert(line.clone());
        now.cgroups.insert("/sys/fs/cgroup/pids/stead-x".into());
        let found = now.leftovers_since(&before);
        assert_eq!(found, [format!("process {line}"), "cgroup /sys/fs/cgroup/pids/stead-x".into()]);
        now.clean(&before);
        assert!(!child.wait().unwrap().success());
    }
}
