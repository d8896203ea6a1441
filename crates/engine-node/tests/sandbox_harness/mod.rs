//! A platform of its own for each test: name, folders, network, image. It is removed when the
//! test ends, also when it fails. Needs root, and `/bin/busybox` linked statically.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test program uses a part of it"
)]

use std::fmt::Display;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use stead_engine_node::sandbox::{
    ContainerSpec, ExecSpec, Host, HostConfig, LogPolicy, Recovered, Sandbox, SandboxSpec, Stdio,
    ViewState,
};

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// A platform under test.
pub struct Platform {
    host: Option<Host>,
    config: HostConfig,
    folder: Folder,
}

enum Folder {
    Own(tempfile::TempDir),
    Others(PathBuf),
}

/// A shell running a script.
pub fn shell(script: &str) -> Vec<String> {
    ["sh", "-c", script].map(str::to_owned).to_vec()
}

impl Platform {
    /// A fresh one. The names of tests must differ; other processes are told apart by number.
    pub async fn open(name: &str, pool: usize) -> Self {
        let folder = tempfile::Builder::new().prefix("stead-sandbox-").tempdir().unwrap();
        let digest = name.bytes().fold(std::process::id(), |hash, byte| {
            hash.wrapping_mul(31).wrapping_add(u32::from(byte))
        });
        make_image(&folder.path().join("image"));
        let config = HostConfig {
            run_dir: folder.path().join("run"),
            data_dir: folder.path().join("data"),
            name: format!("t{:x}", digest & 0xff_ffff),
            subnet: Ipv4Addr::new(10, 90 + (digest % 30) as u8, 0, 0),
            pool,
            log: LogPolicy::default(),
            host_ports: vec![],
        };
        let mut platform = Self { host: None, config, folder: Folder::Own(folder) };
        let found = platform.reopen().await;
        assert!(found.is_empty());
        platform
    }

    /// One that another process has opened and will remove.
    pub async fn attach(folder: PathBuf, name: &str, subnet: Ipv4Addr) -> Self {
        let config = HostConfig {
            run_dir: folder.join("run"),
            data_dir: folder.join("data"),
            name: name.to_owned(),
            subnet,
            pool: 0,
            ..HostConfig::default()
        };
        let mut platform = Self { host: None, config, folder: Folder::Others(folder) };
        platform.reopen().await;
        platform
    }

    /// Opens the host, as `serve` does when it starts.
    pub async fn reopen(&mut self) -> Vec<Recovered> {
        let (host, found) = Host::open(self.config.clone()).await.unwrap();
        self.host = Some(host);
        found
    }

    /// Lets go of everything without a word, as a `serve` that is killed.
    pub fn crash(&mut self) {
        self.host = None;
    }

    pub fn host(&self) -> &Host {
        self.host.as_ref().expect("the host is open")
    }

    pub fn config(&self) -> &HostConfig {
        &self.config
    }

    pub fn config_mut(&mut self) -> &mut HostConfig {
        &mut self.config
    }

    pub fn folder(&self) -> &Path {
        match &self.folder {
            Folder::Own(folder) => folder.path(),
            Folder::Others(folder) => folder,
        }
    }

    /// A Sandbox in the Namespace `default`.
    pub async fn sandbox(&self, id: &str) -> Arc<Sandbox> {
        self.sandbox_in(id, "default").await
    }

    pub async fn sandbox_in(&self, id: &str, namespace: &str) -> Arc<Sandbox> {
        self.host().create(sandbox_spec(id, namespace)).await.unwrap()
    }

    /// A Container of busybox.
    pub fn container(&self, id: &str, argv: &[String]) -> ContainerSpec {
        ContainerSpec {
            id: id.to_owned(),
            layers: vec![self.folder().join("image")],
            argv: argv.to_vec(),
            env: vec![("PATH".into(), "/bin".into())],
            log: self.log_path(id),
            ..ContainerSpec::default()
        }
    }

    pub fn log_path(&self, id: &str) -> PathBuf {
        self.folder().join("logs").join(format!("{id}.log"))
    }

    pub fn log(&self, id: &str) -> String {
        std::fs::read_to_string(self.log_path(id)).unwrap_or_default()
    }

    /// Prepares and starts.
    pub async fn start(&self, sandbox: &Sandbox, spec: ContainerSpec) {
        let id = spec.id.clone();
        sandbox.prepare(spec).await.unwrap();
        sandbox.start(&id).await.unwrap();
    }

    /// Prepares, starts, waits for a good end.
    pub async fn run(&self, sandbox: &Sandbox, spec: ContainerSpec) {
        let id = spec.id.clone();
        self.start(sandbox, spec).await;
        tokio::time::timeout(PATIENCE, sandbox.wait(&id)).await.unwrap().unwrap();
    }

    /// Waits until the log holds a text.
    pub async fn logged(&self, id: &str, text: &str) {
        let begun = Instant::now();
        while !self.log(id).contains(text) {
            assert!(begun.elapsed() < PATIENCE, "no {text:?} in the log:\n{}", self.log(id));
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// Waits until something is so.
    pub async fn until(&self, what: &str, mut is_so: impl AsyncFnMut() -> bool) {
        let begun = Instant::now();
        while !is_so().await {
            assert!(begun.elapsed() < PATIENCE, "not so: {what}");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    /// The exit code and output of a script run in a Container.
    pub async fn output(&self, sandbox: &Sandbox, id: &str, script: &str) -> (i32, String) {
        let spec = ExecSpec { argv: shell(script), ..ExecSpec::default() };
        let mut handle = sandbox.exec(id, spec).await.unwrap();
        let Stdio::Pipes { stdin, stdout, .. } = handle.take_stdio() else { panic!("a terminal") };
        drop(stdin);
        let reading = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            std::fs::File::from(stdout).read_to_string(&mut text).unwrap();
            text
        });
        let code = tokio::time::timeout(PATIENCE, handle.wait()).await.unwrap().unwrap();
        (code, reading.await.unwrap())
    }

    /// The body served at port 80.
    pub async fn fetch(&self, ip: IpAddr) -> String {
        let begun = Instant::now();
        loop {
            let got = tokio::task::spawn_blocking(move || fetch(ip)).await.unwrap();
            match got {
                Ok(body) => return body,
                Err(error) => assert!(begun.elapsed() < PATIENCE, "{ip}: {error}"),
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// The host's number of a Container's main process.
    pub fn main_process(&self, sandbox: &Sandbox, id: &str) -> i32 {
        let view = sandbox.containers().into_iter().find(|view| view.id == id).unwrap();
        let ViewState::Running { pid, .. } = view.state else { panic!("{:?}", view.state) };
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Removes everything and checks that nothing is left.
    pub async fn close(mut self) {
        let host = self.host.take().unwrap();
        host.destroy_all().await.unwrap();
        drop(host);
        assert_eq!(self.left(), Vec::<String>::new());
    }

    /// What of this platform is still on the machine: processes, mounts, links, rules, groups.
    pub fn left(&self) -> Vec<String> {
        let mut left = Vec::new();
        let run = self.config.run_dir.to_str().unwrap();
        for (pid, command) in processes() {
            if command.contains(run) {
                left.push(format!("process {pid}: {command}"));
            }
        }
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let folder = self.folder().to_str().unwrap();
        left.extend(mounts.lines().filter(|line| line.contains(folder)).map(str::to_owned));
        let name = &self.config.name;
        let links = std::fs::read_dir("/sys/class/net").unwrap().flatten();
        let links = links.filter_map(|entry| entry.file_name().into_string().ok());
        left.extend(links.filter(|link| link.starts_with(&format!("{name}-"))));
        // On a pure v2 host the root is the tree, else it holds the trees.
        let root = PathBuf::from("/sys/fs/cgroup");
        let trees = std::fs::read_dir(&root).unwrap().flatten().map(|entry| entry.path());
        for group in trees.chain([root]).map(|tree| tree.join(name)) {
            if group.exists() {
                left.push(group.display().to_string());
            }
        }
        let tables = std::process::Command::new("nft").args(["list", "tables"]).output().unwrap();
        let tables = String::from_utf8(tables.stdout).unwrap();
        for family in ["-4", "-6"] {
            let rules = std::process::Command::new("ip").args([family, "rule"]).output().unwrap();
            let rules = String::from_utf8(rules.stdout).unwrap();
            let table = format!("lookup {}", routing_table(name));
            left.extend(rules.lines().filter(|line| line.ends_with(&table)).map(str::to_owned));
        }
        left.extend(
            tables.lines().filter(|line| line.ends_with(&format!(" {name}"))).map(str::to_owned),
        );
        left
    }
}

impl Drop for Platform {
    /// After a failed test: whatever is left goes.
    fn drop(&mut self) {
        self.host = None;
        if matches!(self.folder, Folder::Others(_)) || self.left().is_empty() {
            return;
        }
        let config = self.config.clone();
        let cleaning = std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                if let Ok((host, _)) = Host::open(HostConfig { pool: 0, ..config }).await {
                    let _ = host.destroy_all().await;
                }
            });
        });
        let _ = cleaning.join();
    }
}

/// The number of a platform's routing table and of its group of links: FNV-1a of its name.
fn routing_table(name: &str) -> u32 {
    let hash = name
        .bytes()
        .fold(0x811c_9dc5u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    hash & 0x7fff_fffe | 2
}

pub fn sandbox_spec(id: &str, namespace: &str) -> SandboxSpec {
    SandboxSpec {
        id: id.to_owned(),
        hostname: format!("host-{id}"),
        namespace: namespace.to_owned(),
        labels: [("of".to_owned(), id.to_owned())].into(),
        ..SandboxSpec::default()
    }
}

/// Number and environment of every process.
pub fn processes() -> Vec<(i32, String)> {
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let command = std::fs::read(entry.path().join("environ")).ok()?;
            Some((pid, String::from_utf8_lossy(&command).replace('\0', " ")))
        })
        .collect()
}

fn fetch(ip: IpAddr) -> std::io::Result<String> {
    let address = SocketAddr::new(ip, 80);
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(1))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    match text.split_once("\r\n\r\n") {
        Some((head, body)) if head.contains(" 200 ") => Ok(body.to_owned()),
        _ => Err(std::io::Error::other(text)),
    }
}

/// A shell script that shows what an address serves, or that it cannot be reached.
pub fn ask(address: impl Display, port: u16) -> String {
    format!(
        "printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 1 {address} {port} >/answer 2>/dev/null; \
         tail -n 1 /answer | grep . || echo unreachable"
    )
}

/// A host beyond this one: a netns with a web server, which knows no way to Sandboxes.
pub struct Outside {
    name: String,
    pub ip: Ipv4Addr,
    pub ip6: Ipv6Addr,
    server: std::process::Child,
}

impl Outside {
    pub fn new(folder: &Path) -> Self {
        let pid = std::process::id();
        let name = format!("out{pid}");
        let third = (pid % 250) as u8;
        let (host, ip) = (Ipv4Addr::new(198, 18, third, 1), Ipv4Addr::new(198, 18, third, 2));
        let of = |last| Ipv6Addr::new(0x2001, 0xdb8, (pid >> 16) as u16, pid as u16, 0, 0, 0, last);
        let (host6, ip6) = (of(1), of(2));
        let maybe = |command: &str| {
            let words: Vec<_> = command.split(' ').collect();
            std::process::Command::new(words[0]).args(&words[1..]).output().unwrap()
        };
        let run = |command: &str| {
            let done = maybe(command);
            assert!(done.status.success(), "{command}: {done:?}");
        };
        run(&format!("ip netns add {name}"));
        run(&format!("ip link add {name} type veth peer name eth0 netns {name}"));
        run(&format!("ip addr add {host}/24 dev {name}"));
        // Where the host uses it.
        let _ = maybe(&format!("ip addr add {host6}/64 dev {name} nodad"));
        run(&format!("ip link set {name} up"));
        run(&format!("ip -n {name} link set lo up"));
        run(&format!("ip -n {name} link set eth0 up"));
        run(&format!("ip -n {name} addr add {ip}/24 dev eth0"));
        run(&format!("ip -n {name} addr add {ip6}/64 dev eth0 nodad"));
        run(&format!("ip -n {name} addr add 169.254.169.254/32 dev eth0"));
        run(&format!("ip route add 169.254.169.254/32 via {ip} dev {name}"));
        let www = folder.join("outside");
        std::fs::create_dir(&www).unwrap();
        std::fs::write(www.join("index.html"), "outside\n").unwrap();
        let server = std::process::Command::new("ip")
            .args(["netns", "exec", &name, "/bin/busybox", "httpd", "-f", "-p", "80", "-h"])
            .arg(&www)
            .spawn()
            .unwrap();
        Self { name, ip, ip6, server }
    }
}

impl Drop for Outside {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
        for arguments in [vec!["link", "del", &self.name], vec!["netns", "del", &self.name]] {
            let _ = std::process::Command::new("ip").args(arguments).status();
        }
    }
}

/// An image of one layer: busybox and its names.
fn make_image(folder: &Path) {
    let bin = folder.join("bin");
    std::fs::create_dir_all(&bin).unwrap();
    std::fs::create_dir_all(folder.join("etc")).unwrap();
    std::fs::copy("/bin/busybox", bin.join("busybox")).expect("apt-get install busybox-static");
    for name in [
        "sh", "sleep", "httpd", "wget", "nc", "cat", "ls", "id", "ip", "hostname", "touch",
        "mknod", "mount", "unshare", "head", "grep", "ps", "stat", "tail", "pwd", "true", "chown",
        "tty", "stty", "mkdir", "echo", "seq", "yes", "kill",
    ] {
        std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
    }
    std::fs::write(folder.join("etc/data"), "no program\n").unwrap();
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.join("etc/data"), executable).unwrap();
    // Links such as hostile images have.
    std::os::unix::fs::symlink("/etc", folder.join("link")).unwrap();
    std::os::unix::fs::symlink("../../../../tmp/sandbox-escape", folder.join("escape")).unwrap();
    std::fs::create_dir_all(folder.join("tmp/sandbox-escape")).unwrap();
}
