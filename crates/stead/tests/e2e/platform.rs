//! A platform of its own for each test: the real binary, real Containers, a real registry.

use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock};
use std::time::{Duration, Instant};

use serde_json::Value;
use stead_testkit::images::Catalogue;
use stead_testkit::registry::Registry;

/// How long anything may take that should take a moment. Machines are shared and slow.
pub(crate) const SOON: Duration = Duration::from_secs(30);

/// One platform at a time in this program: two cores do not serve two soaks.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// The registry that all tests of this program share.
struct Images {
    registry: Registry,
    catalogue: Catalogue,
    pushed: Vec<String>,
}

fn images() -> MutexGuard<'static, Images> {
    static IMAGES: OnceLock<Mutex<Images>> = OnceLock::new();
    let start = || {
        // The registry ends with the thread that started it, and a test's thread ends early.
        let (sender, receiver) = std::sync::mpsc::channel();
        std::thread::spawn(move || {
            sender.send(Registry::start()).expect("the receiver waits");
            loop {
                std::thread::park();
            }
        });
        let registry = receiver.recv().expect("the sender sends").expect("docker-registry starts");
        Mutex::new(Images { registry, catalogue: Catalogue::new(), pushed: Vec::new() })
    };
    IMAGES.get_or_init(start).lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A reference to an image of the catalogue, pushed when it is first asked for.
pub(crate) fn image(name: &str, tag: &str) -> String {
    let mut images = images();
    let reference = images.registry.reference(name, tag);
    if !images.pushed.contains(&reference) {
        let image = images.catalogue.image(name, tag).expect("the catalogue makes it");
        images.registry.push(name, tag, &image).expect("the registry takes it");
        images.pushed.push(reference.clone());
    }
    reference
}

/// A reference to an image that the catalogue does not have.
pub(crate) fn push(name: &str, tag: &str, image: &stead_testkit::images::Image) -> String {
    let images = images();
    images.registry.push(name, tag, image).expect("the registry takes it");
    images.registry.reference(name, tag)
}

/// A registry that has the same images for those named in this file alone.
pub(crate) fn guarded(htpasswd: &Path) -> Registry {
    images().registry.guarded(htpasswd).expect("docker-registry starts")
}

/// Spoils a blob in the registry's store.
pub(crate) fn corrupt(digest: &str) {
    images().registry.corrupt(digest).expect("the blob is there");
}

/// A running platform. Dropped: everything of it is removed, and that is checked.
pub(crate) struct Platform {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) http: SocketAddr,
    /// The data folder is a small disk of its own.
    disk: bool,
    _turn: MutexGuard<'static, ()>,
}

/// What a command of the CLI did.
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Ran {
    /// The JSON document it printed.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {}", self.stdout))
    }

    /// Fails the test unless it ended with this code.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn free_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("loopback has a free port");
    listener.local_addr().expect("it is bound")
}

impl Platform {
    /// Starts one with an empty state.
    pub(crate) fn start() -> Self {
        Self::start_on(None)
    }

    /// Starts one whose data folder holds no more than so many mebibytes.
    pub(crate) fn start_on(disk_mib: Option<u32>) -> Self {
        let turn = turn();
        let dir = tempfile::Builder::new().prefix("stead-e2e-").tempdir().expect("a folder");
        if let Some(size) = disk_mib {
            let data = dir.path().join("data");
            std::fs::create_dir(&data).expect("the folder is empty");
            let size = format!("size={size}m");
            let mut mount = Command::new("mount");
            mount.args(["-t", "tmpfs", "-o", &size, "stead-e2e"]).arg(&data);
            assert!(mount.status().expect("mount runs").success());
        }
        let platform = Self { dir, http: free_port(), disk: disk_mib.is_some(), _turn: turn };
        platform.up();
        platform
    }

    /// `stead up`, for a first start or after something was killed.
    pub(crate) fn up(&self) {
        self.stead(&self.up_args()).expect(0);
    }

    pub(crate) fn up_args(&self) -> Vec<String> {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        ["up", "--detach", "--data-dir", &path("data"), "--run-dir", &path("run"), "--listen"]
            .map(str::to_owned)
            .into_iter()
            .chain(["none".to_owned(), "--http".to_owned(), self.http.to_string()])
            .collect()
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// Runs the CLI against this platform.
    pub(crate) fn stead<S: AsRef<str>>(&self, args: &[S]) -> Ran {
        self.command(args).output().expect("the binary runs").into()
    }

    /// The same, with this line to read.
    pub(crate) fn told(&self, args: &[&str], line: &str) -> Ran {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs");
        let mut stdin = child.stdin.take().expect("it is piped");
        writeln!(stdin, "{line}").expect("it reads");
        drop(stdin);
        child.wait_with_output().expect("it ends").into()
    }

    pub(crate) fn command<S: AsRef<str>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stead"));
        command
            .args(args.iter().map(AsRef::as_ref))
            .env("STEAD_SERVER", format!("unix:{}", self.run_dir().join("stead.sock").display()))
            .env("STEAD_RUN_DIR", self.run_dir())
            .env("NO_COLOR", "1")
            .stdin(Stdio::null());
        command
    }

    /// Runs the CLI and reads the JSON it prints.
    #[track_caller]
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = ["-o", "json"].iter().chain(args).copied().collect();
        self.stead(&args).expect(0).json()
    }

    /// Writes a manifest: App, image, what else it says (YAML). Gives its path.
    pub(crate) fn manifest(&self, app: &str, image: &str, rest: &str) -> String {
        let file = self.dir.path().join(format!("{app}.yaml"));
        let health = "health: {startup: {http: /healthz}, readiness: {http: /healthz}}";
        let health = if rest.contains("health:") { "" } else { health };
        let text = format!("app: {app}\nsource: {image}\n{health}\n{rest}\n");
        std::fs::write(&file, text).expect("the folder is ours");
        file.display().to_string()
    }

    /// Deploys what a manifest says: App, image, what else (YAML).
    pub(crate) fn deploy(&self, app: &str, image: &str, rest: &str) -> Ran {
        self.stead(&["deploy", "-f", &self.manifest(app, image, rest)])
    }

    /// The same, without waiting for its end.
    #[track_caller]
    pub(crate) fn begin(&self, app: &str, image: &str, rest: &str) {
        let file = self.manifest(app, image, rest);
        self.stead(&["deploy", "-f", &file, "--no-wait"]).expect(0);
    }

    /// Asks the API; `None` while nobody answers.
    pub(crate) fn ask(&self, path: &str) -> Option<Value> {
        self.api().ask(path)
    }

    /// The API, for another thread.
    pub(crate) fn api(&self) -> Api {
        Api { socket: self.run_dir().join("stead.sock") }
    }

    /// How an App is, by the API; `None` while nobody answers.
    pub(crate) fn app(&self, app: &str) -> Option<Value> {
        self.ask(&format!("/namespaces/default/apps/{app}"))
    }

    /// Waits until the App's Rollout is in this phase.
    #[track_caller]
    pub(crate) fn phase(&self, app: &str, phase: &str) -> Value {
        let mut last = Value::Null;
        let deadline = Instant::now() + 2 * SOON;
        loop {
            if let Some(view) = self.app(app) {
                last = view["rollout"].clone();
                if last["phase"] == phase {
                    return last;
                }
            }
            assert!(
                Instant::now() < deadline,
                "{app} is not {phase}: {last:#}\n{}\n{}",
                self.stead(&["rollout", "status", app]).stdout,
                self.stead(&["ledger", app]).stdout,
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the App's Rollout waits for a person behind this batch, counted from 0.
    #[track_caller]
    pub(crate) fn gate(&self, app: &str, batch: u64) {
        eventually(&format!("{app} waits behind batch {batch}"), || {
            let rollout = self.app(app)?["rollout"].clone();
            (rollout["batch"] == batch && rollout["gate"].is_object()).then_some(())
        });
    }

    /// A page of the sample service that answers with 200: which process it was (by the time of
    /// its start), and the body.
    #[track_caller]
    pub(crate) fn page(&self, app: &str, path: &str) -> (String, String) {
        let host = format!("{app}.default.localhost");
        let (head, body) = fetch(self.http, &host, path, "").expect("the gateway answers");
        assert!(head.starts_with("HTTP/1.1 200"), "{path}: {head}\n{body}");
        (header(&head, "x-started"), body)
    }

    /// The process that answers now.
    #[track_caller]
    pub(crate) fn process(&self, app: &str) -> String {
        self.page(app, "/").0
    }

    /// One GET through the gateway: status, version header, body.
    pub(crate) fn get(&self, app: &str, path: &str) -> std::io::Result<(u16, String, String)> {
        get(self.http, &format!("{app}.default.localhost"), path)
    }

    /// The version that answers now.
    #[track_caller]
    pub(crate) fn version(&self, app: &str) -> String {
        let (status, version, body) = self.get(app, "/").expect("the gateway answers");
        assert_eq!(status, 200, "{body}");
        version
    }

    /// The address of an Instance.
    #[track_caller]
    pub(crate) fn ip(&self, app: &str, instance: usize) -> String {
        let instances = self.json(&["ps", app]);
        instances[instance]["ip"].as_str().expect("it has an address").to_owned()
    }

    /// The process that has this role.
    pub(crate) fn pid(&self, role: &str) -> Option<i32> {
        self.pids(role).pop()
    }

    /// All processes that have this role, found by the run folder in their arguments: an old
    /// gateway finishes its connections beside the new one.
    pub(crate) fn pids(&self, role: &str) -> Vec<i32> {
        let run = self.run_dir().display().to_string();
        let all = std::fs::read_dir("/proc").expect("proc is mounted").flatten();
        all.filter_map(|entry| {
            let pid: i32 = entry.file_name().to_str()?.parse().ok()?;
            let line = std::fs::read(entry.path().join("cmdline")).ok()?;
            let args: Vec<_> = line.split(|byte| *byte == 0).collect();
            let is_ours = args.contains(&run.as_bytes());
            (is_ours && args.get(1) == Some(&role.as_bytes())).then_some(pid)
        })
        .collect()
    }

    /// Ends one of our processes at once, as a crash would.
    #[track_caller]
    pub(crate) fn kill(&self, role: &str) -> i32 {
        let pid = self.pid(role).unwrap_or_else(|| panic!("no {role} runs"));
        let pid = rustix::process::Pid::from_raw(pid).expect("a pid is not zero");
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it is ours");
        pid.as_raw_nonzero().get()
    }
}

/// Where the API is.
pub(crate) struct Api {
    socket: PathBuf,
}

impl Api {
    /// What it says at this path; `None` while nobody answers.
    pub(crate) fn ask(&self, path: &str) -> Option<Value> {
        use std::io::{Read, Write};
        let mut stream = std::os::unix::net::UnixStream::connect(&self.socket).ok()?;
        stream.set_read_timeout(Some(SOON)).ok()?;
        // HTTP/1.0: an answer in one piece, without chunks.
        write!(stream, "GET /api/v1{path} HTTP/1.0\r\nHost: stead\r\n\r\n").ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        head.split(' ').nth(1).filter(|status| status.starts_with('2'))?;
        serde_json::from_str(body).ok()
    }
}

impl Drop for Platform {
    fn drop(&mut self) {
        let down = self.stead(&["down", "--all"]);
        if self.disk {
            let gone = Command::new("umount").arg(self.dir.path().join("data")).status();
            if !gone.is_ok_and(|status| status.success()) {
                eprintln!("the test's disk is still in use");
            }
        }
        let left = left_behind(self.dir.path());
        if std::thread::panicking() {
            show_logs(&self.dir.path().join("data/log"));
            return;
        }
        assert_eq!(down.code, 0, "down: {}{}", down.stdout, down.stderr);
        assert!(left.is_empty(), "left behind: {left:#?}");
    }
}

/// The end of each log, for whoever reads a failed test. All of them are copied to the folder
/// that `STEAD_E2E_LOGS` names.
fn show_logs(folder: &Path) {
    if let Some(keep) = std::env::var_os("STEAD_E2E_LOGS") {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let _ = std::fs::copy(entry.path(), Path::new(&keep).join(entry.file_name()));
        }
    }
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let text = std::fs::read_to_string(entry.path()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        // The access log has a line for each request.
        let shown = if entry.file_name() == "access.log" { 5 } else { 60 };
        let from = lines.len().saturating_sub(shown);
        eprintln!("--- {}\n{}", entry.path().display(), lines[from..].join("\n"));
    }
}

/// Processes and mounts that still name the platform's folder.
fn left_behind(dir: &Path) -> Vec<String> {
    let dir = dir.display().to_string();
    let mut left: Vec<String> = std::fs::read_to_string("/proc/self/mountinfo")
        .unwrap_or_default()
        .lines()
        .filter(|line| line.contains(&dir))
        .map(|line| format!("mount {line}"))
        .collect();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&dir) {
            left.push(format!("process {} {line}", entry.file_name().display()));
        }
    }
    left
}

/// One GET on a connection of its own.
pub(crate) fn get(
    addr: SocketAddr,
    host: &str,
    path: &str,
) -> std::io::Result<(u16, String, String)> {
    let (head, body) = fetch(addr, host, path, "")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
    Ok((status, header(&head, "x-version"), body))
}

/// One GET on a connection of its own, with more header lines: head and body of the answer.
pub(crate) fn fetch(
    addr: SocketAddr,
    host: &str,
    path: &str,
    lines: &str,
) -> std::io::Result<(String, String)> {
    use std::io::{Read, Write};
    let mut stream = std::net::TcpStream::connect_timeout(&addr, SOON)?;
    stream.set_read_timeout(Some(SOON))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {host}\r\n{lines}Connection: close\r\n\r\n")?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    Ok((head.to_owned(), body.to_owned()))
}

/// The value of a header; empty when it is not there.
pub(crate) fn header(head: &str, wanted: &str) -> String {
    head.lines()
        .filter_map(|line| line.split_once(": "))
        .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
        .map_or(String::new(), |(_, value)| value.to_owned())
}

/// Waits for something to become true.
#[track_caller]
pub(crate) fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {SOON:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
