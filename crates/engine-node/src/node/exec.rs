//! Running a command inside a running Instance: descriptors to streams.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use rustix::io;
use stead_core::engine::{Exec, ExecInput, ExecOutput, ExecRequest};
use stead_core::error::{Code, UserError};
use stead_core::ids::ContainerId;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::sandbox::{ExecSpec, Sandbox, Stdio, watch};

/// Bytes read at once.
const CHUNK: usize = 16 * 1024;

/// Runs a command and connects its input and output.
pub(super) async fn run(
    sandbox: Arc<Sandbox>,
    container: &ContainerId,
    request: ExecRequest,
) -> Result<Exec, UserError> {
    let spec = ExecSpec { argv: request.argv, tty: request.tty, ..ExecSpec::default() };
    let mut handle = sandbox.exec(container.as_str(), spec).await.map_err(|error| error.user())?;
    let (out, output) = mpsc::channel(64);
    let (input, inputs) = mpsc::unbounded_channel();
    let mut readers = JoinSet::new();
    match handle.take_stdio() {
        Stdio::Pipes { stdin, stdout, stderr } => {
            let (stdin, stdout, stderr) = (stream(stdin)?, stream(stdout)?, stream(stderr)?);
            readers.spawn(read(stdout, out.clone(), ExecOutput::Stdout));
            readers.spawn(read(stderr, out.clone(), ExecOutput::Stderr));
            tokio::spawn(feed(Some(stdin).filter(|_| request.stdin), None, inputs));
        }
        Stdio::Terminal(master) => {
            let terminal = stream(master)?;
            readers.spawn(read(terminal.clone(), out.clone(), ExecOutput::Stdout));
            tokio::spawn(feed(Some(terminal.clone()), Some(terminal), inputs));
        }
    }
    tokio::spawn(async move {
        let end = async {
            let code = handle.wait().await.unwrap_or(255);
            // Its output is read to the end before the exit is told.
            while readers.join_next().await.is_some() {}
            let _ = out.send(ExecOutput::Exit(code)).await;
        };
        tokio::select! {
            () = end => {}
            // Nobody listens any more: it is hung up, by the end of its terminal or pipes, and
            // killed.
            () = out.closed() => {}
        }
    });
    let input = Mutex::new(input);
    Ok(Exec {
        input: Box::new(move |item| {
            let sender = input.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            // The command may have ended.
            let _ = sender.send(item);
        }),
        output: futures_util::stream::unfold(output, |mut output| async move {
            output.recv().await.map(|item| (item, output))
        })
        .boxed(),
    })
}

/// A pipe or a terminal, watched by the runtime: no thread waits for it, however silent it is.
type Stream = Arc<AsyncFd<OwnedFd>>;

fn stream(fd: OwnedFd) -> Result<Stream, UserError> {
    let watched = io::ioctl_fionbio(&fd, true).map_err(Into::into);
    watched.and_then(|()| watch(fd)).map(Arc::new).map_err(|error: std::io::Error| {
        let message = format!("the command's input and output cannot be watched: {error}");
        UserError::new(Code::EngineFailed, message, "try again")
    })
}

async fn read(from: Stream, out: mpsc::Sender<ExecOutput>, wrap: fn(Vec<u8>) -> ExecOutput) {
    let mut chunk = vec![0; CHUNK];
    loop {
        let reading = from.async_io(Interest::READABLE, |fd| Ok(io::read(fd, &mut *chunk)?));
        // A terminal whose other end is closed reads as an error.
        let Ok(read @ 1..) = reading.await else { return };
        if out.send(wrap(chunk[..read].to_vec())).await.is_err() {
            return;
        }
    }
}

async fn write(to: &Stream, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let writing = to.async_io(Interest::WRITABLE, |fd| Ok(io::write(fd, bytes)?));
        bytes = &bytes[writing.await?..];
    }
    Ok(())
}

async fn feed(
    mut to: Option<Stream>,
    terminal: Option<Stream>,
    mut inputs: mpsc::UnboundedReceiver<ExecInput>,
) {
    while let Some(item) = inputs.recv().await {
        match item {
            ExecInput::Data(bytes) => {
                let Some(to) = &to else { continue };
                if write(to, &bytes).await.is_err() {
                    return;
                }
            }
            ExecInput::End => to = None,
            ExecInput::Resize(rows, columns) => {
                if let Some(terminal) = &terminal {
                    let size = rustix::termios::Winsize {
                        ws_row: rows,
                        ws_col: columns,
                        ws_xpixel: 0,
                        ws_ypixel: 0,
                    };
                    // A terminal that is gone has no size.
                    let _ = rustix::termios::tcsetwinsize(terminal.get_ref(), size);
                }
            }
        }
    }
}
