//! The holder: the process that owns one Sandbox and outlives `serve`.
//!
//! Started with one end of a socket pair as standard input, and with `STEAD_FOLDER` and
//! `STEAD_FIRST_ID` in its environment: its arguments can be read by everybody inside, because
//! the init of a Container is a copy of it.
//!
//! It owns the Sandbox's namespaces, sets up, starts and reaps its Containers, writes their
//! output to log files and keeps their exits until they are taken note of. It listens on the
//! socket `ctl` in `STEAD_FOLDER`; the newest connection is the one that counts.
//!
//! Guarantees: no Container outlives its holder; no exit is lost while the holder lives.
//! Deliberately absent: policy of any kind, links and addresses, limits, images. `serve` does
//! those, and a holder does what it is told. It has one thread, so that `clone` is safe, and is
//! linked statically, so that it stays small.
// It talks to the kernel directly; every block says why it is sound.
#![allow(unsafe_code)]

mod container;
mod failure;
mod hold;
mod inside;
mod log;
mod namespaces;
mod program;
mod report;
mod root;
mod sys;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use failure::Context;
use hold::Holder;
use namespaces::Namespaces;
use stead_holder::channel;
use stead_holder::wire::{Failure, Message, Slot};

fn main() {
    let Some(connection) = take_connection() else { sys::exit(2) };
    match begin(connection.as_fd()) {
        Ok(holder) => holder.run(connection),
        Err(failure) => {
            let message = Message::Answer { id: 0, result: Err(failure) };
            if let Ok(text) = serde_json::to_vec(&message) {
                let _ = channel::send(connection.as_fd(), &text, &[]);
            }
            sys::exit(1)
        }
    }
}

/// Moves the socket away from standard input and lets 0, 1 and 2 lead nowhere.
fn take_connection() -> Option<OwnedFd> {
    let connection = std::io::stdin().as_fd().try_clone_to_owned().ok()?;
    let nowhere = sys::open(c"/dev/null", libc::O_RDWR).ok()?;
    for number in 0..3 {
        sys::duplicate(std::os::fd::AsRawFd::as_raw_fd(&nowhere), number).ok()?;
    }
    Some(connection)
}

fn begin(connection: BorrowedFd<'_>) -> failure::Result<Holder> {
    let (Ok(folder), Ok(first_id)) =
        (std::env::var("STEAD_FOLDER"), std::env::var("STEAD_FIRST_ID"))
    else {
        return Err(Failure::NotUnderstood("this program is started by `stead serve`".into()));
    };
    let first_id = first_id
        .parse()
        .map_err(|_| Failure::NotUnderstood(format!("{first_id} is no user id")))?;

    sys::new_session();
    let _ = sys::prctl(libc::PR_SET_DUMPABLE, 0);
    channel::widen(connection).at("control socket")?;
    sys::set_nonblocking(connection).at("control socket")?;
    // A relative name keeps the address short, however long the folder's path is.
    std::env::set_current_dir(&folder).because(|| format!("folder {folder}"))?;
    let listener = sys::listen(c"ctl").at("control socket")?;
    let children = sys::child_signals().at("signals")?;
    let (namespaces, routing) = Namespaces::new(first_id).at("namespaces")?;
    let hello = serde_json::to_vec(&Message::Hello).expect("the message has no map keys");
    let net = namespaces.net(Slot::A).expect("slot A is there from the beginning");
    channel::send(connection, &hello, &[net, routing.as_fd()]).at("hello")?;
    Ok(Holder::new(listener, children, namespaces))
}
