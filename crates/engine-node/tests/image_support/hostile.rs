//! A registry that misbehaves as told: a few lines of HTTP/1.1, one request per connection.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use stead_core::ids::Digest;
use stead_engine_node::image::Reference;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use super::{TestImage, digest};

#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    /// With the query.
    pub path: String,
    /// Names in lower case.
    pub headers: HashMap<String, String>,
    pub body: String,
    /// How many requests for the same path came before.
    pub earlier: usize,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }
}

pub struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// The length announced, if it is not the body's.
    announced: Option<u64>,
    /// The body is sent again and again, in chunks, without an end.
    endless: bool,
    /// The connection stays open after the body, silent.
    stalls: bool,
    /// The body is sent byte by byte, with this pause after each.
    drips: Option<Duration>,
}

impl Reply {
    pub fn new(status: u16, body: impl Into<Vec<u8>>) -> Self {
        Self {
            status,
            headers: Vec::new(),
            body: body.into(),
            announced: None,
            endless: false,
            stalls: false,
            drips: None,
        }
    }

    pub fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The connection breaks after `kept` bytes of the body.
    pub fn cut(mut self, kept: usize) -> Self {
        self.announced = Some(self.body.len() as u64);
        self.body.truncate(kept);
        self
    }

    /// Says that the body has another length.
    pub fn announce(mut self, length: u64) -> Self {
        self.announced = Some(length);
        self
    }

    /// Sends a byte, and another one only after a pause.
    pub fn drip(self, pause: Duration) -> Self {
        Self { drips: Some(pause), ..self }
    }

    pub fn endless(mut self) -> Self {
        self.endless = true;
        self
    }

    /// Sends `kept` bytes of the body and then nothing, without closing.
    pub fn stall(self, kept: usize) -> Self {
        Self { stalls: true, ..self.cut(kept) }
    }
}

type Handler = dyn Fn(&Request) -> Option<Reply> + Send + Sync;

/// Serves an image, except where the handler answers otherwise.
pub struct Hostile {
    /// `127.0.0.1:PORT`.
    pub host: String,
    pub requests: Arc<Mutex<Vec<Request>>>,
    task: JoinHandle<()>,
}

impl Drop for Hostile {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Hostile {
    pub async fn start(
        image: &TestImage,
        handler: impl Fn(&Request) -> Option<Reply> + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let requests: Arc<Mutex<Vec<Request>>> = Arc::default();
        let log = Arc::clone(&requests);
        let image = Arc::new(image.clone());
        let handler: Arc<Handler> = Arc::new(handler);
        let task = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let (log, image, handler) =
                    (Arc::clone(&log), Arc::clone(&image), Arc::clone(&handler));
                tokio::spawn(async move { serve(stream, &log, &image, &*handler).await });
            }
        });
        Self { host, requests, task }
    }

    pub fn reference(&self) -> Reference {
        format!("{}/web:1", self.host).parse().unwrap()
    }

    /// The requests whose path holds `part`.
    pub fn asked(&self, part: &str) -> Vec<Request> {
        let requests = self.requests.lock().unwrap();
        requests.iter().filter(|request| request.path.contains(part)).cloned().collect()
    }
}

/// What an honest registry answers.
pub fn honest(image: &TestImage, request: &Request) -> Reply {
    let name = request.path.split(['/', '?']).nth(4).unwrap_or_default();
    let is_tag = request.path.contains("/manifests/") && !name.contains(':');
    let wanted: Option<Digest> = if is_tag { Some(image.digest()) } else { name.parse().ok() };
    let Some(blob) = image.blobs().into_iter().find(|blob| Some(digest(blob)) == wanted) else {
        let body = r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
        return Reply::new(404, body);
    };
    let reply =
        match request.header("range").and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')) {
            Some(from) => {
                let from: usize = from.parse().unwrap();
                let range = format!("bytes {from}-{}/{}", blob.len() - 1, blob.len());
                Reply::new(206, &blob[from..]).header("Content-Range", range)
            }
            None => Reply::new(200, blob),
        };
    reply.header("Docker-Content-Digest", digest(blob).as_str())
}

async fn serve(stream: TcpStream, log: &Mutex<Vec<Request>>, image: &TestImage, handler: &Handler) {
    let mut stream = BufReader::new(stream);
    let Some(request) = read_request(&mut stream, log).await else { return };
    let reply = handler(&request).unwrap_or_else(|| honest(image, &request));
    // The client may go away at any point: that is its right.
    let _ = write_reply(stream.get_mut(), &request, reply).await;
}

async fn read_request(
    stream: &mut BufReader<TcpStream>,
    log: &Mutex<Vec<Request>>,
) -> Option<Request> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    let mut words = line.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok());
    let mut body = vec![0; length.unwrap_or(0)];
    stream.read_exact(&mut body).await.ok()?;
    let body = String::from_utf8(body).ok()?;
    let mut log = log.lock().unwrap();
    let earlier =
        log.iter().filter(|request| request.path == path && request.method == method).count();
    let request = Request { method, path, headers, body, earlier };
    log.push(request.clone());
    Some(request)
}

async fn write_reply(
    stream: &mut TcpStream,
    request: &Request,
    reply: Reply,
) -> std::io::Result<()> {
    let mut head = format!("HTTP/1.1 {} X\r\nConnection: close\r\n", reply.status);
    for (name, value) in &reply.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if reply.endless {
        head.push_str("Transfer-Encoding: chunked\r\n");
    } else {
        let length = reply.announced.unwrap_or(reply.body.len() as u64);
        head.push_str(&format!("Content-Length: {length}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes()).await?;
    if request.method == "HEAD" {
        return Ok(());
    }
    if reply.endless {
        loop {
            let size = format!("{:x}\r\n", reply.body.len());
            stream.write_all(&[size.as_bytes(), &reply.body, b"\r\n"].concat()).await?;
        }
    }
    if let Some(pause) = reply.drips {
        for byte in &reply.body {
            stream.write_all(&[*byte]).await?;
            // What is tested is the client's patience with this.
            tokio::time::sleep(pause).await;
        }
        return Ok(());
    }
    stream.write_all(&reply.body).await?;
    stream.flush().await?;
    if reply.stalls {
        // Until the client gives up.
        stream.read_to_end(&mut Vec::new()).await?;
    }
    Ok(())
}
