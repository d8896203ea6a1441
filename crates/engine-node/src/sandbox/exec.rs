//! A further program in a Container, as its caller holds it.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use stead_holder::wire::Command;
use tokio::net::unix::pipe;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use super::link::Link;
use super::{Exit, SandboxError};

/// The ends of a further program's input and output.
#[derive(Debug)]
pub enum Stdio {
    /// Without a terminal.
    Pipes {
        /// To write to.
        stdin: OwnedFd,
        /// To read from.
        stdout: OwnedFd,
        /// To read from.
        stderr: OwnedFd,
    },
    /// The master end of its terminal.
    Terminal(OwnedFd),
}

/// A further program in a Container. Nobody is left to wait for it once this is dropped: then it
/// is killed.
#[derive(Debug)]
pub struct ExecHandle {
    pid: i32,
    stdio: Option<Stdio>,
    exit: oneshot::Receiver<Exit>,
    sandbox: String,
    link: Arc<Link>,
    code: Option<i32>,
}

impl Drop for ExecHandle {
    fn drop(&mut self) {
        let running = matches!(self.exit.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        // Without a runtime, `serve` itself is about to end.
        if let (None, true, Ok(runtime)) = (self.code, running, Handle::try_current()) {
            let (link, pid) = (self.link.clone(), self.pid);
            runtime.spawn(async move { link.ask(Command::Kill { pid }, &[]).await.map(drop) });
        }
    }
}

impl ExecHandle {
    pub(crate) fn new(
        pid: i32,
        stdio: Option<Stdio>,
        exit: oneshot::Receiver<Exit>,
        sandbox: &str,
        link: Arc<Link>,
    ) -> Self {
        Self { pid, stdio, exit, sandbox: sandbox.to_owned(), link, code: None }
    }

    /// Its number on the host.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its input and output. They can be taken once.
    ///
    /// # Panics
    /// At the second call.
    pub fn take_stdio(&mut self) -> Stdio {
        self.stdio.take().expect("the input and output of a program are taken once")
    }

    /// Waits for its end; a signal counts as 128 plus its number. Output that was not taken is
    /// read and dropped, so that it does not hold the program up.
    ///
    /// # Errors
    /// [`SandboxError::HolderLost`].
    pub async fn wait(&mut self) -> Result<i32, SandboxError> {
        if let Some(code) = self.code {
            return Ok(code);
        }
        if let Some(Stdio::Pipes { stdin, stdout, stderr }) = self.stdio.take() {
            drop(stdin);
            for output in [stdout, stderr] {
                if let Ok(mut output) = pipe::Receiver::from_owned_fd(output) {
                    tokio::spawn(async move {
                        tokio::io::copy(&mut output, &mut tokio::io::sink()).await
                    });
                }
            }
        }
        let lost = |_| SandboxError::HolderLost { sandbox: self.sandbox.clone() };
        let code = (&mut self.exit).await.map_err(lost)?.status.shell_code();
        self.code = Some(code);
        Ok(code)
    }
}
