//! Fast starts for Java programs, whose Apps need not know of it.
//!
//! A Java program spends most of its start on loading classes. The virtual machine can write
//! them down once and map them in at every later start: a class-data archive (AppCDS) on Java 13
//! to 24, an AOT cache with profiles on 25 and later. Here they are recorded ([`train`]), kept
//! ([`archives`]) under what they are good for ([`key`]), and put into a start's options
//! ([`flags`]) for the virtual machine that an image has ([`release`]).
//!
//! Promises: the person's own options are respected; an archive is used only where it was
//! measured to be faster; one that is damaged, or that the virtual machine does not take, or that
//! a start failed with, is used no more. Does not know Apps or Releases, nor when to record.

pub(crate) mod archives;
pub(crate) mod flags;
pub(crate) mod key;
pub(crate) mod release;
pub(crate) mod train;

pub(crate) use archives::{Archives, Known};
pub(crate) use key::Key;
pub(crate) use release::Jdk;
