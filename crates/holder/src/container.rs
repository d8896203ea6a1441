//! One Container of the Sandbox: prepared, running, ended.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use stead_holder::channel;
use stead_holder::wire::{self, Exit, Failure, Slot, State, Status};

use crate::failure::{Context, Result, text};
use crate::inside::{self, Plan, keep_only};
use crate::log::Log;
use crate::namespaces::Namespaces;
use crate::program::{self, Filter, Last, Program, Stdio};
use crate::report::{Fault, InStep, Report, Step};
use crate::root;
use crate::sys;

/// How long a set-up may take. It takes milliseconds; a dead network file system takes for ever,
/// and the other Containers of the Sandbox must not wait for it.
const PATIENCE: i32 = 20_000;

/// A Container the holder looks after.
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) labels: BTreeMap<String, String>,
    slot: Slot,
    pub(crate) init: i32,
    pub(crate) log: Log,
    phase: Phase,
    report: OwnedFd,
    /// The raw status of the main process, once the init has told it.
    main_status: Option<i32>,
    cgroup: wire::Cgroup,
    seccomp: Option<String>,
    process: wire::Process,
}

enum Phase {
    Prepared { gate: OwnedFd },
    Running { started: u64 },
    Exited(Exit),
}

impl Container {
    /// Sets everything up, as far as the gate.
    pub(crate) fn prepare(
        namespaces: &Namespaces,
        wanted: wire::Prepare,
    ) -> Result<(Self, wire::Phases)> {
        let begun = sys::monotonic();
        let net = namespaces.net(wanted.slot).ok_or_else(|| {
            Failure::NotUnderstood(format!("slot {:?} was not asked for", wanted.slot))
        })?;
        let root = root::overlay(&wanted.root, namespaces.user.as_fd())?;
        let overlaid = sys::monotonic();
        let pieces = root::pieces(&wanted.mounts, namespaces)?;
        let opened = sys::monotonic();

        let program = Program::new(&wanted.process)?;
        let lists = program.lists();
        let filter = wanted.seccomp.as_deref().map(Filter::load).transpose()?;
        let (gate_reader, gate) = sys::pipe().at("gate")?;
        let (report, report_writer) = sys::pipe().at("report pipe")?;
        let (out, stdout) = output(namespaces, &wanted.process)?;
        let (err, stderr) = output(namespaces, &wanted.process)?;
        let log = Log::open(wanted.log.clone(), out, err)
            .because(|| format!("log file {}", wanted.log.path))?;
        let plan = Plan {
            namespaces,
            net,
            join: open_procs(&wanted.cgroup.join)?,
            root,
            read_only: wanted.root.read_only,
            devices: root::devices()?,
            cgroup_view: root::cgroup_view(&wanted.cgroup.view)?,
            pieces,
            hostname: text(&wanted.hostname)?,
            program: &program,
            lists: &lists,
            filter: filter.as_ref(),
            stdout,
            stderr,
            report: report_writer,
            gate: gate_reader,
        };
        let cgroup = open_cgroup(&wanted.cgroup.unified)?;
        let porter = sys::clone(0, Some(cgroup.as_fd())).at("clone")?;
        if porter == 0 {
            inside::porter(&plan);
        }
        // Our copies of the child's ends must go, or their closing is never seen.
        drop(plan);
        let name_mount = |fault: Fault| mount_name(&wanted.mounts, fault);
        let init = await_birth(report.as_fd(), porter, name_mount)?;
        let ready = sys::monotonic();

        sys::set_nonblocking(report.as_fd()).at("report pipe")?;
        let phases = wire::Phases {
            root: (overlaid - begun) / 1_000,
            mounts: (opened - overlaid) / 1_000,
            process: (ready - opened) / 1_000,
        };
        let container = Self {
            id: wanted.container,
            labels: wanted.labels,
            slot: wanted.slot,
            init,
            log,
            phase: Phase::Prepared { gate },
            report,
            main_status: None,
            cgroup: wanted.cgroup,
            seccomp: wanted.seccomp,
            process: wanted.process,
        };
        Ok((container, phases))
    }

    /// Opens the gate and waits until `execve` has succeeded.
    pub(crate) fn start(&mut self) -> Result<(i32, u64)> {
        let Phase::Prepared { gate } = &self.phase else {
            return Err(Failure::WrongState(self.state()));
        };
        let opened = sys::write(gate.as_fd(), b"!");
        if opened.is_ok() && !sys::wait_unread(gate.as_fd(), PATIENCE).at("gate")? {
            return Err(Failure::Step { step: "execve".into(), errno: libc::ETIMEDOUT });
        }
        let started = sys::now();
        match self.hear() {
            Some(errno) => {
                self.kill_and_reap();
                self.phase = Phase::Exited(Exit {
                    status: Status::Code(127),
                    out_of_memory: false,
                    started: 0,
                    finished: started,
                });
                Err(Failure::CannotRun { program: name_of(&self.process), errno })
            }
            None => {
                self.phase = Phase::Running { started };
                Ok((self.init, started))
            }
        }
    }

    /// Takes in what the processes have reported: an errno if `execve` refused. A short program
    /// may have ended already.
    fn hear(&mut self) -> Option<i32> {
        let mut refusal = None;
        while let Some(report) = Report::next(self.report.as_fd()) {
            match report {
                Report::CannotRun(errno) => refusal = Some(errno),
                Report::Ended(status) => self.main_status = Some(status),
                _ => {}
            }
        }
        refusal
    }

    /// Sends a signal to the main process, by way of the init.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        if matches!(self.phase, Phase::Exited(_)) {
            return Err(Failure::WrongState(self.state()));
        }
        sys::kill(self.init, signal).at("signal")
    }

    /// Notes the end of the init, after everything in its pid namespace has ended.
    pub(crate) fn ended(&mut self, init_status: i32, chunk: &mut [u8]) -> Exit {
        self.hear();
        // An init that told nothing was killed itself.
        let status = self.main_status.unwrap_or(init_status);
        let started = match &self.phase {
            Phase::Running { started } => *started,
            Phase::Prepared { .. } => 0,
            Phase::Exited(exit) => exit.started,
        };
        let exit = Exit {
            status: decode(status),
            out_of_memory: self.ran_out_of_memory(),
            started,
            finished: sys::now(),
        };
        self.log.drain(chunk);
        self.phase = Phase::Exited(exit.clone());
        exit
    }

    /// Ends it without a word, before it is forgotten.
    pub(crate) fn kill_and_reap(&mut self) {
        if !matches!(self.phase, Phase::Exited(_)) {
            let _ = sys::kill(self.init, libc::SIGKILL);
            sys::reap(self.init);
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        matches!(self.phase, Phase::Running { .. })
    }

    pub(crate) fn has_exited(&self) -> bool {
        matches!(self.phase, Phase::Exited(_))
    }

    pub(crate) fn state(&self) -> State {
        match &self.phase {
            Phase::Prepared { .. } => State::Prepared,
            Phase::Running { started } => State::Running { pid: self.init, started: *started },
            Phase::Exited(exit) => State::Exited(exit.clone()),
        }
    }

    pub(crate) fn view(&self) -> wire::Container {
        wire::Container {
            id: self.id.clone(),
            labels: self.labels.clone(),
            slot: self.slot,
            state: self.state(),
            lost_lines: self.log.lost_lines(),
        }
    }

    fn ran_out_of_memory(&self) -> bool {
        let Some(path) = &self.cgroup.oom else { return false };
        fs::read_to_string(path).is_ok_and(|text| {
            text.lines()
                .filter_map(|line| line.strip_prefix("oom_kill "))
                .any(|count| count.trim() != "0")
        })
    }

    /// Runs a further program in this Container: its number, and the master end of its terminal
    /// if it has one.
    pub(crate) fn exec(
        &self,
        wanted: &wire::Exec,
        files: &[OwnedFd],
    ) -> Result<(i32, Option<OwnedFd>)> {
        if !self.is_running() {
            return Err(Failure::WrongState(self.state()));
        }
        let process = self.guest(wanted);
        let program = Program::new(&process)?;
        let lists = program.lists();
        let filter = self.seccomp.as_deref().map(Filter::load).transpose()?;
        let (terminal, terminal_sender) = sys::socket_pair().at("terminal socket")?;
        let stdio = match (wanted.terminal, files) {
            (Some((rows, columns)), _) => {
                Stdio::Terminal { rows, columns, to: terminal_sender.as_fd() }
            }
            (None, [stdin, stdout, stderr]) => {
                Stdio::Files([stdin.as_raw_fd(), stdout.as_raw_fd(), stderr.as_raw_fd()])
            }
            _ => return Err(Failure::NotUnderstood("exec without its three files".into())),
        };
        let (gate_reader, gate) = sys::pipe().at("gate")?;
        let (report, report_writer) = sys::pipe().at("report pipe")?;
        let join = open_procs(&self.cgroup.join)?;
        let cgroup = open_cgroup(&self.cgroup.unified)?;
        let target = sys::pidfd(self.init).at("pidfd")?;
        let porter = sys::clone(0, Some(cgroup.as_fd())).at("clone")?;
        if porter == 0 {
            let last = Last {
                program: &program,
                lists: &lists,
                filter: filter.as_ref(),
                stdio,
                report: report_writer.as_fd(),
                gate: gate_reader.as_fd(),
            };
            visit(target.as_fd(), &join, &last);
        }
        drop((report_writer, gate_reader, terminal_sender));
        let pid = await_birth(report.as_fd(), porter, |_| None)?;
        let master = match wanted.terminal {
            Some(_) => channel::receive(terminal.as_fd())
                .at("terminal")?
                .and_then(|(_, descriptors)| descriptors.into_iter().next()),
            None => None,
        };
        let _ = sys::write(gate.as_fd(), b"!");
        sys::wait_unread(gate.as_fd(), PATIENCE).at("execve")?;
        sys::set_nonblocking(report.as_fd()).at("report pipe")?;
        if let Some(Report::CannotRun(errno)) = Report::next(report.as_fd()) {
            sys::reap(pid);
            return Err(Failure::CannotRun { program: name_of(&process), errno });
        }
        Ok((pid, master))
    }

    /// The process wanted, with what is not said taken from the main process.
    fn guest(&self, wanted: &wire::Exec) -> wire::Process {
        let main = &self.process;
        let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
        let replaced: Vec<_> = wanted.env.iter().map(|entry| name(entry)).collect();
        let kept = main.env.iter().filter(|entry| !replaced.contains(&name(entry)));
        let user = (main.uid, main.gid, main.groups.clone());
        let (uid, gid, groups) = wanted.user.clone().unwrap_or(user);
        wire::Process {
            argv: wanted.argv.clone(),
            env: kept.chain(&wanted.env).cloned().collect(),
            cwd: wanted.cwd.clone().unwrap_or_else(|| main.cwd.clone()),
            uid,
            gid,
            groups,
        }
    }
}

/// A porter that takes a further program into a running Container.
fn visit(target: BorrowedFd<'_>, join: &[OwnedFd], last: &Last<'_>) -> ! {
    match enter(target, join, &last.program.cwd) {
        Ok(0) => {
            let mut needed = [last.report.as_raw_fd(), last.gate.as_raw_fd(), -1, -1, -1];
            match &last.stdio {
                Stdio::Files(files) => needed[2..].copy_from_slice(files),
                Stdio::Terminal { to, .. } => needed[2..].fill(to.as_raw_fd()),
            }
            keep_only(needed);
            program::become_program(last)
        }
        Ok(pid) => {
            Report::Born(pid).send(last.report);
            sys::exit(0)
        }
        Err(fault) => {
            Report::Failed(fault).send(last.report);
            sys::exit(126)
        }
    }
}

fn enter(
    target: BorrowedFd<'_>,
    join: &[OwnedFd],
    cwd: &std::ffi::CStr,
) -> std::result::Result<i32, Fault> {
    // Nobody inside may look into this copy of the holder.
    let _ = sys::prctl(libc::PR_SET_DUMPABLE, 0);
    inside::join_cgroups(join)?;
    let kinds = libc::CLONE_NEWUSER
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP;
    sys::join(target, kinds).step(Step::Join)?;
    sys::set_ids(0, 0, &[]).step(Step::Identity)?;
    // setns has made the Container's root ours.
    let root = sys::open(c"/", libc::O_PATH | libc::O_DIRECTORY).step(Step::Folder)?;
    let folder = sys::open_in_root(root.as_fd(), cwd, libc::O_PATH | libc::O_DIRECTORY)
        .step(Step::Folder)?;
    sys::change_folder(folder.as_fd()).step(Step::Folder)?;
    sys::clone(libc::CLONE_PARENT, None).step(Step::Clone)
}

/// Waits until the process announced by a porter is ready; ends it if anything went wrong.
fn await_birth(
    report: BorrowedFd<'_>,
    porter: i32,
    name_mount: impl Fn(Fault) -> Option<String>,
) -> Result<i32> {
    let (mut born, mut ready, mut fault) = (None, false, None);
    while (born.is_none() || !ready) && fault.is_none() {
        if !sys::wait_readable(report, PATIENCE).at("report pipe")? {
            let _ = sys::kill(porter, libc::SIGKILL);
            fault = Some(Failure::Step { step: "set-up".into(), errno: libc::ETIMEDOUT });
            break;
        }
        match Report::next(report) {
            Some(Report::Born(pid)) => born = Some(pid),
            Some(Report::Ready) => ready = true,
            Some(Report::Failed(found)) => {
                let step = name_mount(found).unwrap_or_else(|| found.step.text().to_owned());
                fault = Some(Failure::Step { step, errno: found.errno });
            }
            Some(Report::Ended(_) | Report::CannotRun(_)) => {}
            None => {
                fault = Some(Failure::Step { step: "set-up".into(), errno: libc::ECHILD });
            }
        }
    }
    sys::reap(porter);
    let Some(fault) = fault else {
        return Ok(born.expect("the loop ends without a fault only when it is born"));
    };
    // The porter is gone, so what it had to say is in the pipe.
    while born.is_none() && sys::wait_readable(report, 0).unwrap_or(false) {
        match Report::next(report) {
            Some(Report::Born(pid)) => born = Some(pid),
            Some(_) => {}
            None => break,
        }
    }
    if let Some(pid) = born {
        let _ = sys::kill(pid, libc::SIGKILL);
        sys::reap(pid);
    }
    Err(fault)
}

fn name_of(process: &wire::Process) -> String {
    process.argv.first().cloned().unwrap_or_default()
}

fn mount_name(mounts: &[wire::Mount], fault: Fault) -> Option<String> {
    if fault.step != Step::Mount {
        return None;
    }
    let mount = mounts.get(usize::try_from(fault.index).ok()?)?;
    let (wire::Mount::Bind { target, .. } | wire::Mount::Tmpfs { target, .. }) = mount;
    Some(format!("attaching the mount on {target}"))
}

/// A pipe for the output of a process, which the process may open again as `/dev/stdout`.
fn output(namespaces: &Namespaces, process: &wire::Process) -> Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = sys::pipe().at("output pipe")?;
    sys::set_nonblocking(reader.as_fd()).at("output pipe")?;
    let first = namespaces.first_id;
    sys::chown_descriptor(writer.as_fd(), first + process.uid, first + process.gid)
        .at("output pipe")?;
    Ok((reader, writer))
}

fn open_cgroup(folder: &str) -> Result<OwnedFd> {
    sys::open(&text(folder)?, libc::O_RDONLY | libc::O_DIRECTORY)
        .because(|| format!("control group {folder}"))
}

fn open_procs(paths: &[String]) -> Result<Vec<OwnedFd>> {
    let open = |path: &String| -> io::Result<OwnedFd> {
        let file = fs::OpenOptions::new().write(true).custom_flags(libc::O_CLOEXEC).open(path)?;
        Ok(file.into())
    };
    paths.iter().map(|path| open(path).because(|| format!("control group {path}"))).collect()
}

/// How a process ended, from the raw status of `wait`.
pub(crate) fn decode(status: i32) -> Status {
    if libc::WIFSIGNALED(status) {
        Status::Signal(libc::WTERMSIG(status))
    } else {
        Status::Code(libc::WEXITSTATUS(status))
    }
}
