//! End to end: the real binary with real Containers, registries and requests.
//!
//! Needs root, docker-registry, nginx, redis-server and python3 from Debian's packages;
//! `cargo xtask test` installs them.

mod bases;
mod crash;
mod deploy;
mod disk;
mod handover;
mod images;
mod judged;
mod load;
mod packages;
mod packages_java;
mod platform;
mod refuse;
mod registries;
mod secrets;
mod settings;
mod site;
mod soak;
mod steps;
