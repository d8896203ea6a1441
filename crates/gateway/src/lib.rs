//! stead's L7 data plane: takes requests of clients to the Containers of their App.
//!
//! Promises: no request is sent to a Backend after its drain began, none is dropped because of
//! a release, a restart or the gateway's own upgrade, and every one is accounted for. It goes
//! on without a control plane, with the last routes it was given.
//!
//! Deliberately knows nothing of Rollouts, health checks or why a Backend is where it is: it
//! does what the route table says (`stead_core::routes`) and reports what it saw.
//!
//! A request's way: `listen` accepts and `wire` and `strict` vet the bytes; `forward`
//! finds the App in the `table`, gets a claim from the App's `split` (`rules`, `sticky`),
//! `balance` and `gate`, or waits in its `park`; `upstream` or `h2c` sends it and `reply`
//! brings the answer back. An App that is a `site` is answered from its files instead.
//! `exchange` and `ledger` keep the account, `link` reports it.

mod access_log;
mod app;
mod atomic;
mod backend;
mod balance;
mod config;
mod exchange;
mod forward;
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
pub mod fuzzing;
mod gate;
mod gateway;
mod h2c;
mod headers;
mod keep;
mod ledger;
mod link;
mod listen;
mod metrics;
mod park;
mod random;
mod refuse;
mod reply;
mod report;
mod rules;
mod site;
mod split;
mod sticky;
mod strict;
mod table;
mod takeover;
mod tls;
mod upload;
mod upstream;
mod wire;

pub use config::{AccessLogTarget, CertificateFiles, GatewayConfig, Limits};
pub use gateway::{Gateway, GatewayError};
pub use takeover::TakeoverError;

use tokio::signal::unix::{SignalKind, signal};

/// Runs a gateway until SIGTERM or SIGINT, or until a successor took over and the connections
/// are done. SIGHUP reads certificates and opens the access log again.
pub async fn run(config: GatewayConfig) -> Result<(), GatewayError> {
    let handler = |kind| signal(kind).map_err(GatewayError::System);
    let mut terminate = handler(SignalKind::terminate())?;
    let mut interrupt = handler(SignalKind::interrupt())?;
    let mut hangup = handler(SignalKind::hangup())?;
    let gateway = Gateway::start(config).await?;
    let mut ended = std::pin::pin!(gateway.ended());
    loop {
        tokio::select! {
            () = &mut ended => return Ok(()),
            _ = terminate.recv() => gateway.stop(),
            _ = interrupt.recv() => gateway.stop(),
            _ = hangup.recv() => gateway.reload().await,
        }
    }
}
