//! The role `gateway`: the data plane in a process of its own.

use std::error::Error as _;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::DirBuilderExt;
use std::time::Duration;

use anyhow::Result;
use stead_core::error::{Code, UserError};
use stead_gateway::{AccessLogTarget, CertificateFiles, Gateway, GatewayConfig, GatewayError};
use tokio::signal::unix::{SignalKind, signal};

use super::layout::Layout;
use super::settings::Tls;
use super::{log_to_stderr, role};

/// How long `serve` may take to give its routes, before the gateway is called ready without: it
/// serves by those it has, and lets requests wait when it has none.
const FIRST_ROUTES: Duration = Duration::from_secs(20);

/// Where it listens.
pub(crate) struct Addresses {
    pub(crate) http: SocketAddr,
    pub(crate) tls: Option<Tls>,
    pub(crate) metrics: Option<SocketAddr>,
}

/// Runs a gateway until it is stopped, or until a successor took over and the last
/// connection is done. SIGHUP opens the access log and reads certificates again.
pub(crate) fn run(layout: &Layout, addresses: Addresses) -> Result<()> {
    role::leave_session(c"stead-gateway");
    log_to_stderr();
    role::open_many_files();
    let config = config(layout, addresses)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let gateway = Gateway::start(config).await.map_err(|error| unfit(&error))?;
        let mut ended = std::pin::pin!(gateway.ended());
        let mut routed = std::pin::pin!(tokio::time::timeout(FIRST_ROUTES, gateway.acknowledged()));
        let mut ready = false;
        loop {
            tokio::select! {
                () = &mut ended => return Ok(()),
                // Before, `serve` would take what it changes for acknowledged by every gateway.
                routed = &mut routed, if !ready => {
                    if routed.is_err() {
                        tracing::warn!("`serve` has sent no routes");
                    }
                    ready = true;
                    role::say_ready();
                }
                _ = terminate.recv() => gateway.stop(),
                _ = interrupt.recv() => gateway.stop(),
                _ = hangup.recv() => gateway.reload().await,
            }
        }
    })
}

/// The error with its causes, and what to do about it.
fn unfit(error: &GatewayError) -> UserError {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    let hint = match error {
        GatewayError::Bind { addr, .. } => format!(
            "`ss -ltnp 'sport = :{}'` shows who listens there; `stead up --http` takes another",
            addr.port()
        ),
        _ => "`stead doctor` checks the machine".to_owned(),
    };
    UserError::new(Code::MachineUnfit, text, hint)
}

fn config(layout: &Layout, addresses: Addresses) -> io::Result<GatewayConfig> {
    let state = layout.gateway_state();
    for dir in [&state, &layout.log_dir()] {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    }
    let mut config = GatewayConfig::new(&layout.run_dir, state);
    config.http = vec![addresses.http];
    config.metrics = addresses.metrics;
    config.access_log = AccessLogTarget::File(layout.log("access"));
    if let Some(Tls { addr, cert, key }) = addresses.tls {
        config.https = vec![addr];
        config.certificates = vec![CertificateFiles { hosts: Vec::new(), chain: cert, key }];
    }
    Ok(config)
}
