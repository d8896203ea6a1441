//! How much memory is left, and getting some back.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::{Controller, Group, MOUNTS, field, mounted, read_number};

/// Files of one version of control groups.
struct Names {
    limit: &'static str,
    used: &'static str,
    droppable: &'static str,
}

const V2: Names = Names { limit: "memory.max", used: "memory.current", droppable: "inactive_file" };
const V1: Names = Names {
    limit: "memory.limit_in_bytes",
    used: "memory.usage_in_bytes",
    droppable: "total_inactive_file",
};

/// Bytes of memory that can still be given out: of the machine, and below every limit that this
/// process's own control groups have.
///
/// # Errors
/// If the machine does not tell.
pub fn memory_available() -> io::Result<u64> {
    let machine = fs::read_to_string("/proc/meminfo")?;
    let own = fs::read_to_string("/proc/self/cgroup")?;
    let mounts = fs::read_to_string(MOUNTS)?;
    let available = available(&machine).ok_or(io::ErrorKind::InvalidData)?;
    let groups = groups(&own, &mounts);
    let rooms = groups.iter().filter_map(|(group, names)| room(group, names));
    Ok(rooms.fold(available, u64::min))
}

/// `MemAvailable`, in bytes.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// The groups whose limits hold for a process, from its own up to the root of the tree.
fn groups(own: &str, mounts: &str) -> Vec<(PathBuf, &'static Names)> {
    let place = |wanted: &str, option: Option<&str>| {
        mounted(mounts).find_map(|(place, kind, options)| {
            let fits = option.is_none_or(|option| options.split(',').any(|found| found == option));
            (kind == wanted && fits).then(|| PathBuf::from(place))
        })
    };
    let mut all = Vec::new();
    for line in own.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else { continue };
        let (root, names) = match controllers {
            "" => (place("cgroup2", None), &V2),
            _ if controllers.split(',').any(|controller| controller == "memory") => {
                (place("cgroup", Some("memory")), &V1)
            }
            _ => continue,
        };
        let Some(root) = root else { continue };
        let own = root.join(path.trim_start_matches('/'));
        let above = own.ancestors().take_while(|group| group.starts_with(&root));
        all.extend(above.map(|group| (group.to_owned(), names)));
    }
    all
}

/// What may still be used below a group's limit; none without a limit.
fn room(group: &Path, names: &Names) -> Option<u64> {
    let limit = read_number(&group.join(names.limit)).ok()?;
    let used = read_number(&group.join(names.used)).ok()?;
    let stat = fs::read_to_string(group.join("memory.stat")).ok()?;
    let held = used.saturating_sub(field(&stat, names.droppable));
    Some(limit.saturating_sub(held))
}

impl Group {
    /// Gives back to the machine what the kernel can take from the group now. Does nothing where
    /// the memory controller is not on v2, or the kernel is older than 5.19.
    pub(crate) fn reclaim(&self) -> io::Result<()> {
        let Some((folder, true)) = self.folder(Controller::Memory) else { return Ok(()) };
        let used = read_number(&folder.join(V2.used))?;
        match fs::write(folder.join("memory.reclaim"), used.to_string()) {
            // All that could be taken was less than all.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_some_memory() {
        let bytes = memory_available().unwrap();
        assert!(bytes > 1 << 20, "{bytes}");
        assert_eq!(available("MemFree: 3 kB\nMemAvailable:     2048 kB\n"), Some(2 << 20));
    }

    #[test]
    fn every_group_above_is_looked_at_on_either_tree() {
        let mounts = "cgroup /cg/memory cgroup rw,memory 0 0\ncgroup2 /cg/unified cgroup2 rw 0 0\n";
        let own = "7:memory:/a/b\n3:cpu,cpuacct:/a\n0::/c\n";
        let found: Vec<_> =
            groups(own, mounts).into_iter().map(|(group, _)| group.display().to_string()).collect();
        let expected =
            ["/cg/memory/a/b", "/cg/memory/a", "/cg/memory", "/cg/unified/c", "/cg/unified"];
        assert_eq!(found, expected);
    }

    #[test]
    fn a_limit_leaves_what_is_not_held() {
        let group = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(group.path().join(name), text).unwrap();
        write("memory.max", "1000\n");
        write("memory.current", "700\n");
        write("memory.stat", "inactive_file 100\n");
        assert_eq!(room(group.path(), &V2), Some(400));
        write("memory.max", "max\n");
        assert_eq!(room(group.path(), &V2), None);
    }
}
