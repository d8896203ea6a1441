//! Telling a hybrid host that control groups change often.
//!
//! A Container joins its v1 groups by writes to `cgroup.procs`. The first such write after a
//! quiet time waits until every processor has passed a quiescent state: some milliseconds, more
//! on a busy machine, and more than all the rest of a set-up. The mount option `favordynmods`
//! (Linux 6.0, [cgroup v2 documentation]) spares the wait, for all hierarchies at once, at the
//! price of slightly dearer forks and exits. On a pure v2 host processes are born in their
//! group, nothing waits, and nothing is set.
//!
//! [cgroup v2 documentation]: https://docs.kernel.org/admin-guide/cgroup-v2.html

use std::ffi::CString;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{FsPickFlags, fsconfig_reconfigure, fsconfig_set_flag, fspick};

const FAVOUR: &str = "favordynmods";

/// Options of the v2 tree that a change of one of them must repeat.
const OPTIONS: [&str; 5] = [
    "nsdelegate",
    "memory_localevents",
    "memory_recursiveprot",
    "memory_hugetlb_accounting",
    "pids_localevents",
];

/// Sets or clears the option on the v2 tree at `place`. `options` are those it is mounted with
/// now, as `/proc/self/mounts` says. False: it was so already.
pub(super) fn set(place: &Path, options: &str, favour: bool) -> io::Result<bool> {
    let now: Vec<&str> = options.split(',').collect();
    if now.contains(&FAVOUR) == favour {
        return Ok(false);
    }
    let path = CString::new(place.as_os_str().as_bytes())?;
    let fs = fspick(CWD, path.as_c_str(), FsPickFlags::FSPICK_CLOEXEC)?;
    let kept = OPTIONS.iter().filter(|option| now.contains(option));
    for option in kept.chain(favour.then_some(&FAVOUR)) {
        fsconfig_set_flag(fs.as_fd(), *option)?;
    }
    fsconfig_reconfigure(fs.as_fd())?;
    Ok(true)
}
