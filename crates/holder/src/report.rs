//! What a process that is being set up tells the holder, through a pipe.
//!
//! Fixed size and no allocation, because it is written between `clone` and `execve`. A report is
//! shorter than `PIPE_BUF`, so writers do not tear each other's.

use std::io;
use std::os::fd::BorrowedFd;

use crate::sys;

macro_rules! steps {
    ($($name:ident = $text:literal,)*) => {
        /// A step of the set-up, so that a failure can be named.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(i32)]
        pub(crate) enum Step { $($name,)* }

        impl Step {
            const ALL: &[(Step, &str)] = &[$((Step::$name, $text),)*];

            /// For people.
            pub(crate) fn text(self) -> &'static str {
                Self::ALL[self as usize].1
            }
        }
    };
}

steps! {
    Join = "joining the Sandbox's namespaces",
    Cgroup = "joining the control groups",
    Identity = "becoming the Sandbox's root",
    Clone = "making its first process",
    Private = "making mounts private",
    Proc = "mounting /proc",
    Sys = "mounting /sys",
    Root = "entering the root file system",
    Dev = "setting up /dev",
    CgroupView = "mounting /sys/fs/cgroup",
    Mask = "masking parts of /proc",
    Mount = "attaching a mount",
    ReadOnly = "making the root read-only",
    Folder = "entering the working folder",
    Hostname = "setting the host name",
    Main = "making the main process",
    Stdio = "connecting its input and output",
    Terminal = "making a terminal",
    Capabilities = "dropping capabilities",
    User = "becoming the user",
    Filter = "installing the system call filter",
}

/// Something went wrong on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Fault {
    pub(crate) step: Step,
    pub(crate) errno: i32,
    /// Which of several, or -1.
    pub(crate) index: i32,
}

/// Names the step an error belongs to.
pub(crate) trait InStep<T> {
    fn step(self, step: Step) -> Result<T, Fault>;
    fn step_at(self, step: Step, index: usize) -> Result<T, Fault>;
}

impl<T> InStep<T> for io::Result<T> {
    fn step(self, step: Step) -> Result<T, Fault> {
        self.map_err(|error| Fault {
            step,
            errno: error.raw_os_error().unwrap_or(libc::EIO),
            index: -1,
        })
    }

    fn step_at(self, step: Step, index: usize) -> Result<T, Fault> {
        self.step(step).map_err(|fault| Fault { index: index as i32, ..fault })
    }
}

/// One report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// The init, or the further program, has this number on the host.
    Born(i32),
    /// Everything is set up; the process waits at its gate.
    Ready,
    /// It did not work.
    Failed(Fault),
    /// `execve` refused, with this errno.
    CannotRun(i32),
    /// The main process ended with this raw status.
    Ended(i32),
}

const BYTES: usize = 16;

impl Report {
    /// Writes it. A reader that is gone needs no report, so errors do not matter.
    pub(crate) fn send(self, pipe: BorrowedFd<'_>) {
        let numbers = match self {
            Report::Born(pid) => [0, pid, 0, 0],
            Report::Ready => [1, 0, 0, 0],
            Report::Failed(fault) => [2, fault.step as i32, fault.errno, fault.index],
            Report::CannotRun(errno) => [3, errno, 0, 0],
            Report::Ended(status) => [4, status, 0, 0],
        };
        let mut bytes = [0; BYTES];
        for (at, number) in numbers.iter().enumerate() {
            bytes[at * 4..at * 4 + 4].copy_from_slice(&number.to_ne_bytes());
        }
        let _ = sys::write(pipe, &bytes);
    }

    /// Reads the next one. `None` at the end of the pipe or when nothing is there.
    pub(crate) fn next(pipe: BorrowedFd<'_>) -> Option<Report> {
        let mut bytes = [0; BYTES];
        match sys::read(pipe, &mut bytes) {
            Ok(BYTES) => Self::parse(bytes),
            _ => None,
        }
    }

    fn parse(bytes: [u8; BYTES]) -> Option<Report> {
        let mut numbers = [0i32; 4];
        for (number, chunk) in numbers.iter_mut().zip(bytes.as_chunks().0) {
            *number = i32::from_ne_bytes(*chunk);
        }
        Some(match numbers[0] {
            0 => Report::Born(numbers[1]),
            1 => Report::Ready,
            2 => Report::Failed(Fault {
                step: Step::ALL.get(usize::try_from(numbers[1]).ok()?)?.0,
                errno: numbers[2],
                index: numbers[3],
            }),
            3 => Report::CannotRun(numbers[1]),
            4 => Report::Ended(numbers[1]),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn reports_survive_the_pipe() {
        let (reader, writer) = sys::pipe().unwrap();
        let all = [
            Report::Born(77),
            Report::Ready,
            Report::Failed(Fault { step: Step::Mount, errno: 13, index: 2 }),
            Report::CannotRun(2),
            Report::Ended(256),
        ];
        for report in all {
            report.send(writer.as_fd());
        }
        drop(writer);
        for report in all {
            assert_eq!(Report::next(reader.as_fd()), Some(report));
        }
        assert_eq!(Report::next(reader.as_fd()), None);
    }

    #[test]
    fn each_step_has_its_own_text() {
        assert_eq!(Step::Filter.text(), "installing the system call filter");
        assert_eq!(Step::Join.text(), "joining the Sandbox's namespaces");
    }
}
