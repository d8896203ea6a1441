//! Running a command inside a running Instance: descriptors to streams.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex};

use futures_util::StreamExt;
use stead_core::engine::{Exec, ExecInput, ExecOutput, ExecRequest};
use stead_core::error::UserError;
use stead_core::ids::ContainerId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;

use crate::sandbox::{ExecSpec, Sandbox, Stdio};

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
    let mut readers = Vec::new();
    match handle.take_stdio() {
        Stdio::Pipes { stdin, stdout, stderr } => {
            readers.push(tokio::spawn(read(stdout, out.clone(), ExecOutput::Stdout)));
            readers.push(tokio::spawn(read(stderr, out.clone(), ExecOutput::Stderr)));
            tokio::spawn(feed(Some(stdin).filter(|_| request.stdin), None, inputs));
        }
        Stdio::Terminal(master) => {
            let terminal = Arc::new(master);
            let reading = terminal.try_clone();
            if let Ok(reading) = reading {
                readers.push(tokio::spawn(read(reading, out.clone(), ExecOutput::Stdout)));
            }
            let writing = terminal.try_clone().ok();
            tokio::spawn(feed(writing, Some(terminal), inputs));
        }
    }
    tokio::spawn(async move {
        let code = handle.wait().await.unwrap_or(255);
        for reader in readers {
            // Its output is read to the end before the exit is told.
            let _ = reader.await;
        }
        let _ = out.send(ExecOutput::Exit(code)).await;
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

async fn read(fd: OwnedFd, out: mpsc::Sender<ExecOutput>, wrap: fn(Vec<u8>) -> ExecOutput) {
    let mut file = tokio::fs::File::from_std(fd.into());
    let mut chunk = vec![0; CHUNK];
    // A terminal whose other end is closed reads as an error.
    while let Ok(read @ 1..) = file.read(&mut chunk).await {
        if out.send(wrap(chunk[..read].to_vec())).await.is_err() {
            return;
        }
    }
}

async fn feed(
    fd: Option<OwnedFd>,
    terminal: Option<Arc<OwnedFd>>,
    mut inputs: mpsc::UnboundedReceiver<ExecInput>,
) {
    let mut file = fd.map(|fd| tokio::fs::File::from_std(fd.into()));
    while let Some(item) = inputs.recv().await {
        match item {
            ExecInput::Data(bytes) => {
                let Some(file) = &mut file else { continue };
                if file.write_all(&bytes).await.is_err() || file.flush().await.is_err() {
                    return;
                }
            }
            ExecInput::End => file = None,
            ExecInput::Resize(rows, columns) => {
                if let Some(terminal) = &terminal {
                    let size = rustix::termios::Winsize {
                        ws_row: rows,
                        ws_col: columns,
                        ws_xpixel: 0,
                        ws_ypixel: 0,
                    };
                    // A terminal that is gone has no size.
                    let _ = rustix::termios::tcsetwinsize(terminal.as_fd(), size);
                }
            }
        }
    }
}
