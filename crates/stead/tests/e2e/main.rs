//! End to end: the real binary with real Containers, registries and requests.
//!
//! Needs root, docker-registry, nginx, redis-server and python3 from Debian's packages;
//! `cargo xtask test` installs them.

mod crash;
mod deploy;
mod disk;
mod handover;
mod judged;
mod load;
mod platform;
mod refuse;
mod registries;
mod secrets;
mod settings;
mod soak;
mod steps;
