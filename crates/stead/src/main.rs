//! The `stead` binary: the command line, and the roles it starts on one machine.
//!
//! It wires the other crates together and decides nothing itself. Commands talk to the
//! platform over its API alone.

mod cli;
mod client;
mod doctor;
mod failure;
mod output;
mod platform;
mod progress;
mod source;
mod upload;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
