//! Commands that enter: `exec` and `port-forward`.

use std::io::{self, IsTerminal, Read, Write};
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use clap::Args;
use rustix::termios::{self, OptionalActions, Termios};
use stead_core::api::InstanceView;
use stead_core::api::exec::{Frame, PROTOCOL};
use stead_core::engine::ExecRequest;
use stead_core::error::{Code, UserError};
use stead_core::ids::Ordinal;
use stead_core::name::AppName;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::Context;
use super::terminal::Changed;
use crate::client::escaped;
use crate::failure::Quiet;

#[derive(Debug, Args)]
pub(super) struct ExecArgs {
    /// The App
    app: AppName,
    /// The Instance [default: the first that runs]
    #[arg(short, long, value_name = "I")]
    instance: Option<Ordinal>,
    /// Give the command a terminal
    #[arg(short, long)]
    tty: bool,
    /// Program and arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    pub(super) argv: Vec<String>,
}

pub(super) async fn exec(context: &Context, args: ExecArgs) -> Result<()> {
    let terminal = io::stdin().is_terminal();
    if args.tty && !terminal {
        return Err(UserError::new(
            Code::BadRequest,
            "--tty needs a terminal, and standard input is none",
            "leave --tty out",
        )
        .into());
    }
    let size = args.tty.then(window_size);
    let request = ExecRequest { argv: args.argv, instance: args.instance, tty: size, stdin: true };
    let query = escaped(&serde_json::to_string(&request)?);
    let path = format!("{}/exec?request={query}", context.path(&args.app));
    let stream = context.client.upgrade(&path, PROTOCOL).await?;
    // Only now: until here errors go to a terminal that works as people know it.
    let raw = || Changed::new(OptionalActions::Now, Termios::make_raw);
    let raw = args.tty.then(raw).transpose()?;
    let ended = talk(stream, args.tty).await;
    drop(raw);
    match ended? {
        Some(0) => Ok(()),
        Some(code) => Err(Quiet(u8::try_from(code).unwrap_or(1)).into()),
        None => Err(UserError::new(
            Code::PlatformDown,
            "the connection to the command broke off",
            "the platform was stopped or replaced; the command got a hang-up",
        )
        .into()),
    }
}

/// Carries bytes both ways until the command ends. Gives its exit code, or `None` when the
/// connection ended first.
async fn talk(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin,
    tty: bool,
) -> Result<Option<i32>> {
    let (mut from, mut to) = tokio::io::split(stream);
    let mut input = stdin_frames();
    let mut resized = signal(SignalKind::window_change())?;
    let mut buffer = Vec::new();
    let mut open = true;
    loop {
        while let Some(frame) = Frame::decode(&mut buffer)? {
            match frame {
                Frame::Stdout(data) => put(&mut io::stdout(), &data)?,
                Frame::Stderr(data) => put(&mut io::stderr(), &data)?,
                Frame::Exit(code) => return Ok(Some(code)),
                // Frames of the other direction mean nothing here.
                Frame::Stdin(_) | Frame::StdinEnd | Frame::Resize(..) => {}
            }
        }
        let frame = tokio::select! {
            read = from.read_buf(&mut buffer) => {
                // A connection that was cut ends like one that was closed: without a code.
                if read.unwrap_or(0) == 0 {
                    return Ok(None);
                }
                continue;
            }
            frame = input.recv(), if open => match frame {
                Some(frame) => frame,
                None => { open = false; continue }
            },
            _ = resized.recv(), if tty => {
                let (rows, cols) = window_size();
                Frame::Resize(rows, cols)
            }
        };
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        if to.write_all(&bytes).await.is_err() {
            // It may have ended already; what it said last is still to be read.
            open = false;
        }
    }
}

fn put(to: &mut impl Write, data: &[u8]) -> io::Result<()> {
    to.write_all(data)?;
    to.flush()
}

/// Standard input as frames. It is read on a thread of its own, because a read of a terminal
/// cannot be given up.
fn stdin_frames() -> mpsc::Receiver<Frame> {
    let (sender, receiver) = mpsc::channel(4);
    std::thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut buffer = [0; 8 << 10];
        loop {
            let frame = match stdin.read(&mut buffer) {
                Ok(0) => Frame::StdinEnd,
                Ok(n) => Frame::Stdin(buffer[..n].to_vec()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => Frame::StdinEnd,
            };
            let last = frame == Frame::StdinEnd;
            if sender.blocking_send(frame).is_err() || last {
                return;
            }
        }
    });
    receiver
}

/// Rows and columns of the terminal; the size of a VT100 where it does not say.
fn window_size() -> (u16, u16) {
    match termios::tcgetwinsize(io::stdin()) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => (size.ws_row, size.ws_col),
        _ => (24, 80),
    }
}

#[derive(Debug, Args)]
pub(super) struct PortForward {
    /// The App
    app: AppName,
    /// LOCAL:REMOTE, or one port for both
    ports: Ports,
    /// The Instance [default: the first that is ready]
    #[arg(short, long, value_name = "I")]
    instance: Option<Ordinal>,
}

/// A local port (0: any free one) and the Instance's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ports {
    local: u16,
    remote: u16,
}

impl std::str::FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (local, remote) = text.split_once(':').unwrap_or((text, text));
        match (local.parse(), remote.parse()) {
            (Ok(local), Ok(remote)) if remote != 0 => Ok(Self { local, remote }),
            _ => Err("expected LOCAL:REMOTE with ports from 1 to 65535, such as 5432:5432".into()),
        }
    }
}

pub(super) async fn port_forward(context: &Context, args: &PortForward) -> Result<()> {
    if !context.client.endpoint().is_local() {
        return Err(UserError::new(
            Code::NotBuilt,
            "forwarding a port from another machine is not built yet",
            "run it on the platform's machine, or reach the app through the gateway",
        )
        .into());
    }
    let views: Vec<InstanceView> =
        context.client.get(&format!("{}/instances", context.path(&args.app))).await?;
    let target = target(&views, args).ok_or_else(|| {
        UserError::new(
            Code::NoInstance,
            format!("app {} has no such running instance", context.key(&args.app)),
            "`stead ps` lists them",
        )
    })?;
    let local = SocketAddr::from(([127, 0, 0, 1], args.ports.local));
    let listener = TcpListener::bind(local).await.map_err(|error| {
        UserError::new(
            Code::BadRequest,
            format!("{local} cannot be listened on: {error}"),
            "choose another local port; 0 takes any free one",
        )
    })?;
    context.output.say(&format!("{} leads to {target}; Ctrl-C ends it", listener.local_addr()?))?;
    loop {
        let (client, _) = tokio::select! {
            accepted = listener.accept() => accepted?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        tokio::spawn(async move {
            if let Err(error) = join(client, target).await {
                eprintln!("connection to {target}: {error}");
            }
        });
    }
}

fn target(views: &[InstanceView], args: &PortForward) -> Option<SocketAddr> {
    let running = views.iter().filter(|view| match args.instance {
        Some(instance) => view.instance == instance,
        None => view.state == "ready",
    });
    let mut ips = running.filter_map(|view| view.ip.as_ref()?.parse::<IpAddr>().ok());
    ips.next().map(|ip| SocketAddr::new(ip, args.ports.remote))
}

async fn join(mut client: TcpStream, target: SocketAddr) -> io::Result<()> {
    let mut server = TcpStream::connect(target).await?;
    tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_one_or_two() {
        assert_eq!("80".parse(), Ok(Ports { local: 80, remote: 80 }));
        assert_eq!("0:80".parse(), Ok(Ports { local: 0, remote: 80 }));
        for bad in ["", "0", "80:0", "a:80", "1:2:3", "70000"] {
            assert!(bad.parse::<Ports>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn a_command_s_output_is_carried_and_its_code_kept() {
        let (ours, mut theirs) = tokio::io::duplex(1 << 16);
        let mut bytes = Vec::new();
        Frame::Stdout(b"".to_vec()).encode(&mut bytes);
        Frame::Exit(7).encode(&mut bytes);
        theirs.write_all(&bytes).await.unwrap();
        assert_eq!(talk(ours, false).await.unwrap(), Some(7));

        let (ours, theirs) = tokio::io::duplex(64);
        drop(theirs);
        assert_eq!(talk(ours, false).await.unwrap(), None);
    }
}
