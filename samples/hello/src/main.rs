//! A small web service to deploy: it says which version it is, on port 8080.
//!
//! The demo, the tests and the benchmarks put it into images, so it is one static program
//! without dependencies, and it misbehaves on request. It promises correct HTTP/1.1 to a polite
//! client (keep-alive, chunked uploads, server-sent events, WebSocket echo, gRPC, raw TCP); it knows
//! nothing about stead, and it is not a server for the open Internet.
//!
//! Behaviour is chosen by environment variables: see [`Settings`].

mod grpc;
mod http;
mod tcp;
mod websocket;

use std::io::{self, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::{env, fs, process, thread};

use http::{Request, Response};

/// Where an image says which version it carries when the environment does not.
const VERSION_FILE: &str = "/etc/hello-version";

/// What the environment asks for.
struct Settings {
    /// `VERSION`, else the first line of `/etc/hello-version`, else `dev`.
    version: String,
    /// `PORT`, else 8080.
    port: u16,
    /// `TCP_PORT`: listen there for raw TCP too, where each line is answered with version,
    /// process id, time of start and itself.
    tcp_port: Option<u16>,
    /// `START_DELAY_MS`: sleep so long before listening.
    start_delay: Duration,
    /// `EXIT_AT_ONCE`: exit with this code instead of starting.
    exit_at_once: Option<i32>,
    /// `EXIT_AFTER_MS`: exit with code 1 so long after the start.
    exit_after: Option<Duration>,
    /// `NEVER_READY` (any value): `/healthz` answers 503 for ever.
    never_ready: bool,
    /// `ERROR_SHARE`, 0 to 1: this share of the answers of `/` is a 500.
    error_share: f64,
    /// `LATENCY_MS`: every answer of `/` takes so much longer.
    latency: Duration,
    /// `ALLOCATE_MB`: take so much memory at the start, to meet a limit.
    allocate_mb: usize,
}

impl Settings {
    fn from_env() -> Self {
        let file = || fs::read_to_string(VERSION_FILE).ok();
        let first_line = |text: String| text.lines().next().unwrap_or_default().to_owned();
        Self {
            version: env::var("VERSION")
                .ok()
                .or_else(|| file().map(first_line))
                .unwrap_or_else(|| "dev".to_owned()),
            port: number("PORT").unwrap_or(8080),
            tcp_port: number("TCP_PORT"),
            start_delay: Duration::from_millis(number("START_DELAY_MS").unwrap_or(0)),
            exit_at_once: number("EXIT_AT_ONCE"),
            exit_after: number("EXIT_AFTER_MS").map(Duration::from_millis),
            never_ready: env::var_os("NEVER_READY").is_some(),
            error_share: number("ERROR_SHARE").unwrap_or(0.0),
            latency: Duration::from_millis(number("LATENCY_MS").unwrap_or(0)),
            allocate_mb: number("ALLOCATE_MB").unwrap_or(0),
        }
    }
}

/// The number in an environment variable. A malformed one ends the program: a test that
/// misspells its wish must not pass by accident.
fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    let text = env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| {
        eprintln!("hello: {name}={text} is not a number that fits");
        process::exit(2)
    }))
}

struct Service {
    settings: Settings,
    /// When it started, as every answer says in `X-Started`: microseconds since 1970.
    started: u128,
    /// Answers of `/` so far, to spread `ERROR_SHARE` evenly.
    answers: AtomicU64,
    /// How often `/count` was asked for: a memory that only this process has.
    count: AtomicU64,
    kept: tcp::Kept,
    load: Arc<tcp::Load>,
}

impl Service {
    fn new(settings: Settings, started: u128) -> Self {
        Self {
            settings,
            started,
            answers: AtomicU64::new(0),
            count: AtomicU64::new(0),
            kept: tcp::Kept::default(),
            load: Arc::default(),
        }
    }
}

fn main() -> io::Result<()> {
    let settings = Settings::from_env();
    if let Some(code) = settings.exit_at_once {
        eprintln!("hello {}: exiting at once with {code}, as asked", settings.version);
        process::exit(code);
    }
    let started = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_micros());
    let ballast = vec![1_u8; settings.allocate_mb << 20];
    thread::sleep(settings.start_delay);
    if let Some(port) = settings.tcp_port {
        tcp::listen(port, format!("{} {} {started}", settings.version, process::id()))?;
    }
    let listener = TcpListener::bind(("0.0.0.0", settings.port))?;
    println!("hello {}: listening on {}", settings.version, listener.local_addr()?);
    if let Some(after) = settings.exit_after {
        thread::spawn(move || {
            thread::sleep(after);
            eprintln!("hello: exiting with 1, as asked");
            process::exit(1);
        });
    }
    serve(&listener, Arc::new(Service::new(settings, started)));
    drop(ballast);
    Ok(())
}

fn serve(listener: &TcpListener, service: Arc<Service>) {
    for stream in listener.incoming() {
        let Ok(stream) = stream else { continue };
        let service = Arc::clone(&service);
        // A client that leaves is its own affair; a thread that cannot start closes its stream.
        let _ = thread::Builder::new().stack_size(128 << 10).spawn(move || {
            let _ = service.connection(&stream);
        });
    }
}

impl Service {
    fn connection(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        while let Some(request) = Request::read(&mut reader)? {
            if request.method == "PRI" {
                return grpc::serve(reader, stream, &self.settings.version);
            }
            let (path, query) = request.target.split_once('?').unwrap_or((&request.target, ""));
            match path {
                "/events" => return self.events(stream, query),
                "/ws" => match request.header("sec-websocket-key") {
                    Some(key) => {
                        return websocket::echo(reader, stream, key, &self.settings.version);
                    }
                    None => {
                        self.write(stream, Response::text(400, "a WebSocket is expected here\n"))?
                    }
                },
                _ => {
                    let response = self.answer(&request, path, query, &mut reader)?;
                    self.write(stream, response)?;
                }
            }
            if request.closes() {
                break;
            }
        }
        Ok(())
    }

    fn answer(
        &self,
        request: &Request,
        path: &str,
        query: &str,
        reader: &mut BufReader<&TcpStream>,
    ) -> io::Result<Response> {
        // Always read to its end, so that the connection can be used again.
        let received = request.discard_body(reader)?;
        if path == "/" {
            thread::sleep(self.settings.latency);
        }
        Ok(match path {
            "/" if self.fails_this_time() => Response::text(500, "an error, as asked\n"),
            "/" => Response::text(200, format!("hello from {}\n", self.settings.version)),
            "/version" => Response::text(200, format!("{}\n", self.settings.version)),
            "/healthz" if self.settings.never_ready => Response::text(503, "not ready\n"),
            "/healthz" => Response::text(200, "ok\n"),
            "/upload" => Response::text(200, format!("{received} bytes\n")),
            "/slow" => {
                thread::sleep(Duration::from_millis(parameter(query, "ms").unwrap_or(1000)));
                Response::text(200, format!("hello at last from {}\n", self.settings.version))
            }
            "/count" => {
                let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
                Response::text(200, format!("{count} {}\n", process::id()))
            }
            // What another App sees on raw TCP: `to` is an address with its port.
            "/tcp/ask" => {
                let name: String = parameter(query, "name").unwrap_or_default();
                match parameter(query, "to").map(|to| self.kept.ask(&name, to)) {
                    Some(Ok(answer)) => Response::text(200, format!("{answer}\n")),
                    Some(Err(error)) => Response::text(502, format!("{error}\n")),
                    None => Response::text(400, "`to` is missing\n"),
                }
            }
            "/tcp/close" => {
                self.kept.close(&parameter::<String>(query, "name").unwrap_or_default());
                Response::text(200, "closed\n")
            }
            "/tcp/load" => match parameter(query, "to") {
                Some(to) => {
                    self.load.begin(to);
                    Response::text(200, "begun\n")
                }
                None => Response::text(400, "`to` is missing\n"),
            },
            "/tcp/report" => Response::text(200, self.load.report()),
            // For lifecycle hooks: the output says who was asked, and in what order.
            _ if path.starts_with("/hook/") => {
                println!("{path} on {}", self.settings.version);
                Response::text(200, "noted\n")
            }
            "/exit" if request.method == "POST" => {
                process::exit(parameter(query, "code").unwrap_or(1))
            }
            _ => match path.strip_prefix("/env/").map(env::var) {
                Some(Ok(value)) => Response::text(200, format!("{value}\n")),
                _ => Response::text(404, "no such page\n"),
            },
        })
    }

    /// Server-sent events: `count` of them, `every` milliseconds, then the end of the stream.
    fn events(&self, mut stream: &TcpStream, query: &str) -> io::Result<()> {
        let count: u64 = parameter(query, "count").unwrap_or(10);
        let every = Duration::from_millis(parameter(query, "every").unwrap_or(100));
        write!(
            stream,
            "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nX-Version: {}\r\n\
             Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n",
            self.settings.version
        )?;
        for number in 1..=count {
            let event = format!("id: {number}\ndata: {}\n\n", self.settings.version);
            write!(stream, "{:x}\r\n{event}\r\n", event.len())?;
            if number < count {
                thread::sleep(every);
            }
        }
        stream.write_all(b"0\r\n\r\n")
    }

    fn write(&self, stream: &TcpStream, response: Response) -> io::Result<()> {
        response.write(stream, &self.settings.version, self.started)
    }

    /// Spreads the share evenly: with 0.25 every fourth answer is an error.
    fn fails_this_time(&self) -> bool {
        let before = self.answers.fetch_add(1, Ordering::Relaxed) as f64;
        let share = self.settings.error_share;
        ((before + 1.0) * share).floor() > (before * share).floor()
    }
}

/// The value of `name` in a query string, when it is there and well formed.
fn parameter<T: std::str::FromStr>(query: &str, name: &str) -> Option<T> {
    query
        .split('&')
        .find_map(|pair| pair.split_once('=').filter(|(key, _)| *key == name))?
        .1
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn service(error_share: f64) -> Arc<Service> {
        let settings = Settings {
            version: "7".into(),
            port: 0,
            tcp_port: None,
            start_delay: Duration::ZERO,
            exit_at_once: None,
            exit_after: None,
            never_ready: true,
            error_share,
            latency: Duration::ZERO,
            allocate_mb: 0,
        };
        Arc::new(Service::new(settings, 0))
    }

    /// What the service says to these bytes on one connection.
    fn talk(request: &str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || serve(&listener, service(0.0)));
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    }

    #[test]
    fn a_connection_serves_requests_until_it_is_closed() {
        let answer = talk(
            "GET / HTTP/1.1\r\nHost: x\r\n\r\n\
             POST /upload HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n\
             3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n\
             GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        );
        assert!(answer.contains("X-Version: 7\r\n"), "{answer}");
        assert!(answer.contains("hello from 7\n"), "{answer}");
        assert!(answer.contains("5 bytes\n"), "{answer}");
        assert!(answer.ends_with("not ready\n"), "{answer}");
    }

    #[test]
    fn events_come_as_asked() {
        let answer = talk("GET /events?count=3&every=1 HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(answer.matches("data: 7\n").count(), 3, "{answer}");
        assert!(answer.ends_with("0\r\n\r\n"), "{answer}");
    }

    #[test]
    fn errors_are_spread_evenly() {
        let service = service(0.25);
        let errors: Vec<_> = (0..8).map(|_| service.fails_this_time()).collect();
        assert_eq!(errors, [false, false, false, true, false, false, false, true]);
    }
}
