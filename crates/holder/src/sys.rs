//! The kernel's calls, one thin function each, with `io::Result`.
//!
//! Everything here is safe to call between `clone` and `execve`: no locks, no allocation. The
//! calls whose C library wrappers broadcast to other threads (`setresuid`, `setgroups`, …) are
//! made raw: in a cloned process the wrappers wait for threads that do not exist.

use std::ffi::CStr;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::null;

use libc::{c_int, c_long, c_uint};

/// What the kernel calls `FSCONFIG_SET_FLAG` and so on; libc has no names for them yet.
const FSCONFIG_SET_FLAG: c_uint = 0;
const FSCONFIG_SET_STRING: c_uint = 1;
const FSCONFIG_SET_FD: c_uint = 5;
const FSCONFIG_CMD_CREATE: c_uint = 6;

fn check(result: c_long) -> io::Result<c_long> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn check_int(result: c_int) -> io::Result<c_int> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn owned(result: c_long) -> io::Result<OwnedFd> {
    let descriptor = check(result)? as RawFd;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// `clone3` without shared memory: the child goes on with a copy of everything.
/// Returns 0 in the child, its number in the parent.
///
/// With `CLONE_PARENT` the child belongs to the caller's parent.
pub(crate) fn clone(flags: c_int, cgroup: Option<BorrowedFd<'_>>) -> io::Result<c_int> {
    // SAFETY: all-zero is a valid clone_args.
    let mut arguments: libc::clone_args = unsafe { zeroed() };
    arguments.flags = flags as u64;
    if flags & libc::CLONE_PARENT == 0 {
        arguments.exit_signal = libc::SIGCHLD as u64;
    }
    if let Some(cgroup) = cgroup {
        // The constant does not fit the C int that libc declares it as.
        arguments.flags |= 0x2_0000_0000;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM this is a fork; the holder has one thread, so no lock can be held
    // by another one in the child.
    let pid = unsafe {
        libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>())
    };
    Ok(check(pid)? as c_int)
}

/// Ends this process at once, without any clean-up of the language.
pub(crate) fn exit(code: c_int) -> ! {
    // SAFETY: `_exit` has no preconditions.
    unsafe { libc::_exit(code) }
}

pub(crate) fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: the array has room for both ends.
    check_int(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: both were just made.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

pub(crate) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC;
    // SAFETY: the array has room for both ends.
    check_int(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, ends.as_mut_ptr()) })?;
    // SAFETY: both were just made.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

pub(crate) fn netlink_socket(protocol: c_int) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_RAW | libc::SOCK_CLOEXEC;
    // SAFETY: no pointers.
    owned(unsafe { libc::socket(libc::AF_NETLINK, kind, protocol) }.into())
}

/// Moves this process into a new netns.
pub(crate) fn unshare_net() -> io::Result<()> {
    // SAFETY: no pointers.
    check_int(unsafe { libc::unshare(libc::CLONE_NEWNET) }).map(drop)
}

pub(crate) fn set_nonblocking(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    unsafe {
        let flags = check_int(libc::fcntl(descriptor.as_raw_fd(), libc::F_GETFL))?;
        let flags = flags | libc::O_NONBLOCK;
        check_int(libc::fcntl(descriptor.as_raw_fd(), libc::F_SETFL, flags))?;
    }
    Ok(())
}

pub(crate) fn chown_descriptor(descriptor: BorrowedFd<'_>, uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: no pointers.
    check_int(unsafe { libc::fchown(descriptor.as_raw_fd(), uid, gid) }).map(drop)
}

pub(crate) fn read(descriptor: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        // SAFETY: the buffer is live and as long as stated.
        let got =
            unsafe { libc::read(descriptor.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) };
        match check(got as c_long) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(|n| n as usize),
        }
    }
}

pub(crate) fn write(descriptor: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    // SAFETY: the buffer is live and as long as stated.
    let put = unsafe { libc::write(descriptor.as_raw_fd(), bytes.as_ptr().cast(), bytes.len()) };
    check(put as c_long).map(|n| n as usize)
}

/// Waits until a descriptor is readable or closed. `false` when the time is over.
pub(crate) fn wait_readable(descriptor: BorrowedFd<'_>, milliseconds: c_int) -> io::Result<bool> {
    let mut poll = libc::pollfd { fd: descriptor.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    loop {
        // SAFETY: one live entry.
        match check_int(unsafe { libc::poll(&raw mut poll, 1, milliseconds) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(|ready| ready > 0),
        }
    }
}

/// Waits until nobody reads from this end of a pipe any more. `false` when the time is over.
pub(crate) fn wait_unread(writer: BorrowedFd<'_>, milliseconds: c_int) -> io::Result<bool> {
    // The kernel reports POLLERR without being asked.
    let mut poll = libc::pollfd { fd: writer.as_raw_fd(), events: 0, revents: 0 };
    loop {
        // SAFETY: one live entry.
        match check_int(unsafe { libc::poll(&raw mut poll, 1, milliseconds) }) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other.map(|ready| ready > 0),
        }
    }
}

/// Waits until one of the entries is ready, for as long as it takes.
pub(crate) fn poll(entries: &mut [libc::pollfd]) {
    // SAFETY: the entries are live and as many as stated. An interruption looks like "none".
    unsafe { libc::poll(entries.as_mut_ptr(), entries.len() as libc::nfds_t, -1) };
}

/// A listening `SOCK_SEQPACKET` socket bound to a name in the current folder.
pub(crate) fn listen(name: &CStr) -> io::Result<OwnedFd> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: all-zero is a valid address; the name is copied within its bounds and stays
    // terminated.
    unsafe {
        let socket = owned(libc::socket(libc::AF_UNIX, kind, 0).into())?;
        let mut address: libc::sockaddr_un = zeroed();
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        let room = address.sun_path.len() - 1;
        for (to, from) in address.sun_path[..room].iter_mut().zip(name.to_bytes()) {
            *to = *from as libc::c_char;
        }
        let length = size_of::<libc::sockaddr_un>() as libc::socklen_t;
        check_int(libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length))?;
        check_int(libc::listen(socket.as_raw_fd(), 4))?;
        Ok(socket)
    }
}

/// The next waiting connection, if there is one.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> Option<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no address is asked for.
    owned(
        unsafe {
            libc::accept4(listener.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut(), flags)
        }
        .into(),
    )
    .ok()
}

pub(crate) fn open(path: &CStr, flags: c_int) -> io::Result<OwnedFd> {
    // SAFETY: the path is terminated.
    owned(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0) }.into())
}

/// Opens `path` with `root` as its root, through symbolic links but not through the magic ones of
/// proc, which lead out of any root.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, path: &CStr, flags: c_int) -> io::Result<OwnedFd> {
    // SAFETY: all-zero is a valid open_how.
    let mut how: libc::open_how = unsafe { zeroed() };
    how.flags = (flags | libc::O_CLOEXEC) as u64;
    how.mode = if flags & libc::O_CREAT != 0 { 0o644 } else { 0 };
    how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
    // SAFETY: the path is terminated, the structure is live and its size stated.
    owned(unsafe {
        libc::syscall(
            libc::SYS_openat2,
            root.as_raw_fd(),
            path.as_ptr(),
            &raw const how,
            size_of::<libc::open_how>(),
        )
    })
}

pub(crate) fn make_folder(parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: the name is terminated.
    check_int(unsafe { libc::mkdirat(parent.as_raw_fd(), name.as_ptr(), 0o755) }).map(drop)
}

pub(crate) fn make_link(text: &CStr, parent: BorrowedFd<'_>, name: &CStr) -> io::Result<()> {
    // SAFETY: both are terminated.
    check_int(unsafe { libc::symlinkat(text.as_ptr(), parent.as_raw_fd(), name.as_ptr()) })
        .map(drop)
}

pub(crate) fn change_folder(descriptor: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    check_int(unsafe { libc::fchdir(descriptor.as_raw_fd()) }).map(drop)
}

/// A detached copy of the mount at `path`, which can be changed before anybody sees it.
pub(crate) fn open_tree(path: &CStr, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE as c_uint;
    }
    // SAFETY: the path is terminated.
    owned(unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) })
}

/// Changes attributes of a mount; with `mapping`, its ids are mapped as in that userns.
pub(crate) fn set_mount(
    mount: BorrowedFd<'_>,
    attributes: u64,
    mapping: Option<BorrowedFd<'_>>,
    recursive: bool,
) -> io::Result<()> {
    // SAFETY: all-zero is a valid mount_attr.
    let mut wanted: libc::mount_attr = unsafe { zeroed() };
    wanted.attr_set = attributes;
    if let Some(userns) = mapping {
        wanted.attr_set |= libc::MOUNT_ATTR_IDMAP;
        wanted.userns_fd = userns.as_raw_fd() as u64;
    }
    let flags = libc::AT_EMPTY_PATH | if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is terminated, the structure is live and its size stated.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

pub(crate) fn fs_open(kind: &CStr) -> io::Result<OwnedFd> {
    // SAFETY: the name is terminated; 1 is FSOPEN_CLOEXEC.
    owned(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), 1) })
}

fn fs_config(
    fs: BorrowedFd<'_>,
    command: c_uint,
    key: Option<&CStr>,
    value: Option<&CStr>,
    number: c_int,
) -> io::Result<()> {
    let key = key.map_or(null(), CStr::as_ptr);
    let value = value.map_or(null(), CStr::as_ptr);
    // SAFETY: both texts are terminated or null, as the command wants.
    check(unsafe { libc::syscall(libc::SYS_fsconfig, fs.as_raw_fd(), command, key, value, number) })
        .map(drop)
}

pub(crate) fn fs_flag(fs: BorrowedFd<'_>, key: &CStr) -> io::Result<()> {
    fs_config(fs, FSCONFIG_SET_FLAG, Some(key), None, 0)
}

pub(crate) fn fs_text(fs: BorrowedFd<'_>, key: &CStr, value: &CStr) -> io::Result<()> {
    fs_config(fs, FSCONFIG_SET_STRING, Some(key), Some(value), 0)
}

pub(crate) fn fs_descriptor(
    fs: BorrowedFd<'_>,
    key: &CStr,
    value: BorrowedFd<'_>,
) -> io::Result<()> {
    fs_config(fs, FSCONFIG_SET_FD, Some(key), None, value.as_raw_fd())
}

/// Makes the file system that was configured and returns it as a detached mount.
pub(crate) fn fs_mount(fs: BorrowedFd<'_>, attributes: u64) -> io::Result<OwnedFd> {
    fs_config(fs, FSCONFIG_CMD_CREATE, None, None, 0)?;
    // SAFETY: no pointers; 1 is FSMOUNT_CLOEXEC.
    owned(unsafe { libc::syscall(libc::SYS_fsmount, fs.as_raw_fd(), 1, attributes as c_uint) })
}

/// Puts a detached mount onto an open folder or file.
pub(crate) fn move_mount(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    // MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH
    const BOTH_OPEN: c_uint = 0x04 | 0x40;
    // SAFETY: both paths are terminated.
    check(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            target.as_raw_fd(),
            c"".as_ptr(),
            BOTH_OPEN,
        )
    })
    .map(drop)
}

/// Keeps mounts of the host from arriving here and ours from arriving there.
pub(crate) fn make_mounts_private() -> io::Result<()> {
    let flags = libc::MS_REC | libc::MS_PRIVATE;
    // SAFETY: texts are terminated or null.
    check_int(unsafe { libc::mount(null(), c"/".as_ptr(), null(), flags, null()) }).map(drop)
}

/// Takes a mount away; whoever still uses it keeps it.
pub(crate) fn detach(path: &CStr) {
    // SAFETY: the path is terminated. A mount that is gone already is just as good.
    unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH) };
}

/// Makes the current folder the root and lets go of the old one.
pub(crate) fn pivot_here() -> io::Result<()> {
    // SAFETY: texts are terminated.
    unsafe {
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
        check_int(libc::umount2(c".".as_ptr(), libc::MNT_DETACH))?;
        check_int(libc::chdir(c"/".as_ptr()))?;
    }
    Ok(())
}

/// Joins one namespace by its file, or several by a pidfd.
pub(crate) fn join(descriptor: BorrowedFd<'_>, kinds: c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    check_int(unsafe { libc::setns(descriptor.as_raw_fd(), kinds) }).map(drop)
}

pub(crate) fn pidfd(pid: c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    owned(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })
}

pub(crate) fn kill(pid: c_int, signal: c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    check_int(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// Reaps one ended child if there is one: its number and raw status.
pub(crate) fn reap_any() -> Option<(c_int, c_int)> {
    let mut status = 0;
    // SAFETY: the status is live.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG | libc::__WALL) };
    (pid > 0).then_some((pid, status))
}

/// Waits for one child.
pub(crate) fn reap(pid: c_int) -> Option<c_int> {
    let mut status = 0;
    loop {
        // SAFETY: the status is live.
        let got = unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
        if got == pid {
            return Some(status);
        }
        if io::Error::last_os_error().kind() != io::ErrorKind::Interrupted {
            return None;
        }
    }
}

pub(crate) fn set_hostname(name: &CStr) -> io::Result<()> {
    // SAFETY: the name is live and as long as stated.
    check_int(unsafe { libc::sethostname(name.as_ptr(), name.count_bytes()) }).map(drop)
}

/// A session of one's own: no terminal, no process group of anybody else.
pub(crate) fn new_session() {
    // SAFETY: no pointers. It fails only for a group leader, which is one already.
    unsafe { libc::setsid() };
}

pub(crate) fn set_ids(uid: u32, gid: u32, groups: &[u32]) -> io::Result<()> {
    // SAFETY: the list is live and as long as stated; the rest are numbers.
    unsafe {
        check(libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()))?;
        check(libc::syscall(libc::SYS_setresgid, gid, gid, gid))?;
        check(libc::syscall(libc::SYS_setresuid, uid, uid, uid))?;
    }
    Ok(())
}

pub(crate) fn prctl(option: c_int, value: libc::c_ulong) -> io::Result<()> {
    // SAFETY: all options used here take numbers, or the address of a constant text.
    check_int(unsafe { libc::prctl(option, value, 0, 0, 0) }).map(drop)
}

/// Sets the effective, permitted capabilities to `kept` and empties the inheritable ones.
pub(crate) fn set_capabilities(kept: u64) -> io::Result<()> {
    /// `_LINUX_CAPABILITY_VERSION_3`
    const VERSION: u32 = 0x2008_0522;
    let header: [u32; 2] = [VERSION, 0];
    let (low, high) = (kept as u32, (kept >> 32) as u32);
    let data: [[u32; 3]; 2] = [[low, low, 0], [high, high, 0]];
    // SAFETY: header and data have the layout of version 3.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) }).map(drop)
}

pub(crate) fn install_filter(program: &[libc::sock_filter]) -> io::Result<()> {
    let program =
        libc::sock_fprog { len: program.len() as u16, filter: program.as_ptr().cast_mut() };
    // SAFETY: the program is live and as long as stated.
    check(unsafe {
        libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program)
    })
    .map(drop)
}

/// Closes, or marks to be closed at `execve`, every descriptor from `first` to `last`.
pub(crate) fn close_range(first: c_uint, last: c_uint, on_exec: bool) {
    let flags = if on_exec { libc::CLOSE_RANGE_CLOEXEC } else { 0 };
    // SAFETY: the callers own no `OwnedFd` in the range that they go on using.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
}

/// Makes `to` another name of a descriptor, without close-on-exec.
pub(crate) fn duplicate(from: RawFd, to: RawFd) -> io::Result<()> {
    if from == to {
        // dup2 would leave close-on-exec set.
        // SAFETY: no pointers.
        return check_int(unsafe { libc::fcntl(from, libc::F_SETFD, 0) }).map(drop);
    }
    // SAFETY: no pointers.
    check_int(unsafe { libc::dup2(from, to) }).map(drop)
}

/// Blocks every signal.
pub(crate) fn block_signals() {
    // SAFETY: the set is live; sigfillset and sigprocmask cannot fail on it.
    unsafe {
        let mut all: libc::sigset_t = zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const all, std::ptr::null_mut());
    }
}

/// The signal state of a fresh program: nothing blocked, nothing ignored.
pub(crate) fn reset_signals() {
    // SAFETY: the set is live. Numbers that cannot be changed are refused, which is right.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

/// Waits for any blocked signal and returns its number.
pub(crate) fn next_signal() -> c_int {
    // SAFETY: the set is live; no information is asked for.
    unsafe {
        let mut all: libc::sigset_t = zeroed();
        libc::sigfillset(&raw mut all);
        libc::sigwaitinfo(&raw const all, std::ptr::null_mut())
    }
}

/// A descriptor that becomes readable when a child ends.
pub(crate) fn child_signals() -> io::Result<OwnedFd> {
    // SAFETY: the set is live.
    let descriptor = unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK)
    };
    owned(descriptor.into())
}

/// The time in nanoseconds since the Unix epoch.
pub(crate) fn now() -> u64 {
    clock(libc::CLOCK_REALTIME)
}

/// Nanoseconds of a clock that never jumps.
pub(crate) fn monotonic() -> u64 {
    clock(libc::CLOCK_MONOTONIC)
}

fn clock(which: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure is live.
    unsafe { libc::clock_gettime(which, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

/// Runs a program. Returns only if that failed.
pub(crate) fn execute(
    program: &CStr,
    arguments: &[*const libc::c_char],
    environment: &[*const libc::c_char],
) -> io::Error {
    debug_assert!(arguments.last().is_some_and(|end| end.is_null()));
    debug_assert!(environment.last().is_some_and(|end| end.is_null()));
    // SAFETY: both lists end with null and their texts are terminated and live.
    unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) };
    io::Error::last_os_error()
}

/// Is this a terminal multiplexer of devpts?
pub(crate) fn is_devpts(descriptor: BorrowedFd<'_>) -> bool {
    const DEVPTS: i64 = 0x1cd1;
    // SAFETY: the structure is live.
    unsafe {
        let mut about: libc::statfs = zeroed();
        libc::fstatfs(descriptor.as_raw_fd(), &raw mut about) == 0 && about.f_type == DEVPTS
    }
}

/// The other end of a terminal's master, made the controlling terminal of this session.
pub(crate) fn terminal_peer(
    master: BorrowedFd<'_>,
    rows: u16,
    columns: u16,
) -> io::Result<OwnedFd> {
    let size = libc::winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let unlock: c_int = 0;
    // SAFETY: the pointers are live; the other requests take numbers.
    unsafe {
        check_int(libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlock))?;
        check_int(libc::ioctl(master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size))?;
        let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
        let peer = owned(libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags).into())?;
        check_int(libc::ioctl(peer.as_raw_fd(), libc::TIOCSCTTY, 0))?;
        Ok(peer)
    }
}

/// Gives memory that is no longer used back to the kernel.
pub(crate) fn trim_memory() {
    // SAFETY: no preconditions.
    unsafe { libc::malloc_trim(0) };
}
