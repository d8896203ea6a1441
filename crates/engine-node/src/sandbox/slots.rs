//! The two places a Sandbox has for a Container, behind one address.
//!
//! Guarantees: a connection stays with the slot it was opened to until it ends; one that is
//! opened after [`Sandbox::flip`] has returned goes to the slot given; which slot is current is
//! known again after a restart of `serve`. Does not know what runs in the slots, nor when it is
//! time to flip.

use std::io;
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use stead_holder::wire::{Answer, Command, Failure};

use super::held::Sandbox;
use super::link::Reply;
use super::places::wire_slot;
use super::{SandboxError, Slot};
use crate::network::{Ips, SLOT_A, SLOT_B, Second, Sockets};

/// What is known of a Sandbox's slots.
#[derive(Debug, Default)]
pub(crate) struct Slots {
    /// The link of slot B, once it is complete.
    link: OnceLock<i32>,
    is_second: AtomicBool,
    /// Held by whoever changes something, for as long as the kernel takes. Blocking threads only.
    turn: Mutex<()>,
    /// Lists the connections of each slot, once it was asked for.
    sockets: [Mutex<Option<Sockets>>; 2],
}

impl Slots {
    pub(crate) fn new(second: Second) -> Arc<Self> {
        let slots = Self::default();
        if let Some(link) = second.link {
            slots.link.get_or_init(|| link);
        }
        slots.is_second.store(second.current == Slot::B, Ordering::Release);
        Arc::new(slots)
    }

    fn second(&self) -> Second {
        let is_second = self.is_second.load(Ordering::Acquire);
        let current = if is_second { Slot::B } else { Slot::A };
        Second { link: self.link.get().copied(), current }
    }

    fn take_turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The mark (`SO_MARK`) with which a socket of the host reaches exactly this slot of any Sandbox.
/// That of slot A may be set before there is a second one: connections then stay there, whatever
/// is flipped later.
pub(crate) fn mark_of(slot: Slot) -> u32 {
    match slot {
        Slot::A => SLOT_A,
        Slot::B => SLOT_B,
    }
}

impl Sandbox {
    /// Its address with IPv6, for its whole life: none if the host had no IPv6 when it was made.
    pub fn ip6(&self) -> Option<Ipv6Addr> {
        self.ips().v6
    }

    /// The slot that new connections to the Sandbox's addresses go to.
    pub fn current(&self) -> Slot {
        self.second().current
    }

    /// The mark (`SO_MARK`) with which a socket of the host reaches exactly this slot, whichever
    /// is current. `None` while there is nothing to choose: the Sandbox has never had a second
    /// slot.
    pub fn mark(&self, slot: Slot) -> Option<u32> {
        self.second().link.map(|_| mark_of(slot))
    }

    /// Has new connections to the Sandbox's addresses, from wherever they come, go to a slot.
    /// Those that are open stay where they are. Does nothing if it is so already.
    ///
    /// # Errors
    /// [`SandboxError::WrongState`] if nothing was ever prepared in slot B;
    /// [`SandboxError::Step`] if the kernel refuses, and then nothing has changed.
    pub async fn flip(&self, to: Slot) -> Result<(), SandboxError> {
        if to == Slot::B && self.second().link.is_none() {
            return Err(SandboxError::WrongState {
                what: format!("slot b of sandbox {}", self.id()),
                state: "has nothing prepared in it",
            });
        }
        let (means, connection) = (self.means().clone(), self.held().connection);
        self.change_slots("changing the current slot", move |slots| {
            if slots.second().current != to {
                means.network.flip(connection, to)?;
                slots.is_second.store(to == Slot::B, Ordering::Release);
            }
            Ok(())
        })
        .await
    }

    /// How many TCP connections from outside a slot are being served in it: opened to a port
    /// that is listened on, by somebody else than the slot itself, and not closed by both sides.
    /// Those of the host (the gateway, probes) are counted like those of other Sandboxes.
    ///
    /// # Errors
    /// `Unsupported` if the Sandbox's holder is of an older version; `BrokenPipe` if it has
    /// ended.
    pub async fn inbound(&self, slot: Slot) -> io::Result<usize> {
        if slot == Slot::B && self.second().link.is_none() {
            return Ok(0);
        }
        let which = slot as usize;
        let slots = self.slots().clone();
        let ips = self.ips();
        let count = move |fresh: Option<OwnedFd>| {
            let mut sockets = slots.sockets[which].lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(fresh) = fresh {
                *sockets = Some(Sockets::adopt(fresh));
            }
            let counted = sockets.as_mut().map(|sockets| sockets.inbound(ips)).transpose();
            if counted.is_err() {
                // What it has still to say would be taken for the next answer.
                *sockets = None;
            }
            counted
        };
        let counting = tokio::task::spawn_blocking({
            let count = count.clone();
            move || count(None)
        });
        if let Some(counted) = counting.await.map_err(io::Error::other)?? {
            return Ok(counted);
        }
        let fresh = self.sockets_of(slot).await?;
        let counting = tokio::task::spawn_blocking(move || count(Some(fresh)));
        Ok(counting.await.map_err(io::Error::other)??.unwrap_or_default())
    }

    async fn sockets_of(&self, slot: Slot) -> io::Result<OwnedFd> {
        let command = Command::Sockets { slot: wire_slot(slot) };
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        let reply = self.held().link.ask(command, &[]).await.map_err(gone)?;
        match (reply.result, reply.descriptors.into_iter().next()) {
            (Ok(_), Some(sockets)) => Ok(sockets),
            (Err(Failure::Step { errno, .. }), _) => Err(io::Error::from_raw_os_error(errno)),
            _ => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    /// Makes a slot, if it is not there yet.
    pub(crate) async fn make_slot(&self, slot: Slot) -> Result<(), SandboxError> {
        if slot == Slot::A || self.second().link.is_some() {
            return Ok(());
        }
        let command = Command::Slot { slot: wire_slot(slot) };
        let reply = self.held().link.ask(command, &[]).await.map_err(|_| self.lost())?;
        let (netns, routing) = match reply {
            Reply { result: Ok(Answer::Done), descriptors, .. } => {
                <[OwnedFd; 2]>::try_from(descriptors).map(<(_, _)>::from).map_err(|_| {
                    SandboxError::BadSpec("the holder made a slot and did not show it".into())
                })?
            }
            Reply { result: Err(Failure::NotUnderstood(_)), .. } => {
                return Err(self.outdated("hold two versions side by side"));
            }
            Reply { result: Err(failure), .. } => {
                return Err(SandboxError::from_holder("", failure));
            }
            Reply { result: Ok(answer), .. } => return Err(super::held::unexpected(Ok(answer))),
        };
        let (means, connection) = (self.means().clone(), self.held().connection);
        let namespace = self.namespace().to_owned();
        self.change_slots("connecting slot b", move |slots| {
            if slots.link.get().is_none() {
                let network = &means.network;
                let link =
                    network.connect_second(connection, &namespace, netns.as_fd(), routing)?;
                slots.link.get_or_init(|| link);
            }
            Ok(())
        })
        .await
    }

    /// Changes something on a blocking thread, one after the other. What has begun is finished,
    /// and noted, whether or not the caller waits.
    async fn change_slots(
        &self,
        step: &str,
        act: impl FnOnce(&Slots) -> io::Result<()> + Send + 'static,
    ) -> Result<(), SandboxError> {
        let slots = self.slots().clone();
        let acting = tokio::task::spawn_blocking(move || {
            let _turn = slots.take_turn();
            act(&slots)
        });
        let acted = acting.await.map_err(io::Error::other).and_then(|done| done);
        acted.map_err(SandboxError::step(step))
    }

    pub(crate) fn second(&self) -> Second {
        self.slots().second()
    }

    fn ips(&self) -> Ips {
        self.held().connection.ips
    }
}
