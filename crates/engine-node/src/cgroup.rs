//! Control groups: where Containers are accounted, limited, frozen and killed.
//!
//! Membership, freezing and killing are always done on the v2 tree, which exists on hybrid hosts
//! too. Limits go to v2 where its controllers are available, else to the v1 hierarchy of the
//! controller. Groups are `NAME/SANDBOX/CONTAINER` on every tree. Does not know what runs in
//! them.

mod favour;
mod memory;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

pub use memory::memory_available;
use stead_holder::wire;

/// What a Container may use. `None` is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Resources {
    /// Thousandths of a processor.
    pub cpu_millis: Option<u32>,
    /// Bytes of memory, page cache included.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u32>,
}

/// What a Container uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Usage {
    /// Processor time since it was prepared, in nanoseconds.
    pub(crate) cpu_ns: u64,
    /// Memory in use that cannot be dropped at once, in bytes.
    pub(crate) memory_bytes: u64,
    /// Processes and threads.
    pub(crate) pids: u64,
}

/// The kernel's period for processor limits, in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// The shortest share of it that the kernel accepts.
const SHORTEST_QUOTA: u64 = 1_000;

/// What is mounted, as this process sees it.
const MOUNTS: &str = "/proc/self/mounts";

/// Place, kind and options of each mount that [`MOUNTS`] lists.
fn mounted(mounts: &str) -> impl Iterator<Item = (&str, &str, &str)> {
    mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ').skip(1);
        Some((fields.next()?, fields.next()?, fields.next()?))
    })
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Controller {
    Cpu,
    Memory,
    Pids,
}

const CONTROLLERS: [(Controller, &str); 3] =
    [(Controller::Cpu, "cpu"), (Controller::Memory, "memory"), (Controller::Pids, "pids")];

/// The control groups of one platform on this host.
#[derive(Debug)]
pub(crate) struct Cgroups {
    name: String,
    /// Where the v2 tree is mounted.
    unified: PathBuf,
    /// Controllers of the v2 tree that limits may use.
    on_v2: Vec<Controller>,
    /// The others, with the mount point of their v1 hierarchy and its name below the root.
    on_v1: Vec<(Controller, PathBuf)>,
}

/// The group of one Container.
#[derive(Debug, Clone)]
pub(crate) struct Group {
    unified: PathBuf,
    v1: Vec<(Controller, PathBuf)>,
    v2: Vec<Controller>,
}

impl Cgroups {
    /// Looks at how this host mounts control groups and makes the platform's own.
    ///
    /// # Errors
    /// `Unsupported` where there is no v2 tree.
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        let mounts = fs::read_to_string(MOUNTS)?;
        let mut all = Self::find(name, &mounts).ok_or_else(|| {
            io::Error::new(io::ErrorKind::Unsupported, "no cgroup v2 tree is mounted")
        })?;
        let available = fs::read_to_string(all.unified.join("cgroup.controllers"))?;
        all.settle(&available);
        all.delegate(&all.unified.clone())?;
        fs::create_dir_all(all.holders())?;
        all.delegate(&all.unified.join(name))?;
        Ok(all)
    }

    /// On a hybrid host, asks the kernel for quick changes of groups, or takes that back. True:
    /// it was not so before. See [`favour`].
    pub(crate) fn favour_changes(&self, favour: bool) -> io::Result<bool> {
        if self.on_v1.is_empty() {
            return Ok(false);
        }
        let mounts = fs::read_to_string(MOUNTS)?;
        let options = mounted(&mounts)
            .find(|(place, kind, _)| *kind == "cgroup2" && Path::new(place) == self.unified)
            .map(|(_, _, options)| options);
        match options {
            Some(options) => favour::set(&self.unified, options, favour),
            None => Ok(false),
        }
    }

    fn find(name: &str, mounts: &str) -> Option<Self> {
        let mut unified = None;
        let mut on_v1 = Vec::new();
        for (place, kind, options) in mounted(mounts) {
            match kind {
                "cgroup2" => unified = unified.or(Some(PathBuf::from(place))),
                "cgroup" => {
                    for (controller, text) in CONTROLLERS {
                        if options.split(',').any(|option| option == text) {
                            on_v1.push((controller, PathBuf::from(place)));
                        }
                    }
                }
                _ => {}
            }
        }
        Some(Self { name: name.to_owned(), unified: unified?, on_v2: Vec::new(), on_v1 })
    }

    /// Takes every controller from v2 that is there.
    fn settle(&mut self, available: &str) {
        let on_v2 = |text: &str| available.split_whitespace().any(|word| word == text);
        self.on_v2 = CONTROLLERS
            .iter()
            .filter(|(_, text)| on_v2(text))
            .map(|(controller, _)| *controller)
            .collect();
        self.on_v1.retain(|(controller, _)| !self.on_v2.contains(controller));
    }

    /// Hands the controllers down to the children of a v2 group: all or none.
    fn delegate(&self, group: &Path) -> io::Result<()> {
        let ours = CONTROLLERS.iter().filter(|(controller, _)| self.on_v2.contains(controller));
        let words: Vec<_> = ours.map(|(_, text)| format!("+{text}")).collect();
        if words.is_empty() {
            return Ok(());
        }
        let given = fs::write(group.join("cgroup.subtree_control"), words.join(" "));
        given.map_err(|error| match error.kind() {
            // Only the root of the machine may have processes and hand controllers down; the root
            // a container sees is not that one.
            io::ErrorKind::ResourceBusy => {
                let text = format!(
                    "{} is not the machine's root and has processes of its own, so cgroup v2 gives \
                     its children no controllers: move them into a child",
                    group.display()
                );
                io::Error::new(error.kind(), text)
            }
            _ => error,
        })
    }

    /// The group all holders live in, so that the end of `serve`'s own group does not end them.
    pub(crate) fn holders(&self) -> PathBuf {
        self.unified.join(&self.name).join("holders")
    }

    /// Moves a process there.
    pub(crate) fn adopt_holder(&self, pid: u32) -> io::Result<()> {
        fs::write(self.holders().join("cgroup.procs"), pid.to_string())
    }

    /// Names a Container's group; nothing is made yet.
    pub(crate) fn group(&self, sandbox: &str, container: &str) -> Group {
        let below = |root: &Path| root.join(&self.name).join(sandbox).join(container);
        Group {
            unified: below(&self.unified),
            v1: self.on_v1.iter().map(|(which, root)| (*which, below(root))).collect(),
            v2: self.on_v2.clone(),
        }
    }

    /// Makes a Container's group with its limits.
    pub(crate) fn make(&self, group: &Group, limits: &Resources) -> io::Result<()> {
        let sandbox = group.unified.parent().expect("a group is three levels deep");
        if !sandbox.exists() {
            fs::create_dir_all(sandbox)?;
            self.delegate(sandbox)?;
        }
        for folder in group.folders() {
            fs::create_dir_all(folder)?;
        }
        group.limit(limits)
    }

    /// Removes whatever is left of a Sandbox's groups. Everything in them is killed.
    pub(crate) fn remove_sandbox(&self, sandbox: &str) -> io::Result<()> {
        let unified = self.unified.join(&self.name).join(sandbox);
        if unified.exists() {
            fs::write(unified.join("cgroup.kill"), "1")?;
        }
        let roots = self.on_v1.iter().map(|(_, root)| root).chain([&self.unified]);
        let mut done = Ok(());
        for root in roots {
            done = done.and(remove_tree(&root.join(&self.name).join(sandbox)));
        }
        done
    }

    /// The Sandboxes that have groups.
    pub(crate) fn sandboxes(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        let roots = self.on_v1.iter().map(|(_, root)| root).chain([&self.unified]);
        for root in roots {
            for entry in fs::read_dir(root.join(&self.name)).into_iter().flatten().flatten() {
                if let Ok(name) = entry.file_name().into_string()
                    && name != "holders"
                    && entry.path().is_dir()
                    && !names.contains(&name)
                {
                    names.push(name);
                }
            }
        }
        Ok(names)
    }

    /// Removes everything of this platform.
    pub(crate) fn destroy(&self) -> io::Result<()> {
        let roots = self.on_v1.iter().map(|(_, root)| root).chain([&self.unified]);
        roots.map(|root| remove_tree(&root.join(&self.name))).fold(Ok(()), io::Result::and)
    }
}

impl Group {
    fn folders(&self) -> impl Iterator<Item = &PathBuf> {
        self.v1.iter().map(|(_, folder)| folder).chain([&self.unified])
    }

    fn folder(&self, controller: Controller) -> Option<(&Path, bool)> {
        if self.v2.contains(&controller) {
            return Some((&self.unified, true));
        }
        let found = self.v1.iter().find(|(which, _)| *which == controller);
        found.map(|(_, folder)| (folder.as_path(), false))
    }

    /// What the holder has to know.
    pub(crate) fn describe(&self) -> wire::Cgroup {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let procs = |(_, folder): &(_, PathBuf)| text(&folder.join("cgroup.procs"));
        let oom = self.folder(Controller::Memory).map(|(folder, v2)| {
            text(&folder.join(if v2 { "memory.events" } else { "memory.oom_control" }))
        });
        let named = |controller| {
            CONTROLLERS.iter().find(|(which, _)| *which == controller).map_or("", |(_, text)| *text)
        };
        wire::Cgroup {
            unified: text(&self.unified),
            join: self.v1.iter().map(procs).collect(),
            oom,
            view: self.v1.iter().map(|(which, at)| (named(*which).to_owned(), text(at))).collect(),
        }
    }

    /// Sets the limits, now and while it runs.
    ///
    /// # Errors
    /// What the kernel refuses: a memory limit below what is in use and cannot be dropped.
    pub(crate) fn limit(&self, limits: &Resources) -> io::Result<()> {
        if let Some((folder, v2)) = self.folder(Controller::Cpu) {
            let quota = limits
                .cpu_millis
                .map(|millis| (u64::from(millis) * CPU_PERIOD / 1_000).max(SHORTEST_QUOTA));
            if v2 {
                let quota = quota.map_or("max".to_owned(), |quota| quota.to_string());
                fs::write(folder.join("cpu.max"), format!("{quota} {CPU_PERIOD}"))?;
            } else {
                let quota = quota.map_or("-1".to_owned(), |quota| quota.to_string());
                fs::write(folder.join("cpu.cfs_period_us"), CPU_PERIOD.to_string())?;
                fs::write(folder.join("cpu.cfs_quota_us"), quota)?;
            }
        }
        if let Some((folder, v2)) = self.folder(Controller::Memory) {
            if v2 {
                let max = limits.memory_bytes.map_or("max".to_owned(), |max| max.to_string());
                if limits
                    .memory_bytes
                    .is_some_and(|max| held_memory(folder).is_ok_and(|held| held > max))
                {
                    // v1 refuses this by itself; v2 would kill until it fits.
                    return Err(io::Error::from_raw_os_error(libc::EBUSY));
                }
                fs::write(folder.join("memory.max"), &max)?;
                // Swapping would only hide the limit. Not every kernel has the file.
                let swap = if limits.memory_bytes.is_some() { "0" } else { "max" };
                let _ = fs::write(folder.join("memory.swap.max"), swap);
            } else {
                let max = limits.memory_bytes.map_or("-1".to_owned(), |max| max.to_string());
                let limit = || fs::write(folder.join("memory.limit_in_bytes"), &max);
                // The limit with swap is never below the one without: which of the two has to be
                // written first depends on the direction.
                let first = limit();
                let with_swap = folder.join("memory.memsw.limit_in_bytes");
                if with_swap.exists() {
                    fs::write(with_swap, &max)?;
                    limit()?;
                } else {
                    first?;
                }
            }
        }
        if let Some((folder, _)) = self.folder(Controller::Pids) {
            let max = limits.pids.map_or("max".to_owned(), |max| max.to_string());
            fs::write(folder.join("pids.max"), max)?;
        }
        Ok(())
    }

    /// What is used now.
    pub(crate) fn usage(&self) -> io::Result<Usage> {
        let stat = fs::read_to_string(self.unified.join("cpu.stat"))?;
        let memory = match self.folder(Controller::Memory) {
            Some((folder, v2)) => {
                let (total, droppable) = if v2 {
                    ("memory.current", "inactive_file")
                } else {
                    ("memory.usage_in_bytes", "total_inactive_file")
                };
                let total = read_number(&folder.join(total))?;
                let stat = fs::read_to_string(folder.join("memory.stat"))?;
                total.saturating_sub(field(&stat, droppable))
            }
            None => 0,
        };
        let pids = match self.folder(Controller::Pids) {
            Some((folder, _)) => read_number(&folder.join("pids.current"))?,
            None => 0,
        };
        let cpu_ns = field(&stat, "usage_usec") * 1_000;
        Ok(Usage { cpu_ns, memory_bytes: memory, pids })
    }

    /// Asks for freezing or thawing; [`is_frozen`](Self::is_frozen) says when it is done.
    pub(crate) fn freeze(&self, frozen: bool) -> io::Result<()> {
        fs::write(self.unified.join("cgroup.freeze"), if frozen { "1" } else { "0" })
    }

    /// Lets others have the processor first, together with all groups of the same Sandbox.
    pub(crate) fn yield_processor(&self) -> io::Result<()> {
        let Some((folder, v2)) = self.folder(Controller::Cpu) else { return Ok(()) };
        let sandbox = folder.parent().expect("a group is three levels deep");
        // A tenth of what others have.
        match v2 {
            true => fs::write(sandbox.join("cpu.weight"), "10"),
            false => fs::write(sandbox.join("cpu.shares"), "102"),
        }
    }

    /// What runs in it, in the host's numbers.
    pub(crate) fn processes(&self) -> io::Result<Vec<i32>> {
        let text = fs::read_to_string(self.unified.join("cgroup.procs"))?;
        Ok(text.lines().filter_map(|pid| pid.parse().ok()).collect())
    }

    /// Has freezing been asked for?
    pub(crate) fn is_to_freeze(&self) -> io::Result<bool> {
        Ok(fs::read_to_string(self.unified.join("cgroup.freeze"))?.trim() == "1")
    }

    /// Does nothing in it run?
    pub(crate) fn is_frozen(&self) -> io::Result<bool> {
        let events = fs::read_to_string(self.unified.join("cgroup.events"))?;
        Ok(field(&events, "frozen") == 1)
    }

    /// Removes the group, which must be empty.
    pub(crate) fn remove(&self) -> io::Result<()> {
        self.folders().map(|folder| remove_tree(folder)).fold(Ok(()), io::Result::and)
    }
}

/// Bytes in a v2 group that no reclaim can free. Files in memory (tmpfs) are such; cached pages of
/// files on disk are not.
fn held_memory(folder: &Path) -> io::Result<u64> {
    let total = read_number(&folder.join("memory.current"))?;
    let stat = fs::read_to_string(folder.join("memory.stat"))?;
    let droppable = ["inactive_file", "active_file", "slab_reclaimable"];
    Ok(total.saturating_sub(droppable.iter().map(|key| field(&stat, key)).sum()))
}

fn read_number(path: &Path) -> io::Result<u64> {
    let text = fs::read_to_string(path)?;
    text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The number after a key in a file of `key value` lines; 0 if it is not there.
fn field(text: &str, key: &str) -> u64 {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

/// Removes a group and those below it. Its files go with it, so only folders count.
fn remove_tree(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
tmpfs /sys/fs/cgroup tmpfs rw,mode=755 0 0
cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,relatime,cpu,cpuacct 0 0
cgroup /sys/fs/cgroup/memory cgroup rw,relatime,memory 0 0
cgroup /sys/fs/cgroup/pids cgroup rw,relatime,pids 0 0
cgroup2 /sys/fs/cgroup/unified cgroup2 rw,relatime 0 0
";

    #[test]
    fn a_hybrid_host_limits_on_v1_and_kills_on_v2() {
        let mut all = Cgroups::find("stead", HYBRID).unwrap();
        all.settle("hugetlb");
        let group = all.group("7", "main").describe();
        assert_eq!(group.unified, "/sys/fs/cgroup/unified/stead/7/main");
        assert_eq!(group.join.len(), 3);
        assert!(group.join[0].ends_with("/cpu,cpuacct/stead/7/main/cgroup.procs"));
        assert!(group.oom.unwrap().ends_with("memory/stead/7/main/memory.oom_control"));
        assert_eq!(group.view[1].0, "memory");
    }

    #[test]
    fn a_pure_host_uses_v2_for_all() {
        let mounts = "cgroup2 /sys/fs/cgroup cgroup2 rw 0 0\n";
        let mut all = Cgroups::find("stead", mounts).unwrap();
        all.settle("cpuset cpu io memory pids");
        let group = all.group("7", "main").describe();
        assert!(group.join.is_empty() && group.view.is_empty());
        assert_eq!(group.oom.unwrap(), "/sys/fs/cgroup/stead/7/main/memory.events");
    }

    #[test]
    fn a_host_without_v2_is_refused() {
        assert!(Cgroups::find("stead", "cgroup /sys/fs/cgroup/cpu cgroup rw,cpu 0 0\n").is_none());
    }

    #[test]
    fn fields_are_found_by_their_whole_name() {
        assert_eq!(field("oom 3\noom_kill 1\n", "oom_kill"), 1);
        assert_eq!(field("oom_kill 1\n", "oom"), 0);
    }
}
