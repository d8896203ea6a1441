//! The gateway between real clients, real Apps and a control plane that speaks the real link.
#![allow(clippy::unwrap_used, unreachable_pub, missing_docs)]

mod drain;
mod h2c;
mod kit;
mod limits;
mod marks;
mod parking;
mod process;
mod site;
mod split;
mod takeover;
mod tls;
mod traffic;
