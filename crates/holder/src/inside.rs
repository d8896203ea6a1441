//! From `clone` to the gate: how a Container's first processes set themselves up.
//!
//! Three processes, because a namespace belongs to the userns that was current when it was made:
//!
//! 1. the *porter* joins the Sandbox's namespaces and makes, as a child of the holder,
//! 2. the *init*: process 1 of the new pid namespace, with mounts of its own. It puts the root
//!    file system together, forks
//! 3. the *main* process, which waits at its gate, and then only reaps, forwards signals and
//!    ends when the main process ends.
//!
//! This code runs in a copy of the holder. It must not return into the holder's loop, and it
//! leaves by [`sys::exit`].

use std::ffi::CStr;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::namespaces::Namespaces;
use crate::program::{self, Filter, Last, Lists, Program, Stdio};
use crate::report::{Fault, InStep, Report, Step};
use crate::root::{Piece, fresh};
use crate::sys;

type Outcome<T> = Result<T, Fault>;

/// Everything the set-up needs, built before `clone`.
pub(crate) struct Plan<'a> {
    pub(crate) namespaces: &'a Namespaces,
    /// The netns of its slot.
    pub(crate) net: BorrowedFd<'a>,
    pub(crate) join: Vec<OwnedFd>,
    pub(crate) root: OwnedFd,
    pub(crate) read_only: bool,
    pub(crate) devices: Vec<Piece>,
    pub(crate) cgroup_view: Vec<Piece>,
    pub(crate) pieces: Vec<Piece>,
    pub(crate) hostname: CString,
    pub(crate) program: &'a Program,
    pub(crate) lists: &'a Lists,
    pub(crate) filter: Option<&'a Filter>,
    pub(crate) stdout: OwnedFd,
    pub(crate) stderr: OwnedFd,
    pub(crate) report: OwnedFd,
    pub(crate) gate: OwnedFd,
}

/// The porter's whole life.
pub(crate) fn porter(plan: &Plan<'_>) -> ! {
    match enter(plan) {
        Ok(0) => init(plan),
        Ok(pid) => {
            Report::Born(pid).send(plan.report.as_fd());
            sys::exit(0)
        }
        Err(fault) => give_up(fault, plan.report.as_fd()),
    }
}

fn give_up(fault: Fault, report: BorrowedFd<'_>) -> ! {
    Report::Failed(fault).send(report);
    sys::exit(126)
}

/// Joins and clones: 0 in the init, its number in the porter.
fn enter(plan: &Plan<'_>) -> Outcome<i32> {
    join_cgroups(&plan.join)?;
    let namespaces = plan.namespaces;
    sys::join(namespaces.user.as_fd(), libc::CLONE_NEWUSER).step(Step::Join)?;
    sys::join(plan.net, libc::CLONE_NEWNET).step(Step::Join)?;
    sys::join(namespaces.ipc.as_fd(), libc::CLONE_NEWIPC).step(Step::Join)?;
    sys::join(namespaces.uts.as_fd(), libc::CLONE_NEWUTS).step(Step::Join)?;
    sys::set_ids(0, 0, &[]).step(Step::Identity)?;
    let kinds = libc::CLONE_PARENT | libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWCGROUP;
    sys::clone(kinds, None).step(Step::Clone)
}

/// Writing 0 moves the writer.
pub(crate) fn join_cgroups(procs: &[OwnedFd]) -> Outcome<()> {
    for (at, file) in procs.iter().enumerate() {
        sys::write(file.as_fd(), b"0").step_at(Step::Cgroup, at)?;
    }
    Ok(())
}

fn init(plan: &Plan<'_>) -> ! {
    // A Container without its holder has nobody to report its end to: it ends with it.
    let _ = sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong);
    // Nobody inside may look into this copy of the holder.
    let _ = sys::prctl(libc::PR_SET_DUMPABLE, 0);
    let _ = sys::prctl(libc::PR_SET_NAME, c"stead-init".as_ptr() as libc::c_ulong);
    sys::block_signals();
    match assemble(plan).and_then(|()| fork_main(plan)) {
        Ok(main) => attend(main, plan.report.as_raw_fd()),
        Err(fault) => give_up(fault, plan.report.as_fd()),
    }
}

/// Puts the Container's view of the world together.
fn assemble(plan: &Plan<'_>) -> Outcome<()> {
    sys::make_mounts_private().step(Step::Private)?;
    // The kernel gives a new proc and sysfs only while the host's are still in sight.
    let quiet = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let proc = fresh(c"proc", &[], quiet).step(Step::Proc)?;
    let sysfs = fresh(c"sysfs", &[], quiet | libc::MOUNT_ATTR_RDONLY).step(Step::Sys)?;
    let cgroup = fresh(c"cgroup2", &[], quiet | libc::MOUNT_ATTR_RDONLY).step(Step::CgroupView)?;

    // Any folder serves as a foothold: this mount namespace is ours alone.
    let foothold = sys::open(c"/proc", libc::O_PATH).step(Step::Root)?;
    sys::move_mount(plan.root.as_fd(), foothold.as_fd()).step(Step::Root)?;
    sys::change_folder(plan.root.as_fd()).step(Step::Root)?;
    sys::pivot_here().step(Step::Root)?;
    let root = sys::open(c"/", libc::O_PATH | libc::O_DIRECTORY).step(Step::Root)?;

    attach(&proc, &root, c"proc", true).step(Step::Proc)?;
    attach(&sysfs, &root, c"sys", true).step(Step::Sys)?;
    set_up_devices(plan, &root).step(Step::Dev)?;
    show_cgroups(plan, &root, &cgroup).step(Step::CgroupView)?;
    mask().step(Step::Mask)?;
    for (at, piece) in plan.pieces.iter().enumerate() {
        attach(&piece.mount, &root, &piece.target, piece.is_folder).step_at(Step::Mount, at)?;
    }

    let cwd = target(root.as_fd(), &plan.program.cwd, true).step(Step::Folder)?;
    sys::change_folder(cwd.as_fd()).step(Step::Folder)?;
    if plan.read_only {
        sys::set_mount(plan.root.as_fd(), libc::MOUNT_ATTR_RDONLY, None, false)
            .step(Step::ReadOnly)?;
    }
    sys::set_hostname(&plan.hostname).step(Step::Hostname)
}

fn set_up_devices(plan: &Plan<'_>, root: &OwnedFd) -> io::Result<()> {
    let safe = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NOEXEC;
    let dev = fresh(
        c"tmpfs",
        &[(c"mode", c"755"), (c"size", c"65536k")],
        libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_STRICTATIME,
    )?;
    attach(&dev, root, c"dev", true)?;
    for device in &plan.devices {
        attach(&device.mount, &dev, &device.target, false)?;
    }
    let pts = fresh(
        c"devpts",
        &[(c"newinstance", c""), (c"ptmxmode", c"0666"), (c"mode", c"0620"), (c"gid", c"5")],
        safe,
    )?;
    attach(&pts, &dev, c"pts", true)?;
    let shm = fresh(
        c"tmpfs",
        &[(c"mode", c"1777"), (c"size", c"65536k")],
        safe | libc::MOUNT_ATTR_NODEV,
    )?;
    attach(&shm, &dev, c"shm", true)?;
    let queues = fresh(c"mqueue", &[], safe | libc::MOUNT_ATTR_NODEV)?;
    attach(&queues, &dev, c"mqueue", true)?;
    for (text, name) in [
        (c"/proc/self/fd", c"fd"),
        (c"/proc/self/fd/0", c"stdin"),
        (c"/proc/self/fd/1", c"stdout"),
        (c"/proc/self/fd/2", c"stderr"),
        (c"pts/ptmx", c"ptmx"),
    ] {
        sys::make_link(text, dev.as_fd(), name)?;
    }
    Ok(())
}

/// On a pure v2 host the whole tree below the Container's group; on a hybrid one a folder per
/// controller, which is where a JVM looks for its limits.
fn show_cgroups(plan: &Plan<'_>, root: &OwnedFd, unified: &OwnedFd) -> io::Result<()> {
    if plan.cgroup_view.is_empty() {
        return attach(unified, root, c"sys/fs/cgroup", true);
    }
    let safe = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
    let folder = fresh(c"tmpfs", &[(c"mode", c"755"), (c"size", c"64k")], safe)?;
    attach(&folder, root, c"sys/fs/cgroup", true)?;
    for piece in &plan.cgroup_view {
        attach(&piece.mount, &folder, &piece.target, true)?;
    }
    attach(unified, &folder, c"unified", true)?;
    sys::set_mount(folder.as_fd(), libc::MOUNT_ATTR_RDONLY, None, false)
}

/// Hides what tells about the host and protects what would change it, as runc does.
fn mask() -> io::Result<()> {
    for file in [
        c"/proc/kcore",
        c"/proc/keys",
        c"/proc/latency_stats",
        c"/proc/timer_list",
        c"/proc/timer_stats",
        c"/proc/sched_debug",
    ] {
        unless_missing(cover(file, || sys::open_tree(c"/dev/null", false)))?;
    }
    for folder in [
        c"/proc/acpi",
        c"/proc/asound",
        c"/proc/scsi",
        c"/sys/firmware",
        c"/sys/devices/virtual/powercap",
    ] {
        let empty = || fresh(c"tmpfs", &[(c"size", c"4k")], libc::MOUNT_ATTR_RDONLY);
        unless_missing(cover(folder, empty))?;
    }
    for path in [c"/proc/bus", c"/proc/fs", c"/proc/irq", c"/proc/sys", c"/proc/sysrq-trigger"] {
        unless_missing(cover(path, || {
            let copy = sys::open_tree(path, true)?;
            sys::set_mount(copy.as_fd(), libc::MOUNT_ATTR_RDONLY, None, true)?;
            Ok(copy)
        }))?;
    }
    Ok(())
}

fn cover(path: &CStr, with: impl FnOnce() -> io::Result<OwnedFd>) -> io::Result<()> {
    let place = sys::open(path, libc::O_PATH)?;
    sys::move_mount(with()?.as_fd(), place.as_fd())
}

fn unless_missing(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn attach(mount: &OwnedFd, root: &OwnedFd, path: &CStr, is_folder: bool) -> io::Result<()> {
    let place = target(root.as_fd(), path, is_folder)?;
    sys::move_mount(mount.as_fd(), place.as_fd())
}

/// Opens the place of a mount, making it and the folders above it when missing. Symbolic links
/// of the image are followed, inside the root only.
fn target(root: BorrowedFd<'_>, path: &CStr, is_folder: bool) -> io::Result<OwnedFd> {
    match sys::open_in_root(root, path, libc::O_PATH) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other,
    }
    let bytes = path.to_bytes();
    let mut buffer = [0u8; libc::PATH_MAX as usize];
    if bytes.len() >= buffer.len() {
        return Err(io::Error::from_raw_os_error(libc::ENAMETOOLONG));
    }
    buffer[..bytes.len()].copy_from_slice(bytes);
    let mut parent = sys::open_in_root(root, c".", libc::O_PATH)?;
    let mut start = 0;
    while start < bytes.len() {
        let end = bytes[start..].iter().position(|b| *b == b'/').map_or(bytes.len(), |n| start + n);
        buffer[end] = 0;
        let whole = CStr::from_bytes_until_nul(&buffer).unwrap_or(c".");
        let name = CStr::from_bytes_until_nul(&buffer[start..]).unwrap_or(c".");
        if end > start {
            if end == bytes.len() && !is_folder {
                let make = libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY;
                sys::open_in_root(root, whole, make)?;
            } else {
                match sys::make_folder(parent.as_fd(), name) {
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                    other => other?,
                }
            }
            parent = sys::open_in_root(root, whole, libc::O_PATH)?;
        }
        if end < bytes.len() {
            buffer[end] = b'/';
        }
        start = end + 1;
    }
    Ok(parent)
}

fn fork_main(plan: &Plan<'_>) -> Outcome<i32> {
    let stdin = sys::open(c"/dev/null", libc::O_RDONLY).step(Step::Stdio)?;
    let files = [stdin.as_raw_fd(), plan.stdout.as_raw_fd(), plan.stderr.as_raw_fd()];
    let needed = [plan.report.as_raw_fd(), plan.gate.as_raw_fd(), files[0], files[1], files[2]];
    // The holder's other descriptors must not reach a process that others inside can see.
    keep_only(needed);
    let main = sys::clone(0, None).step(Step::Main)?;
    if main == 0 {
        program::become_program(&Last {
            program: plan.program,
            lists: plan.lists,
            filter: plan.filter,
            stdio: Stdio::Files(files),
            report: plan.report.as_fd(),
            gate: plan.gate.as_fd(),
        });
    }
    // `stdin` was only for the child; it goes with all the rest.
    std::mem::forget(stdin);
    Ok(main)
}

/// Closes every descriptor above 2 but these.
pub(crate) fn keep_only<const N: usize>(mut needed: [RawFd; N]) {
    needed.sort_unstable();
    let mut next = 3;
    for descriptor in needed.map(|descriptor| descriptor as u32) {
        if descriptor > next {
            sys::close_range(next, descriptor - 1, false);
        }
        next = next.max(descriptor + 1);
    }
    sys::close_range(next, u32::MAX, false);
}

/// What the init does for the rest of its life.
fn attend(main: i32, report: RawFd) -> ! {
    keep_only([report]);
    // SAFETY: it was open before and has been kept; nobody closes it.
    let report = unsafe { BorrowedFd::borrow_raw(report) };
    let _ = sys::set_capabilities(program::KILL);
    loop {
        match sys::next_signal() {
            libc::SIGCHLD => {
                while let Some((pid, status)) = sys::reap_any() {
                    if pid == main {
                        Report::Ended(status).send(report);
                        sys::exit(0);
                    }
                }
            }
            signal if signal > 0 => {
                let _ = sys::kill(main, signal);
            }
            _ => {}
        }
    }
}
