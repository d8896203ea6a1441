//! Finding everything again after a restart of `serve`, and cleaning up what nobody holds.
//!
//! What is found is decided by what lives: a holder that answers is kept, with all it holds; the
//! rest of what carries our name is left over and goes.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use serde::{Deserialize, Serialize};
use stead_core::time::Time;
use stead_holder::wire::{Answer, Command, Container, State};

use super::held::Sandbox;
use super::host::{Means, Remains};
use super::launch::{Held, Process, folder};
use super::link::{Link, News};
use super::{SandboxError, SandboxSpec};
use crate::network::{Connection, Index, Links, Network, Second};

/// How long a holder may take to answer. One that sets a Container up answers nobody meanwhile,
/// for up to 20 s, and what it runs must not be ended for that.
const PATIENCE: Duration = Duration::from_secs(30);

/// A Sandbox that an earlier `serve` made. Its Containers, with the exits that nobody has taken
/// note of, are in [`Sandbox::containers`].
#[derive(Debug)]
pub struct Recovered {
    /// The Sandbox.
    pub sandbox: Arc<Sandbox>,
}

/// What was found.
pub(crate) struct Found {
    pub(crate) recovered: Vec<Recovered>,
    /// Holders that belong to nobody yet.
    pub(crate) unused: Vec<Held>,
}

/// What has to be known of a Sandbox to find it again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) hostname: String,
    pub(crate) namespace: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) created: Time,
}

impl Record {
    pub(crate) fn new(spec: SandboxSpec, created: Time) -> Self {
        let SandboxSpec { id, hostname, namespace, labels, .. } = spec;
        Self { id, hostname, namespace, labels, created }
    }

    /// Written whole or not at all.
    pub(crate) fn write(&self, folder: &Path) -> io::Result<()> {
        let fresh = folder.join(".sandbox.json");
        fs::write(&fresh, serde_json::to_vec(self)?)?;
        fs::rename(fresh, folder.join("sandbox.json"))
    }

    fn read(folder: &Path) -> io::Result<Option<Self>> {
        match fs::read(folder.join("sandbox.json")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        }
    }
}

/// Has the machine been restarted since the run folder was last used? Then nothing that it
/// tells of exists any more, and it is emptied.
pub(crate) fn is_new_boot(run_dir: &Path) -> io::Result<bool> {
    let now = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let noted = run_dir.join("boot");
    if fs::read_to_string(&noted).is_ok_and(|then| then == now) {
        return Ok(false);
    }
    forget(run_dir)?;
    fs::create_dir_all(run_dir)?;
    fs::write(noted, now)?;
    Ok(true)
}

/// Empties the run folder of what this module keeps there.
pub(crate) fn forget(run_dir: &Path) -> io::Result<()> {
    for name in ["boot", "subnet"] {
        match fs::remove_file(run_dir.join(name)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    match fs::remove_dir_all(run_dir.join("sb")) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// The network in use since the machine was started; at first one that is free.
pub(crate) fn subnet(run_dir: &Path, wanted: Ipv4Addr, new_boot: bool) -> io::Result<Ipv4Addr> {
    let noted = run_dir.join("subnet");
    let known = fs::read_to_string(&noted).ok().and_then(|text| text.parse().ok());
    if let Some(known) = known.filter(|_| !new_boot) {
        return Ok(known);
    }
    let chosen = Network::choose(wanted)?;
    fs::write(noted, chosen.to_string())?;
    Ok(chosen)
}

/// Connects to every holder that lives and removes what the others left.
pub(crate) async fn find(means: &Arc<Means>) -> Result<Found, SandboxError> {
    let unfit = |what| move |source| SandboxError::Unfit { what, source };
    let before = means.network.left().map_err(unfit("network"))?;
    let mut found = Found { recovered: Vec::new(), unused: Vec::new() };
    let mut alive = Vec::new();
    let mut members = Vec::new();
    let mut connections = Vec::new();
    let entries = fs::read_dir(means.run_dir.join("sb")).map_err(unfit("folders"))?;
    for entry in entries.flatten() {
        let Some(index) = entry.file_name().to_str().and_then(|name| name.parse().ok()).map(Index)
        else {
            continue;
        };
        let Some(connection) = means.network.found(index, &before) else {
            // It was never connected, or has lost its link: it is of no use to anybody.
            if let Ok((_, pid)) = Link::connect(&folder(&means.run_dir, index))
                && let Ok(process) = Process::open(pid)
            {
                process.kill();
            }
            continue;
        };
        connections.push(connection);
    }
    // At the same time: one that is slow to answer must not hold up the others.
    let asked = connections.iter().map(|(connection, second)| async {
        let (held, containers) = reconnect(means, *connection).await?;
        Some((held, *second, containers))
    });
    for (held, second, containers) in join_all(asked).await.into_iter().flatten() {
        let (connection, index) = (held.connection, held.connection.index);
        match Record::read(&held.folder) {
            Ok(Some(record)) => {
                members.push((connection, second, record.namespace.clone()));
                keep_known(means, index, &containers);
                let sandbox = Sandbox::take_over(means.clone(), held, record, second, containers);
                found.recovered.push(Recovered { sandbox });
            }
            Ok(None) if before.is_up(index) => found.unused.push(held),
            Ok(None) => {
                // `serve` ended while it was being connected.
                held.process.kill();
                continue;
            }
            Err(error) => {
                tracing::error!(index = index.0, %error, "a sandbox is damaged and is removed");
                held.process.kill();
                continue;
            }
        }
        means.network.claim(index);
        alive.push(index);
    }
    means.network.install_rules(&members).map_err(unfit("nftables"))?;
    let left = leftovers(means, &alive, &before.links);
    let cleaned = means.clone();
    // Nothing new can take these places before they are free: their addresses are claimed.
    tokio::task::spawn_blocking(move || {
        for index in left {
            sweep(&cleaned, index);
            let _ = fs::remove_dir_all(folder(&cleaned.run_dir, index));
            let Links { first, second, .. } = before.links.get(&index).copied().unwrap_or_default();
            // Which of the two is which no longer matters.
            let Some(link) = first.or(second) else {
                cleaned.network.release(index);
                continue;
            };
            let connection = Connection { index, ips: cleaned.network.ips(index), link };
            let second = Second { link: second, ..Second::default() };
            let _ = cleaned.remains.send(Remains { second, ..Remains::of_nobody(connection) });
        }
    });
    Ok(found)
}

/// Asks a holder what it holds. `None` if it does not live, or does not answer.
async fn reconnect(means: &Means, connection: Connection) -> Option<(Held, Vec<Container>)> {
    let folder = folder(&means.run_dir, connection.index);
    let (link, pid) = Link::connect(&folder).ok()?;
    let process = Process::open(pid).ok()?;
    let asked = tokio::time::timeout(PATIENCE, link.ask_alone(Command::List)).await;
    let Ok(Ok((reply, news))) = asked else {
        process.kill();
        return None;
    };
    let Ok(Answer::Containers(mut containers)) = reply.result else { return None };
    for told in news {
        if let News::Exited { container, exit } = told
            && let Some(listed) = containers.iter_mut().find(|listed| listed.id == container)
        {
            listed.state = State::Exited(exit);
        }
    }
    Some((Held { connection, link, process, folder }, containers))
}

/// Everything that carries our name and no living holder.
fn leftovers(means: &Means, alive: &[Index], links: &HashMap<Index, Links>) -> Vec<Index> {
    let names = |folder: &Path| {
        fs::read_dir(folder)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect::<Vec<_>>()
    };
    let mut all = names(&means.run_dir.join("sb"));
    all.extend(names(&means.data_dir.join("upper")));
    all.extend(means.cgroups.sandboxes().unwrap_or_default());
    let mut all: Vec<Index> = all
        .iter()
        .filter_map(|name| name.parse().ok())
        .map(Index)
        .chain(links.keys().copied())
        .filter(|index| !alive.contains(index))
        .collect();
    all.sort_unstable();
    all.dedup();
    // Taken until they are clean.
    for index in &all {
        let _ = means.network.claim(*index);
    }
    all
}

/// Removes the control groups and writable layers of a Sandbox without a holder.
pub(crate) fn sweep(means: &Means, index: Index) {
    let name = index.0.to_string();
    let begun = std::time::Instant::now();
    while let Err(error) = means.cgroups.remove_sandbox(&name) {
        if begun.elapsed() > PATIENCE {
            tracing::warn!(index = index.0, %error, "control groups are left over");
            break;
        }
        // Those just killed are still leaving.
        std::thread::sleep(Duration::from_millis(1));
    }
    if let Err(error) = means.trash.throw(&means.data_dir.join("upper").join(&name)) {
        tracing::warn!(index = index.0, %error, "a writable layer is left over");
    }
}

/// Throws away the writable layers of Containers that a living Sandbox no longer has.
fn keep_known(means: &Means, index: Index, containers: &[Container]) {
    let folder = means.data_dir.join("upper").join(index.0.to_string());
    for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
        let known = containers.iter().any(|container| entry.file_name() == *container.id);
        if !known {
            let _ = means.trash.throw(&entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_of_the_machine_is_noticed_once() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir_all(folder.path().join("sb/7")).unwrap();
        assert!(is_new_boot(folder.path()).unwrap());
        assert!(!folder.path().join("sb/7").exists());
        assert!(!is_new_boot(folder.path()).unwrap());
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Record::read(folder.path()).unwrap().is_none());
        let spec = SandboxSpec { id: "web-0".into(), ..SandboxSpec::default() };
        Record::new(spec, Time(5)).write(folder.path()).unwrap();
        let record = Record::read(folder.path()).unwrap().unwrap();
        assert_eq!((record.id.as_str(), record.created), ("web-0", Time(5)));
    }
}
