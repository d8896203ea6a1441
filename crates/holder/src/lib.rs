//! What `serve` and the holder of a Sandbox say to each other.
//!
//! The holder itself is the binary beside this library (`main.rs`). The library is all that
//! `serve` links: the messages ([`wire`]) and the socket they travel on ([`channel`]).
// The channel passes descriptors, which no safe API of the standard library does.
#![allow(unsafe_code)]

pub mod channel;
pub mod wire;
