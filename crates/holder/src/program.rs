//! A program made ready for `execve`, and the last steps before it.
//!
//! All texts and lists are built in the holder, before `clone`; [`become_program`] runs after it
//! and allocates nothing.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::ptr::null;

use stead_holder::{channel, wire};

use crate::failure::{Context, Result, text};
use crate::report::{Fault, InStep, Report, Step};
use crate::sys;

/// Where a program without a slash is looked for when its environment has no `PATH`.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The highest capability this kernel header knows; unknown ones cannot be held anyway.
const LAST_CAPABILITY: u64 = 40;

/// What root inside keeps: Docker's default set without `NET_RAW` (spoofing on the host's
/// network), `MKNOD`, `SETFCAP` (privileges left behind in files) and `AUDIT_WRITE`.
pub(crate) const CAPABILITIES: u64 = (1 << 0) // CHOWN
    | (1 << 1) // DAC_OVERRIDE
    | (1 << 3) // FOWNER
    | (1 << 4) // FSETID
    | KILL
    | (1 << 6) // SETGID
    | (1 << 7) // SETUID
    | (1 << 8) // SETPCAP
    | (1 << 10) // NET_BIND_SERVICE
    | (1 << 18); // SYS_CHROOT

/// The only capability an init needs: to signal a main process of another user.
pub(crate) const KILL: u64 = 1 << 5;

/// A program, ready to run.
pub(crate) struct Program {
    /// The paths to try, in order.
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
    pub(crate) cwd: CString,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl Program {
    /// Builds every text that will be needed.
    pub(crate) fn new(process: &wire::Process) -> Result<Self> {
        let Some(name) = process.argv.first().filter(|name| !name.is_empty()) else {
            return Err(wire::Failure::NotUnderstood("an empty command".into()));
        };
        let candidates = if name.contains('/') {
            vec![text(name)?]
        } else {
            let path = process.env.iter().rev().find_map(|entry| entry.strip_prefix("PATH="));
            path.unwrap_or(DEFAULT_PATH)
                .split(':')
                .filter(|folder| !folder.is_empty())
                .map(|folder| text(&format!("{folder}/{name}")))
                .collect::<Result<_>>()?
        };
        let cwd = if process.cwd.is_empty() { "/" } else { &process.cwd };
        Ok(Self {
            candidates,
            argv: process.argv.iter().map(|part| text(part)).collect::<Result<_>>()?,
            env: process.env.iter().map(|part| text(part)).collect::<Result<_>>()?,
            cwd: text(cwd)?,
            uid: process.uid,
            gid: process.gid,
            groups: process.groups.clone(),
        })
    }

    /// The lists `execve` wants. They point into `self`.
    pub(crate) fn lists(&self) -> Lists {
        let pointers = |texts: &[CString]| {
            texts.iter().map(|text| text.as_ptr()).chain([null()]).collect::<Vec<_>>()
        };
        Lists { argv: pointers(&self.argv), env: pointers(&self.env) }
    }

    /// Tries every candidate, as `execvp` does. Returns why none could be run.
    fn execute(&self, lists: &Lists) -> i32 {
        let mut worst = libc::ENOENT;
        for candidate in &self.candidates {
            let error = sys::execute(candidate, &lists.argv, &lists.env);
            match error.raw_os_error().unwrap_or(libc::EIO) {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => worst = libc::EACCES,
                other => return other,
            }
        }
        worst
    }
}

/// Null-terminated lists of a [`Program`]'s texts.
pub(crate) struct Lists {
    argv: Vec<*const libc::c_char>,
    env: Vec<*const libc::c_char>,
}

/// A seccomp program as the kernel wants it.
pub(crate) struct Filter(Vec<libc::sock_filter>);

impl Filter {
    /// Reads the file the engine compiled.
    pub(crate) fn load(path: &str) -> Result<Self> {
        let bytes = fs::read(path).because(|| format!("system call filter {path}"))?;
        let (instructions, rest) = bytes.as_chunks::<8>();
        if !rest.is_empty() || instructions.is_empty() {
            return Err(wire::Failure::NotUnderstood(format!("system call filter {path}")));
        }
        let decode = |at: &[u8; 8]| libc::sock_filter {
            code: u16::from_ne_bytes([at[0], at[1]]),
            jt: at[2],
            jf: at[3],
            k: u32::from_ne_bytes([at[4], at[5], at[6], at[7]]),
        };
        Ok(Self(instructions.iter().map(decode).collect()))
    }
}

/// Where a program's input and output go.
pub(crate) enum Stdio<'a> {
    Files([RawFd; 3]),
    /// A new terminal, whose master end is sent through the socket.
    Terminal {
        rows: u16,
        columns: u16,
        to: BorrowedFd<'a>,
    },
}

/// Everything [`become_program`] needs.
pub(crate) struct Last<'a> {
    pub(crate) program: &'a Program,
    pub(crate) lists: &'a Lists,
    pub(crate) filter: Option<&'a Filter>,
    pub(crate) stdio: Stdio<'a>,
    pub(crate) report: BorrowedFd<'a>,
    /// Waited at before `execve`; its closing means "never".
    pub(crate) gate: BorrowedFd<'a>,
}

/// The last steps of a process that is already inside: user, capabilities, filter, gate, run.
///
/// `execve` closes the reading end of the gate, which tells the holder that it worked; had it
/// not, a report would have come first.
pub(crate) fn become_program(last: &Last<'_>) -> ! {
    if let Err(fault) = settle(last) {
        Report::Failed(fault).send(last.report);
        sys::exit(126);
    }
    Report::Ready.send(last.report);
    if !matches!(sys::read(last.gate, &mut [0]), Ok(1)) {
        sys::exit(0);
    }
    Report::CannotRun(last.program.execute(last.lists)).send(last.report);
    sys::exit(127);
}

fn settle(last: &Last<'_>) -> std::result::Result<(), Fault> {
    sys::new_session();
    for capability in 0..=LAST_CAPABILITY {
        if CAPABILITIES & (1 << capability) == 0 {
            match sys::prctl(libc::PR_CAPBSET_DROP, capability) {
                // An older kernel knows fewer.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                other => other.step(Step::Capabilities)?,
            }
        }
    }
    let program = last.program;
    sys::set_ids(program.uid, program.gid, &program.groups).step(Step::User)?;
    if program.uid == 0 {
        sys::set_capabilities(CAPABILITIES).step(Step::Capabilities)?;
    }
    match last.stdio {
        Stdio::Files(files) => connect(files).step(Step::Stdio)?,
        Stdio::Terminal { rows, columns, to } => {
            open_terminal(rows, columns, to).step(Step::Terminal)?;
        }
    }
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).step(Step::Capabilities)?;
    sys::reset_signals();
    // SAFETY: no preconditions.
    unsafe { libc::umask(0o022) };
    sys::close_range(3, u32::MAX, true);
    if let Some(filter) = last.filter {
        sys::install_filter(&filter.0).step(Step::Filter)?;
    }
    Ok(())
}

/// The given descriptors become 0, 1 and 2. None of them is one of those already.
fn connect(files: [RawFd; 3]) -> io::Result<()> {
    for (number, file) in files.into_iter().enumerate() {
        sys::duplicate(file, number as RawFd)?;
    }
    Ok(())
}

fn open_terminal(rows: u16, columns: u16, to: BorrowedFd<'_>) -> io::Result<()> {
    const MULTIPLEXER: &CStr = c"/dev/pts/ptmx";
    let master = sys::open(MULTIPLEXER, libc::O_RDWR | libc::O_NOCTTY)?;
    if !sys::is_devpts(master.as_fd()) {
        return Err(io::Error::from_raw_os_error(libc::ENOTTY));
    }
    let peer = sys::terminal_peer(master.as_fd(), rows, columns)?;
    channel::send(to, b"terminal", &[master.as_fd()])?;
    connect([peer.as_raw_fd(); 3])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn process(argv: &[&str], env: &[&str]) -> wire::Process {
        wire::Process {
            argv: argv.iter().map(|part| part.to_string()).collect(),
            env: env.iter().map(|part| part.to_string()).collect(),
            cwd: String::new(),
            uid: 0,
            gid: 0,
            groups: vec![],
        }
    }

    #[test]
    fn a_bare_name_is_looked_up_in_the_path_given_last() {
        let program = Program::new(&process(&["sh"], &["PATH=/a", "PATH=/b:/c"])).unwrap();
        assert_eq!(program.candidates, [c"/b/sh".to_owned(), c"/c/sh".to_owned()]);
    }

    #[test]
    fn a_path_is_taken_as_it_is_and_an_empty_command_is_refused() {
        let program = Program::new(&process(&["./run", "x"], &[])).unwrap();
        assert_eq!(program.candidates, [c"./run".to_owned()]);
        assert_eq!(program.cwd, c"/".to_owned());
        assert!(Program::new(&process(&[], &[])).is_err());
        assert!(Program::new(&process(&["a\0b"], &[])).is_err());
    }

    #[test]
    fn dangerous_capabilities_are_not_kept() {
        let dangerous = [12, 13, 16, 17, 19, 21, 27, 31, 38, 39]; // NET_ADMIN … MKNOD … BPF
        assert!(dangerous.iter().all(|bit| CAPABILITIES & (1 << bit) == 0));
    }
}
