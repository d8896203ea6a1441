//! The images that tests, demo and benchmarks share.
//!
//! | name | what it is |
//! |---|---|
//! | `trivial:1`, `:2`, … | the sample service: one static program, port 8080 |
//! | `trivial:slow` | takes two seconds to start |
//! | `trivial:exits` | exits with code 3 at once |
//! | `trivial:never-ready` | listens, but `/healthz` answers 503 |
//! | `trivial:errors` | half of its answers are a 500 |
//! | `broken:missing-command` | its program is not in it |
//! | `broken:lying` | its configuration claims another digest of its layer |
//! | `nginx:1`, `:2` | Debian's nginx, port 8080 |
//! | `redis:1`, `:2` | Debian's redis-server, port 6379 |
//! | `python3:1`, `:2` | Debian's python3 with a small web server, port 8080 |
//!
//! Everything that speaks HTTP names its version in `X-Version`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::{env, fs};

use super::debian;
use super::layer::{Layer, LayerBuilder};
use super::{Image, Settings, digest};

/// Port of the sample service.
pub const TRIVIAL_PORT: u16 = 8080;
/// Port of the nginx images.
pub const NGINX_PORT: u16 = 8080;
/// Port of the redis images.
pub const REDIS_PORT: u16 = 6379;

/// Makes images; base layers are read once and shared by all versions.
#[derive(Debug, Default)]
pub struct Catalogue {
    trivial: Option<Arc<Layer>>,
    nginx: Option<Arc<Layer>>,
    redis: Option<Arc<Layer>>,
    python3: Option<Arc<Layer>>,
}

impl Catalogue {
    /// An empty catalogue: layers are made when they are first asked for.
    pub fn new() -> Self {
        Self::default()
    }

    /// The image of this name and tag.
    ///
    /// # Errors
    /// When the name is unknown, or a package it is made of is not installed.
    pub fn image(&mut self, name: &str, tag: &str) -> io::Result<Image> {
        match (name, tag) {
            ("trivial", "slow") => self.trivial_with("slow", &[("START_DELAY_MS", "2000")]),
            ("trivial", "exits") => self.trivial_with("exits", &[("EXIT_AT_ONCE", "3")]),
            ("trivial", "never-ready") => self.trivial_with("never-ready", &[("NEVER_READY", "1")]),
            ("trivial", "errors") => self.trivial_with("errors", &[("ERROR_SHARE", "0.5")]),
            ("trivial", version) => self.trivial_with(version, &[]),
            ("broken", "missing-command") => {
                let base = self.trivial_base()?;
                Ok(Image::new(vec![base], &Settings::run(["/no/such/program"]).port(TRIVIAL_PORT)))
            }
            ("broken", "lying") => {
                let lie = vec![digest(b"another layer")];
                let settings = Settings::run(["/hello"]).port(TRIVIAL_PORT);
                Ok(Image::with_diff_ids(vec![self.trivial_base()?], &settings, lie))
            }
            ("nginx", version) => self.nginx(version),
            ("redis", version) => self.redis(version),
            ("python3", version) => self.python3(version),
            _ => Err(io::Error::new(
                io::ErrorKind::NotFound,
                format!("the catalogue has no image {name}:{tag}"),
            )),
        }
    }

    /// The sample service that names this version, with more environment.
    ///
    /// # Errors
    /// When the sample cannot be compiled.
    pub fn trivial_with(&mut self, version: &str, env: &[(&str, &str)]) -> io::Result<Image> {
        let top = LayerBuilder::new().file(
            "/etc/hello-version",
            0o644,
            format!("{version}\n").as_bytes(),
        );
        let mut settings = Settings::run(["/hello"]).port(TRIVIAL_PORT);
        for (name, value) in env {
            settings = settings.env(name, value);
        }
        Ok(Image::new(vec![self.trivial_base()?, Arc::new(top.build())], &settings))
    }

    fn trivial_base(&mut self) -> io::Result<Arc<Layer>> {
        base(&mut self.trivial, || debian::skeleton().copy(trivial_program()?, "/hello"))
    }

    fn nginx(&mut self, version: &str) -> io::Result<Image> {
        let base = base(&mut self.nginx, || {
            let layer = debian::program(debian::skeleton(), "/usr/sbin/nginx")?
                .owned_directory("/var/lib/nginx", 0o755, 101)
                .directory("/var/log/nginx", 0o755);
            layer.copy("/etc/nginx/mime.types", "/etc/nginx/mime.types")
        })?;
        let top = LayerBuilder::new()
            .file("/etc/nginx/nginx.conf", 0o644, nginx_conf(version).as_bytes())
            .file("/srv/index.html", 0o644, format!("nginx {version}\n").as_bytes());
        let settings = Settings::run(["/usr/sbin/nginx", "-e", "stderr", "-g", "daemon off;"])
            .port(NGINX_PORT);
        Ok(Image::new(vec![base, Arc::new(top.build())], &settings))
    }

    fn redis(&mut self, version: &str) -> io::Result<Image> {
        let base = base(&mut self.redis, || {
            let layer = debian::program(debian::skeleton(), "/usr/bin/redis-server")?;
            Ok(debian::program(layer, "/usr/bin/redis-cli")?.directory("/data", 0o755))
        })?;
        let conf = format!(
            "bind 0.0.0.0\nport {REDIS_PORT}\nprotected-mode no\ndir /data\nsave \"\"\n\
             appendonly yes\nproc-title-template \"redis version {version}\"\n"
        );
        let top = LayerBuilder::new().file("/etc/redis.conf", 0o644, conf.as_bytes());
        let settings = Settings::run(["/usr/bin/redis-server", "/etc/redis.conf"]).port(REDIS_PORT);
        Ok(Image::new(vec![base, Arc::new(top.build())], &settings))
    }

    fn python3(&mut self, version: &str) -> io::Result<Image> {
        let base = base(&mut self.python3, || {
            let program = fs::canonicalize(debian::installed("/usr/bin/python3")?)?;
            let program = program.to_string_lossy().into_owned();
            let library = PathBuf::from(program.replace("/bin/", "/lib/"));
            let layer = debian::program(debian::skeleton(), &program)?;
            let layer = layer.symlink("/usr/bin/python3", &program);
            let layer = debian::libraries_of_folder(layer, &library.join("lib-dynload"))?;
            layer.copy_tree(&library, &library.to_string_lossy(), &|path| not_needed(path))
        })?;
        let top = LayerBuilder::new().file("/srv/server.py", 0o644, PYTHON_SERVER.as_bytes()).file(
            "/etc/hello-version",
            0o644,
            format!("{version}\n").as_bytes(),
        );
        let settings = Settings::run(["/usr/bin/python3", "/srv/server.py"]).port(TRIVIAL_PORT);
        Ok(Image::new(vec![base, Arc::new(top.build())], &settings))
    }
}

fn base(
    slot: &mut Option<Arc<Layer>>,
    make: impl FnOnce() -> io::Result<LayerBuilder>,
) -> io::Result<Arc<Layer>> {
    if let Some(layer) = slot {
        return Ok(Arc::clone(layer));
    }
    let layer = Arc::new(make()?.build());
    *slot = Some(Arc::clone(&layer));
    Ok(layer)
}

fn nginx_conf(version: &str) -> String {
    format!(
        "user nginx;\nworker_processes 1;\npid /run/nginx.pid;\nerror_log stderr;\n\
         events {{ worker_connections 1024; }}\n\
         http {{\n  include mime.types;\n  access_log off;\n\
         \x20 add_header X-Version {version} always;\n  client_max_body_size 0;\n\
         \x20 server {{\n    listen {NGINX_PORT};\n    root /srv;\n\
         \x20   location = /healthz {{ return 200 \"ok\\n\"; }}\n\
         \x20   location = /version {{ return 200 \"{version}\\n\"; }}\n\
         \x20   location = /upload {{\n      # Through itself: only a proxied request is read to its end first.\n\
         \x20     proxy_pass http://127.0.0.1:{NGINX_PORT}/taken;\n\
         \x20     proxy_hide_header X-Version;\n    }}\n\
         \x20   location = /taken {{ return 200 \"taken\\n\"; }}\n  }}\n}}\n"
    )
}

/// The parts of Python's library that no small server loads, and caches that differ by machine.
fn not_needed(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let parts = ["__pycache__", "test", "idlelib", "lib2to3", "ensurepip", "pydoc_data", "tkinter"];
    parts.contains(&&*name) || name.starts_with("config-") || name == "sitecustomize.py"
}

const PYTHON_SERVER: &str = r#"
import http.server, signal, sys

version = open("/etc/hello-version").read().strip()

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = ("python3 %s\n" % version).encode()
        self.send_response(200)
        self.send_header("X-Version", version)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass

signal.signal(signal.SIGTERM, lambda *arguments: sys.exit(0))
http.server.ThreadingHTTPServer(("0.0.0.0", 8080), Handler).serve_forever()
"#;

/// The sample service of `samples/hello`, compiled statically. Compiled once: the result is kept
/// by the digest of its source.
///
/// # Errors
/// When `rustc` is missing or refuses the source.
pub fn trivial_program() -> io::Result<PathBuf> {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
    let source = workspace.join("samples/hello/src");
    let mut text = Vec::new();
    let files = fs::read_dir(&source)?.map(|entry| entry.map(|entry| entry.path()));
    let mut files = files.collect::<io::Result<Vec<_>>>()?;
    files.sort();
    for file in files {
        text.extend(fs::read(file)?);
    }
    let folder = env::var_os("CARGO_TARGET_DIR").map_or(workspace.join("target"), PathBuf::from);
    let folder = folder.join("samples");
    let program = folder.join(format!("hello-{}", &digest(&text)["sha256:".len()..][..16]));
    if program.exists() {
        return Ok(program);
    }
    fs::create_dir_all(&folder)?;
    // Two test programs may get here at once: each builds its own, the last rename wins.
    let building = tempfile::Builder::new().prefix("building-").tempdir_in(&folder)?;
    let made = building.path().join("hello");
    let status = Command::new(env::var_os("RUSTC").unwrap_or("rustc".into()))
        .args(["--edition=2024", "--crate-name=hello", "-Copt-level=3", "-Cpanic=abort"])
        .args(["-Ctarget-feature=+crt-static", "-Cstrip=symbols"])
        // Paths must not reach the program, or its digest would differ by checkout.
        .arg(format!("--remap-path-prefix={}=.", workspace.display()))
        .arg("-o")
        .arg(&made)
        .arg(source.join("main.rs"))
        .status()?;
    if !status.success() {
        return Err(io::Error::other(format!("rustc could not build samples/hello: {status}")));
    }
    fs::rename(made, &program)?;
    Ok(program)
}
