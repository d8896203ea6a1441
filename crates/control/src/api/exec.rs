//! Commands inside a running Instance, over an upgraded connection.

use std::future::Future;

use axum::extract::{Extension, Path, Request, State};
use axum::response::{IntoResponse, Response};
use futures_util::StreamExt;
use http::{HeaderMap, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use stead_core::api::ProblemJson;
use stead_core::api::exec::{Frame, PROTOCOL};
use stead_core::engine::{Exec, ExecInput, ExecOutput, ExecRequest};
use stead_core::error::{Code, UserError};
use stead_core::event::Fact;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use utoipa::IntoParams;

use super::problem::Problem;
use super::request::Params;
use super::{AppPath, Handle};
use crate::auth::Caller;
use crate::reconcile::note;

/// What to run.
#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(super) struct ExecQuery {
    /// An `ExecRequest` as JSON.
    request: String,
}

/// Runs a command inside a running Instance. The connection is upgraded to `stead-exec/1`.
#[utoipa::path(post, path = "/api/v1/namespaces/{ns}/apps/{app}/exec", tag = "change",
    params(("ns" = String, Path), ("app" = String, Path), ExecQuery),
    responses((status = 101, description = "Frames of stead-exec/1 follow"),
        (status = "default", body = ProblemJson)))]
pub(super) async fn exec(
    State(api): Handle,
    Extension(caller): Extension<Caller>,
    Path(path): Path<AppPath>,
    Params(ExecQuery { request: query }): Params<ExecQuery>,
    mut request: Request,
) -> Result<Response, Problem> {
    let bad = |why: String| UserError::new(Code::BadRequest, why, "use `stead exec`");
    let wanted: ExecRequest =
        serde_json::from_str(&query).map_err(|error| bad(format!("request: {error}")))?;
    if wanted.argv.is_empty() {
        return Err(bad("argv is empty: a program is needed".to_owned()).into());
    }
    let upgrade = request
        .extensions_mut()
        .remove::<OnUpgrade>()
        .filter(|_| asks_for(request.headers()))
        .ok_or_else(|| bad(format!("the connection must be upgraded to {PROTOCOL}")))?;
    let key = api.app(&path.key()?)?.value.key;
    // Its arguments may be confidential; the program is not.
    let what = format!("ran {} inside an instance", wanted.argv[0]);
    let exec = api.engine.exec(&key, wanted).await?;
    note(&api.events, &key, Fact::Changed { by: caller.name, what });
    let mut closing = api.closing.clone();
    tokio::spawn(async move {
        let talking = async {
            match upgrade.await {
                Ok(connection) => talk(exec, TokioIo::new(connection)).await,
                Err(error) => tracing::debug!(%error, "exec was not upgraded"),
            }
        };
        let talking = std::pin::pin!(talking);
        tokio::select! {
            () = talking => {}
            _ = closing.wait_for(|closing| *closing) => {}
        }
    });
    let headers = [(header::CONNECTION, "upgrade"), (header::UPGRADE, PROTOCOL)];
    Ok((StatusCode::SWITCHING_PROTOCOLS, headers).into_response())
}

fn asks_for(headers: &HeaderMap) -> bool {
    headers.get(header::UPGRADE).is_some_and(|value| value == PROTOCOL)
}

/// Carries frames until the command ended or the caller went away, which hangs it up.
fn talk(
    exec: Exec,
    connection: impl AsyncRead + AsyncWrite + Send + 'static,
) -> impl Future<Output = ()> + Send {
    let Exec { input, mut output } = exec;
    let (mut from, mut to) = tokio::io::split(connection);
    async move {
        let inbound = async {
            let mut buffer = Vec::new();
            loop {
                while let Some(frame) = Frame::decode(&mut buffer).unwrap_or(Some(Frame::Exit(0))) {
                    match frame {
                        Frame::Stdin(data) => input(ExecInput::Data(data)),
                        Frame::StdinEnd => input(ExecInput::End),
                        Frame::Resize(rows, cols) => input(ExecInput::Resize(rows, cols)),
                        // Nothing a client says: it does not speak this protocol.
                        Frame::Stdout(_) | Frame::Stderr(_) | Frame::Exit(_) => return,
                    }
                }
                if from.read_buf(&mut buffer).await.unwrap_or(0) == 0 {
                    return;
                }
            }
        };
        let outbound = async {
            let mut bytes = Vec::new();
            while let Some(item) = output.next().await {
                let frame = match item {
                    ExecOutput::Stdout(data) => Frame::Stdout(data),
                    ExecOutput::Stderr(data) => Frame::Stderr(data),
                    ExecOutput::Exit(code) => Frame::Exit(code),
                };
                bytes.clear();
                frame.encode(&mut bytes);
                if to.write_all(&bytes).await.is_err() || to.flush().await.is_err() {
                    return;
                }
            }
            let _ = to.shutdown().await;
        };
        let (inbound, outbound) = (std::pin::pin!(inbound), std::pin::pin!(outbound));
        tokio::select! {
            () = inbound => {}
            () = outbound => {}
        }
    }
}
