//! The load generator from the command line. Runs until the standard input ends or the time is
//! over, prints its report as one JSON document, and exits with 1 when a request failed or too
//! few were sent.
//!
//! ```text
//! cargo run -p stead-testkit --example load -- 127.0.0.1:8080 web.default.localhost --seconds 5
//! ```

use std::io::{self, Read};
use std::net::SocketAddr;
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use clap::Parser;
use stead_testkit::load::{Mix, Plan};
use tokio::sync::oneshot;

/// Load on one address.
#[derive(Parser)]
struct Options {
    /// Where to connect.
    address: SocketAddr,
    /// The Host header.
    host: String,
    /// How long at most.
    #[arg(long, default_value_t = 60.0)]
    seconds: f64,
    /// Clients of every kind, streams and WebSockets among them, not only what any server serves.
    #[arg(long)]
    everything: bool,
    /// Requests per second of the plain clients together.
    #[arg(long)]
    per_second: Option<f64>,
    /// Fewer requests sent than this is a failure.
    #[arg(long, default_value_t = 1)]
    at_least: u64,
}

#[tokio::main]
async fn main() -> ExitCode {
    let options = Options::parse();
    let mix = if options.everything { Mix::EVERYTHING } else { Mix::SIXTEEN };
    let plan = Plan::new(options.address, options.host).mix(mix);
    let plan = Plan { per_second: options.per_second, ..plan };
    let load = plan.duration(Duration::from_secs_f64(options.seconds)).start();
    // A thread of its own: a blocked read must not keep the runtime from ending.
    let (ended, end_of_input) = oneshot::channel();
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin().take(u64::MAX), &mut io::sink());
        let _ = ended.send(());
    });
    tokio::select! {
        _ = end_of_input => {}
        () = tokio::time::sleep(Duration::from_secs_f64(options.seconds)) => {}
    }
    let report = load.stop().await;
    println!("{}", serde_json::to_string(&report).expect("a report is plain data"));
    match report.lossless(options.at_least) {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("{text}");
            ExitCode::FAILURE
        }
    }
}
