//! The messages between `serve` and a holder, as JSON.
//!
//! JSON because an upgraded `serve` has to talk to holders started by an older one: fields may be
//! added with `#[serde(default)]`, never renamed or given another meaning. Paths are host paths
//! and UTF-8. All moments are nanoseconds since the Unix epoch.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing asked of the holder. Every request is answered once, in order.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the caller, repeated in the answer.
    pub id: u64,
    /// What is asked.
    pub command: Command,
}

/// One of the two places a Sandbox has for a Container: each has a netns of its own.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Slot {
    /// The first, which every holder has from the beginning.
    #[default]
    A,
    /// The second, made when it is first asked for.
    B,
}

/// What can be asked of the holder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Command {
    /// Which Containers are there? Answered with [`Answer::Containers`].
    List,
    /// The netns of slot A, for a repair. Answered with [`Answer::Done`] and one descriptor.
    Netns,
    /// The netns of a slot, which is made if there is none yet, and a routing socket opened in
    /// it. Answered with [`Answer::Done`] and these two descriptors.
    Slot {
        /// Which slot.
        slot: Slot,
    },
    /// A socket that lists the sockets of a slot (`NETLINK_SOCK_DIAG`). Answered with
    /// [`Answer::Done`] and one descriptor.
    Sockets {
        /// Which slot.
        slot: Slot,
    },
    /// Set a Container up as far as its exec gate. Answered with [`Answer::Prepared`].
    Prepare(Box<Prepare>),
    /// Open the gate. Answered with [`Answer::Started`] once `execve` has succeeded.
    Start {
        /// Which Container.
        container: String,
    },
    /// Send a signal to the main process; `SIGKILL` ends the whole Container.
    Signal {
        /// Which Container.
        container: String,
        /// The signal's number.
        signal: i32,
    },
    /// Run another program in a running Container. Answered with [`Answer::Executing`]. Without
    /// a terminal, the request carries stdin, stdout and stderr; with one, the answer carries
    /// the terminal's master end.
    Exec(Box<Exec>),
    /// Kill a program that [`Command::Exec`] started; what it started itself is not looked for.
    /// It is no error if it has ended.
    Kill {
        /// As in [`Answer::Executing`].
        pid: i32,
    },
    /// Replace a Container's labels.
    Label {
        /// Which Container.
        container: String,
        /// All it shall have.
        labels: BTreeMap<String, String>,
    },
    /// Forget a prepared or exited Container: its exit has been taken note of.
    Discard {
        /// Which Container.
        container: String,
    },
    /// Kill everything and end.
    Quit,
}

/// What is needed to set a Container up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Prepare {
    /// The Container's id, unique in its Sandbox.
    pub container: String,
    /// Kept for the caller and given back by [`Command::List`].
    pub labels: BTreeMap<String, String>,
    /// Which netns it joins. A slot other than A must have been asked for before with
    /// [`Command::Slot`]: a holder that does not know slots would take A.
    #[serde(default)]
    pub slot: Slot,
    /// The host name.
    pub hostname: String,
    /// The root file system.
    pub root: Root,
    /// What is mounted into it, in order.
    pub mounts: Vec<Mount>,
    /// The main process.
    pub process: Process,
    /// Where it is accounted and limited.
    pub cgroup: Cgroup,
    /// File with the seccomp program (`struct sock_filter`s); `None` runs without a filter.
    pub seccomp: Option<String>,
    /// Where its output goes.
    pub log: LogFile,
}

/// The root file system: an overlay.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Root {
    /// Unpacked layers, base first, owned by the ids in the image; mapped into the Sandbox.
    pub layers: Vec<String>,
    /// Where writes go; owned by the Sandbox's root.
    pub upper: String,
    /// The overlay's scratch folder, beside `upper`.
    pub work: String,
    /// Refuse writes outside mounts.
    pub read_only: bool,
}

/// Something mounted into the root.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Mount {
    /// A folder or file of the host.
    Bind {
        /// On the host.
        source: String,
        /// In the Container; made when missing.
        target: String,
        /// Refuse writes.
        read_only: bool,
        /// Map ids, so that the Container's root is root on the disk.
        mapped: bool,
    },
    /// A fresh tmpfs.
    Tmpfs {
        /// In the Container; made when missing.
        target: String,
        /// Its size in bytes.
        bytes: u64,
    },
}

/// A program and who runs it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Process {
    /// Program and arguments; a program without a slash is looked up in `PATH`.
    pub argv: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working folder; made when missing.
    pub cwd: String,
    /// User id inside.
    pub uid: u32,
    /// Group id inside.
    pub gid: u32,
    /// Further groups inside.
    pub groups: Vec<u32>,
}

impl fmt::Debug for Process {
    /// Without the environment: it holds secrets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { argv, env, cwd, uid, gid, groups } = self;
        f.debug_struct("Process")
            .field("argv", argv)
            .field("env", &format_args!("{} variables", env.len()))
            .field("cwd", cwd)
            .field("user", &(uid, gid, groups))
            .finish()
    }
}

/// The control groups of a Container. All folders exist when the holder is asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Cgroup {
    /// Folder on the v2 tree; processes are born there.
    pub unified: String,
    /// `cgroup.procs` files of v1 controllers to join.
    pub join: Vec<String>,
    /// File with an `oom_kill N` line.
    pub oom: Option<String>,
    /// What the Container sees under `/sys/fs/cgroup`: controller and host folder. Empty on a
    /// pure v2 host.
    pub view: Vec<(String, String)>,
}

/// Where output goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LogFile {
    /// The current file; older ones get `.1`, `.2`, …
    pub path: String,
    /// Rotate at this size in bytes.
    pub max_bytes: u64,
    /// Keep this many files, the current one included.
    pub files: u32,
}

/// A further program in a running Container. What is not given is as for the main process.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Exec {
    /// Which Container.
    pub container: String,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// Further variables, `NAME=value`; a later one replaces an earlier one of that name.
    pub env: Vec<String>,
    /// Working folder.
    pub cwd: Option<String>,
    /// User, group and further groups.
    pub user: Option<(u32, u32, Vec<u32>)>,
    /// Rows and columns of a new terminal; `None` takes the three descriptors sent along.
    pub terminal: Option<(u16, u16)>,
}

/// What the holder says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Message {
    /// The first message of a new holder, with two descriptors: its netns and a routing socket
    /// opened in it.
    Hello,
    /// The answer to a [`Request`].
    Answer {
        /// The request's id.
        id: u64,
        /// How it went.
        result: Result<Answer, Failure>,
    },
    /// A Container ended. Kept until [`Command::Discard`], so nothing is lost while nobody
    /// listens.
    Exited {
        /// Which Container.
        container: String,
        /// How it ended.
        exit: Exit,
    },
    /// A program started by [`Command::Exec`] ended.
    ExecExited {
        /// As in [`Answer::Executing`].
        pid: i32,
        /// How it ended.
        exit: Exit,
    },
}

/// A good answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Answer {
    /// It is done.
    Done,
    /// Everything the holder holds.
    Containers(Vec<Container>),
    /// It stands at its gate.
    Prepared(Phases),
    /// It runs.
    Started {
        /// The Container's first process (its init), in the host's numbers.
        pid: i32,
        /// When `execve` had succeeded.
        at: u64,
    },
    /// The further program runs.
    Executing {
        /// Its number on the host.
        pid: i32,
    },
}

/// Where the time of a preparation went, in microseconds.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Phases {
    /// Mapping the layers and making the overlay.
    pub root: u64,
    /// Opening and mapping volumes and files.
    pub mounts: u64,
    /// From the clone to the gate.
    pub process: u64,
}

/// One Container as the holder knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// As given with [`Prepare`] or [`Command::Label`].
    pub labels: BTreeMap<String, String>,
    /// Which netns it is in.
    #[serde(default)]
    pub slot: Slot,
    /// How far it is.
    pub state: State,
    /// Output lines lost because the disk was full.
    pub lost_lines: u64,
}

/// How far a Container is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum State {
    /// It stands at its gate.
    Prepared,
    /// It runs.
    Running {
        /// Its init, in the host's numbers.
        pid: i32,
        /// When `execve` had succeeded.
        started: u64,
    },
    /// It ended.
    Exited(Exit),
}

/// How a process ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// Code or signal.
    pub status: Status,
    /// The kernel killed something in it for want of memory.
    pub out_of_memory: bool,
    /// When `execve` had succeeded; 0 if it never ran.
    pub started: u64,
    /// When the holder saw the end.
    pub finished: u64,
}

/// Code or signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// It returned this.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Status {
    /// The code a shell would show: the code itself, or 128 plus the signal.
    pub fn shell_code(self) -> i32 {
        match self {
            Status::Code(code) => code,
            Status::Signal(signal) => 128 + signal,
        }
    }
}

/// A bad answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Failure {
    /// The holder knows no such Container.
    Unknown,
    /// The Container is not in the state the command needs.
    WrongState(State),
    /// `execve` or the working folder refused: an error number of the kernel.
    CannotRun {
        /// The program.
        program: String,
        /// Why, as errno.
        errno: i32,
    },
    /// A step of the kernel failed.
    Step {
        /// Which step, and on what.
        step: String,
        /// Why, as errno.
        errno: i32,
    },
    /// The request made no sense to this holder.
    NotUnderstood(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_a_newer_side_with_more_fields_is_understood() {
        let text = r#"{"id":3,"command":{"Start":{"container":"c","haste":true}},"trace":"x"}"#;
        let request: Request = serde_json::from_str(text).unwrap();
        assert!(matches!(request.command, Command::Start { container } if container == "c"));
    }

    #[test]
    fn one_who_does_not_know_slots_means_the_first() {
        let text = r#"{"id":"c","labels":{},"state":"Prepared","lost_lines":0}"#;
        assert_eq!(serde_json::from_str::<Container>(text).unwrap().slot, Slot::A);
    }

    #[test]
    fn a_signal_shows_as_a_shell_shows_it() {
        assert_eq!(Status::Signal(9).shell_code(), 137);
        assert_eq!(Status::Code(3).shell_code(), 3);
    }
}
