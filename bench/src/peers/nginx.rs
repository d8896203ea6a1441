//! nginx in front of docker, as one puts it there: a reload moves it to another container.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Context;

use super::quiet;

/// A running nginx.
#[derive(Debug)]
pub(crate) struct Nginx {
    process: Child,
    folder: PathBuf,
    listen: SocketAddr,
}

impl Nginx {
    /// Starts nginx as a proxy from `listen` to `upstream`.
    pub(crate) fn start(
        folder: &Path,
        listen: SocketAddr,
        upstream: SocketAddr,
    ) -> anyhow::Result<Self> {
        let folder = folder.join("nginx");
        fs::create_dir_all(&folder)?;
        write_config(&folder, listen, upstream)?;
        Self::run(folder, listen)
    }

    /// Starts nginx with the files of a folder.
    pub(crate) fn files(folder: &Path, listen: SocketAddr, root: &Path) -> anyhow::Result<Self> {
        let folder = folder.join("nginx-files");
        fs::create_dir_all(&folder)?;
        let root = root.display();
        let text = format!(
            "daemon off;\nuser root;\nworker_processes 2;\npid nginx.pid;\n\
             error_log stderr crit;\nevents {{ worker_connections 4096; }}\n\
             http {{\n  access_log off;\n  sendfile on;\n  tcp_nopush on;\n\
             \x20 keepalive_requests 1000000;\n  open_file_cache max=1000;\n\
             \x20 types {{ text/html html; application/octet-stream bin; }}\n\
             \x20 server {{ listen {listen}; root {root}; }}\n}}\n"
        );
        fs::write(folder.join("nginx.conf"), text).context("nginx.conf")?;
        Self::run(folder, listen)
    }

    fn run(folder: PathBuf, listen: SocketAddr) -> anyhow::Result<Self> {
        let process = command(&folder)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("nginx cannot be started")?;
        Ok(Self { process, folder, listen })
    }

    /// Moves it to another upstream.
    pub(crate) fn reload(&self, upstream: SocketAddr) -> anyhow::Result<()> {
        write_config(&self.folder, self.listen, upstream)?;
        quiet(command(&self.folder).args(["-s", "reload"]))
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = quiet(command(&self.folder).args(["-s", "stop"]));
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn command(folder: &Path) -> Command {
    let mut command = Command::new("nginx");
    command.arg("-p").arg(folder).args(["-e", "stderr", "-c", "nginx.conf"]);
    command
}

fn write_config(folder: &Path, listen: SocketAddr, upstream: SocketAddr) -> anyhow::Result<()> {
    let text = format!(
        "daemon off;\nuser root;\nworker_processes 2;\npid nginx.pid;\nerror_log stderr crit;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n  access_log off;\n  upstream app {{ server {upstream}; keepalive 32; }}\n\
         \x20 server {{\n    listen {listen};\n    location / {{\n\
         \x20     proxy_pass http://app;\n      proxy_http_version 1.1;\n\
         \x20     proxy_set_header Connection \"\";\n    }}\n  }}\n}}\n"
    );
    fs::write(folder.join("nginx.conf"), text).context("nginx.conf")
}
