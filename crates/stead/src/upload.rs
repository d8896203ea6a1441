//! A Package's way to the platform: cut into layers here, sent as far as it is not there yet,
//! and made into an image there.
//!
//! Promises: a layer that the platform knows is not sent; one that was sent in part goes on
//! where it stopped, also when the platform was replaced meanwhile; nothing is left on this
//! machine's disk. Does not know what kinds of Packages there are.

use std::fs::File;
use std::io::IsTerminal;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use stead_core::api::package::{
    BaseName, BaseView, ComposeRequest, Composed, PackageKind, Upload, UploadView,
};
use stead_core::engine::ImageInfo;
use stead_core::error::{Code, UserError};
use stead_core::ids::Digest;
use stead_core::manifest::Manifest;
use stead_engine_node::package::{Layer, Pack, PackError, PackOptions, pack};
use tokio::time::Instant;

use crate::client::Client;
use crate::output::{Format, Output, human};
use crate::source;

/// How long the platform may take nothing before an upload is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two attempts to go on.
const PACE: Duration = Duration::from_millis(200);
/// How often layers may be found missing: once, unless somebody prunes what was just sent.
const ROUNDS: usize = 3;

/// A Package, packed.
pub(crate) struct Package {
    pack: Arc<Pack>,
    request: ComposeRequest,
    /// The platform has the base already, and will not have to make it.
    base_is_here: bool,
}

/// What a Package consists of, for people and programs that look before they deploy.
#[derive(Debug, Serialize)]
pub(crate) struct PackageView {
    /// What it is.
    pub(crate) kind: PackageKind,
    /// What it runs on.
    pub(crate) base: Option<BaseName>,
    /// Whether the base was made already; else the first deploy makes it.
    pub(crate) base_is_here: bool,
    /// The one that changes least first.
    pub(crate) layers: Vec<LayerView>,
    /// How it is started, where the base does not say.
    pub(crate) command: Vec<String>,
    /// What was chosen, and why.
    pub(crate) notes: Vec<String>,
}

/// One layer of a Package.
#[derive(Debug, Serialize)]
pub(crate) struct LayerView {
    /// What it holds.
    pub(crate) what: String,
    /// Digest of the archive, not compressed.
    pub(crate) diff_id: Digest,
    /// Its length, bytes.
    pub(crate) size: u64,
    /// Whether the platform has it, so that it would not be sent.
    pub(crate) here: bool,
}

/// What sending a Package came to.
#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    layers: usize,
    bytes: u64,
}

impl Package {
    /// Packs what is at `path` for the App that `manifest` describes.
    pub(crate) async fn pack(
        client: &Client,
        output: Output,
        path: &Path,
        manifest: &Manifest,
    ) -> Result<Self> {
        let bases: Vec<BaseView> = client.get("/bases").await?;
        let usable = bases.iter().filter(|base| base.error.is_none());
        let options = PackOptions {
            runtime: manifest.runtime.as_ref().map(|runtime| runtime.0.clone()),
            site: manifest.site.is_some(),
            known: usable.map(|base| base.base.clone()).collect(),
            port: manifest.http_port(&[]),
            cache: cache(),
            progress: if output.format == Format::Table { say } else { |_| {} },
        };
        let path = path.to_owned();
        let name = format!("package/{}/{}", manifest.namespace, manifest.app);
        let mut package = Self::cut(name, move || pack(&path, &options)).await?;
        let made = |base: &BaseName| {
            let view = bases.iter().find(|view| view.base == *base);
            view.is_some_and(|view| view.image.is_some())
        };
        package.base_is_here = package.request.base.as_ref().is_none_or(made);
        Ok(package)
    }

    /// Something packed already, to be known as `name`, on a base that is there.
    pub(crate) async fn of(name: String, pack: Pack) -> Result<Self> {
        Self::cut(name, move || Ok(pack)).await
    }

    async fn cut(
        name: String,
        make: impl FnOnce() -> Result<Pack, PackError> + Send + 'static,
    ) -> Result<Self> {
        let work = move || {
            let pack = make()?;
            let layers = pack.layers.iter().map(Layer::packed).collect::<Result<Vec<_>, _>>()?;
            Ok((pack, layers))
        };
        let (pack, layers) = blocking(work).await?;
        let (kind, base, config) = (pack.kind, pack.base.clone(), pack.config.clone());
        let request = ComposeRequest { name, kind, base, layers, config, dry_run: false };
        Ok(Self { pack: Arc::new(pack), request, base_is_here: true })
    }

    /// What it consists of, and its image if that is there. Nothing is sent or made.
    pub(crate) async fn look(&self, client: &Client) -> Result<(PackageView, Option<ImageInfo>)> {
        let request = ComposeRequest { dry_run: true, ..self.request.clone() };
        let (missing, image) = match client.post("/images/compose", &request).await? {
            Composed::Image(image) => (Vec::new(), Some(image)),
            Composed::Missing(missing) => (missing, None),
        };
        let layers = self.request.layers.iter().map(|layer| LayerView {
            what: layer.what.clone(),
            diff_id: layer.diff_id.clone(),
            size: layer.size,
            here: !missing.contains(&layer.diff_id),
        });
        let view = PackageView {
            kind: self.pack.kind,
            base: self.pack.base.clone(),
            base_is_here: self.base_is_here,
            layers: layers.collect(),
            command: self.pack.config.entrypoint.clone(),
            notes: self.pack.notes.clone(),
        };
        Ok((view, image))
    }

    /// Sends what is not there, and has the image made.
    pub(crate) async fn send(mut self, client: &Client, output: Output) -> Result<ImageInfo> {
        for note in &self.pack.notes {
            output.say(&human::plain(note))?;
        }
        if let (Some(base), false) = (&self.pack.base, self.base_is_here)
            && output.format == Format::Table
        {
            say(&format!("having the base {base} made"));
        }
        let mut sent = Sent::default();
        for _ in 0..ROUNDS {
            match client.post("/images/compose", &self.request).await? {
                Composed::Image(image) => {
                    output.say(&self.summary(sent))?;
                    return Ok(image);
                }
                Composed::Missing(missing) => {
                    for diff_id in missing {
                        sent.bytes += self.send_layer(client, output, &diff_id).await?;
                        sent.layers += 1;
                    }
                }
            }
        }
        Err(UserError::new(
            Code::ImageCorrupt,
            "layers that were sent are missing again and again",
            "does somebody prune images at the same time? `stead events` shows it",
        )
        .into())
    }

    /// Sends one layer; how many bytes went over the wire.
    async fn send_layer(
        &mut self,
        client: &Client,
        output: Output,
        diff_id: &Digest,
    ) -> Result<u64> {
        let at = self.request.layers.iter().position(|layer| layer.diff_id == *diff_id);
        let at = at.context("the platform asks for a layer that is not of this package")?;
        let pack = Arc::clone(&self.pack);
        let (file, upload) = blocking(move || {
            let mut file = tempfile::tempfile().map_err(PackError::Output)?;
            let upload = pack.layers[at].compress(&mut file)?;
            Ok((file, upload))
        })
        .await?;
        let layer = &mut self.request.layers[at];
        let bar = bar(output, &layer.what, upload.size);
        let sent = send(client, &file, &upload, &bar, PATIENCE).await;
        bar.finish_and_clear();
        layer.upload = Some(upload);
        sent
    }

    /// One line on what it came to.
    fn summary(&self, sent: Sent) -> String {
        let layers = self.request.layers.len();
        let size: u64 = self.request.layers.iter().map(|layer| layer.size).sum();
        let base = self.pack.base.as_ref().map(|base| format!(" on {base}")).unwrap_or_default();
        let what = format!("{}{base}, {layers} layers, {}", self.pack.kind, human::bytes(size));
        match sent.layers {
            0 => format!("packed {what}: nothing to send, the platform has all of it"),
            count => format!("packed {what}: sent {} ({count} layers)", human::bytes(sent.bytes)),
        }
    }
}

/// Sends `file` from where the platform has it; how much of it the platform took now, in bytes.
/// It gives up when the platform kept nothing more for as long as `patience`, not counting what
/// it takes to send.
async fn send(
    client: &Client,
    file: &File,
    upload: &Upload,
    bar: &ProgressBar,
    patience: Duration,
) -> Result<u64> {
    let path = format!("/uploads/{}", upload.digest);
    let query = format!("{path}?size={}", upload.size);
    let mut began = None;
    // How much was kept at most, and since when an attempt after that did not go well.
    let (mut furthest, mut stuck) = (0, None::<Instant>);
    loop {
        let end = match client.get::<UploadView>(&path).await {
            Ok(view) if view.complete => Ok(view),
            Ok(view) => {
                began.get_or_insert(view.offset);
                // The platform says what it kept; what broke off on the way is sent again.
                if view.offset > furthest {
                    (furthest, stuck) = (view.offset, None);
                }
                bar.set_position(view.offset);
                client.append(&query, view.offset, rest(file, view.offset, bar)?).await
            }
            Err(error) => Err(error),
        };
        let is_over = || stuck.is_some_and(|since| since.elapsed() > patience);
        match end {
            Ok(view) if view.complete => return Ok(began.map_or(0, |began| upload.size - began)),
            Err(error) if !may_go_on(&error) || is_over() => return Err(error),
            Ok(_) if is_over() => {
                let message = "the platform keeps nothing of what is sent";
                return Err(
                    UserError::new(Code::Internal, message, "see the platform's log").into()
                );
            }
            _ => {
                stuck.get_or_insert_with(Instant::now);
                tokio::time::sleep(PACE).await;
            }
        }
    }
}

/// The platform went away, or has another part of the upload than we thought.
fn may_go_on(error: &anyhow::Error) -> bool {
    let code = error.downcast_ref::<UserError>().map(|error| error.code);
    matches!(code, Some(Code::PlatformDown | Code::Conflict)) || error.is::<hyper::Error>()
}

/// What is left of a file, as a body that moves the bar.
fn rest(
    file: &File,
    offset: u64,
    bar: &ProgressBar,
) -> Result<impl hyper::body::Body<Data = bytes::Bytes, Error = std::io::Error> + Send + use<>> {
    let file = file.try_clone()?;
    let bar = bar.clone();
    Ok(source::body(move |out| {
        let mut at = offset;
        let mut buffer = vec![0; 64 << 10];
        loop {
            // The body of an attempt that broke off may still be read: both have one file, and
            // with it one place in it.
            match file.read_at(&mut buffer, at)? {
                0 => return Ok(()),
                count => {
                    out.write_all(&buffer[..count])?;
                    bar.inc(count as u64);
                    at += count as u64;
                }
            }
        }
    }))
}

/// A bar on a terminal, a line in a log, nothing for programs.
fn bar(output: Output, what: &str, size: u64) -> ProgressBar {
    if output.format != Format::Table {
        return ProgressBar::hidden();
    }
    if !std::io::stderr().is_terminal() {
        say(&format!("sending {what}, {}", human::bytes(size)));
        return ProgressBar::hidden();
    }
    let template = "  {msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}";
    let style = ProgressStyle::with_template(template).expect("the template is a constant");
    ProgressBar::new(size).with_style(style).with_message(format!("sending {what}"))
}

fn say(line: &str) {
    eprintln!("{}", human::plain(line));
}

/// Where dependencies are kept from one packing to the next (XDG Base Directory).
fn cache() -> PathBuf {
    let absolute =
        |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
    let cache = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
    cache.unwrap_or_else(|| "/var/cache".into()).join("stead")
}

/// Runs what reads and hashes files, off the event loop.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PackError> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await.context("packing ended early")?;
    done.map_err(|error| UserError::from(error).into())
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::io::Write;
    use std::sync::Mutex;

    use http_body_util::{BodyExt, Full};
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use hyper::{Method, Request, Response};
    use hyper_util::rt::TokioIo;
    use stead_core::ids::Digest;
    use tokio::net::UnixListener;

    use super::*;
    use crate::client::Endpoint;

    /// A platform that takes in uploads, breaks off in the middle of each body so many times,
    /// and keeps what came until then.
    #[derive(Default)]
    struct Taking {
        kept: Vec<u8>,
        breaks: usize,
        /// What each break comes after.
        slow: Duration,
        requests: HashMap<Method, usize>,
    }

    type Answer = Result<Response<Full<bytes::Bytes>>, std::io::Error>;

    async fn answer(taking: &Mutex<Taking>, mut request: Request<Incoming>) -> Answer {
        let locked = || taking.lock().unwrap();
        *locked().requests.entry(request.method().clone()).or_default() += 1;
        let size: usize = match request.uri().query() {
            Some(query) => query.strip_prefix("size=").unwrap().parse().unwrap(),
            None => usize::MAX,
        };
        if request.method() == Method::PATCH {
            let offset = request.headers()["upload-offset"].to_str().unwrap().to_owned();
            assert_eq!(offset, locked().kept.len().to_string());
            while let Some(frame) = request.body_mut().frame().await {
                let Ok(frame) = frame else { break };
                let slow = locked().slow;
                if locked().kept.len() > size / 8 && locked().breaks > 0 {
                    tokio::time::sleep(slow).await;
                }
                let mut taking = locked();
                taking.kept.extend(frame.into_data().unwrap_or_default());
                if taking.breaks > 0 && taking.kept.len() > size / 4 {
                    taking.breaks -= 1;
                    return Err(std::io::ErrorKind::ConnectionReset.into());
                }
            }
        }
        let offset = locked().kept.len() as u64;
        let view = UploadView { offset, complete: offset == size as u64 };
        Ok(Response::new(Full::new(serde_json::to_vec(&view).unwrap().into())))
    }

    #[tokio::test]
    async fn bodies_of_two_attempts_do_not_disturb_each_other() {
        let mut file = tempfile::tempfile().unwrap();
        let sent: Vec<u8> = (0..4_000_000u32).map(|n| (n / 1000) as u8).collect();
        file.write_all(&sent).unwrap();
        let bar = ProgressBar::hidden();
        // One broke off after its first bytes, and was not let go yet.
        let mut before = Box::pin(rest(&file, 0, &bar).unwrap());
        assert!(before.frame().await.is_some());
        let mut now = Box::pin(rest(&file, 0, &bar).unwrap());
        let mut got = Vec::new();
        while let Some(frame) = now.frame().await {
            got.extend(frame.unwrap().into_data().unwrap());
            let _ = before.frame().await;
        }
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
    }

    /// Sends to a platform like this one; what it has then, and how it went.
    async fn sent_to(taking: Taking, patience: Duration) -> (Vec<u8>, Taking, Result<u64>) {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("socket");
        let listener = UnixListener::bind(&socket).unwrap();
        let taking = Arc::new(Mutex::new(taking));
        let served = Arc::clone(&taking);
        tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let taking = Arc::clone(&served);
                let service = service_fn(move |request| {
                    let taking = Arc::clone(&taking);
                    async move { answer(&taking, request).await }
                });
                let http = hyper::server::conn::http1::Builder::new();
                tokio::spawn(http.serve_connection(TokioIo::new(stream), service));
            }
        });
        let bytes: Vec<u8> = (0..4_000_000u32).map(|n| (n / 7) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        let upload = Upload { digest: Digest::from_sha256([1; 32]), size: bytes.len() as u64 };
        let client = Client::new(Endpoint::Unix(socket), None);
        let sent = send(&client, &file, &upload, &ProgressBar::hidden(), patience).await;
        let taking = std::mem::take(&mut *taking.lock().unwrap());
        (bytes, taking, sent)
    }

    #[tokio::test]
    async fn an_upload_goes_on_where_it_broke_off() {
        let breaking = Taking { breaks: 3, ..Taking::default() };
        let (bytes, taking, sent) = sent_to(breaking, PATIENCE).await;
        assert_eq!(sent.unwrap(), bytes.len() as u64);
        assert!(taking.kept == bytes);
        assert_eq!(taking.breaks, 0);
        assert_eq!(taking.requests[&Method::PATCH], 4);
    }

    #[tokio::test]
    async fn what_takes_longer_than_patience_lasts_may_break_off_too() {
        let patience = Duration::from_millis(50);
        let slow = Taking { breaks: 1, slow: 4 * patience, ..Taking::default() };
        let (bytes, taking, sent) = sent_to(slow, patience).await;
        assert_eq!(sent.unwrap(), bytes.len() as u64);
        assert!(taking.kept == bytes);
    }

    #[tokio::test]
    async fn what_will_not_get_better_ends_at_once() {
        let nobody = UserError::new(Code::Denied, "no", "ask");
        assert!(!may_go_on(&nobody.into()));
        let away = UserError::new(Code::PlatformDown, "gone", "start it");
        assert!(may_go_on(&away.into()));
    }
}
