//! Whether `serve` answers. Each look makes sure that it is that very process which does, by
//! the peer credentials of its socket, and not its predecessor.

use std::path::Path;
use std::time::Duration;

use stead_core::api::VersionView;
use tokio::net::UnixStream;

use super::settings::Settings;
use crate::client::{Client, Endpoint};

/// Between two looks.
const PACE: Duration = Duration::from_millis(5);

/// Returns when `serve` with this pid answers requests.
pub(super) async fn serve(settings: &Settings, pid: i32) {
    let socket = settings.layout.api_socket();
    let client = Client::new(Endpoint::Unix(socket.clone()), None);
    loop {
        if owner(&socket).await == Some(pid) && client.get::<VersionView>("/version").await.is_ok()
        {
            return;
        }
        tokio::time::sleep(PACE).await;
    }
}

/// The process that listens on a socket.
async fn owner(socket: &Path) -> Option<i32> {
    let stream = UnixStream::connect(socket).await.ok()?;
    stream.peer_cred().ok()?.pid()
}
