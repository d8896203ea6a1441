//! What a platform is started with. The supervisor hands all of it to `serve` and to the
//! gateway as flags, so that a look at the process list tells everything.

use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use stead_core::error::{Code, UserError};

use super::layout::{Layout, SETTINGS, write_whole};
use super::process;

/// Where the API listens when nothing else is said.
const API: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 7070);
/// Where the gateway listens when nothing else is said.
const HTTP: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 8080);

/// Everything a platform is started with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) layout: Layout,
    /// The API over TCP.
    pub(crate) listen: Listen,
    /// The gateway.
    pub(crate) http: SocketAddr,
    /// The gateway with TLS.
    pub(crate) tls: Option<Tls>,
    /// The gateway's metrics.
    pub(crate) metrics: Option<SocketAddr>,
    /// Registries of the operator's own.
    pub(crate) registries: Registries,
    /// Where the engine finds credentials of registries.
    pub(crate) docker_config: Option<PathBuf>,
    /// What images may take of the disk.
    #[serde(default)]
    pub(crate) image_quota: Quota,
}

/// What images may take of the disk, in bytes; `None` for as much as there is. Written as a
/// size or `none`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Quota(pub(crate) Option<u64>);

/// Units of sizes, as people write them: powers of 1000, and of 1024.
const SIZES: [(&str, u64); 10] = [
    ("B", 1),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("", 1),
];

impl FromStr for Quota {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let (number, unit) =
            text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
        let unit = unit.strip_suffix('B').filter(|unit| unit.ends_with('i')).unwrap_or(unit);
        let factor = SIZES.iter().find(|(name, _)| *name == unit).map(|(_, factor)| factor);
        let size = number.parse().ok().zip(factor).and_then(|(n, f): (u64, _)| n.checked_mul(*f));
        let bytes = size.filter(|bytes| *bytes > 0);
        bytes
            .map(|bytes| Self(Some(bytes)))
            .ok_or_else(|| "expected a size such as 500MB, 20GB or 8GiB, or none".to_owned())
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => bytes.fmt(f),
            None => f.write_str("none"),
        }
    }
}

impl From<Quota> for String {
    fn from(quota: Quota) -> Self {
        quota.to_string()
    }
}

impl TryFrom<String> for Quota {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Where the API listens besides its socket. Written as an address or `none`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub(crate) struct Listen(pub(crate) Option<SocketAddr>);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "none" => Ok(Self(None)),
            addr => addr.parse().map(|addr| Self(Some(addr))).map_err(|_| {
                "expected an address with its port, such as 127.0.0.1:7070, or none".to_owned()
            }),
        }
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(addr) => addr.fmt(f),
            None => f.write_str("none"),
        }
    }
}

impl From<Listen> for String {
    fn from(listen: Listen) -> Self {
        listen.to_string()
    }
}

impl TryFrom<String> for Listen {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

/// Registries that may be on a private network, by host and port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Registries {
    /// Talked to without TLS.
    pub(crate) insecure: Vec<String>,
    /// Talked to with TLS.
    pub(crate) private: Vec<String>,
}

/// TLS at the gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Tls {
    pub(crate) addr: SocketAddr,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// What a person said of it; the rest is as it was, or as it is by default.
#[derive(Debug, Clone, Default)]
pub(crate) struct Asked {
    pub(crate) listen: Option<Listen>,
    pub(crate) http: Option<SocketAddr>,
    pub(crate) tls: Option<Tls>,
    pub(crate) metrics: Option<SocketAddr>,
    pub(crate) registries: Registries,
    pub(crate) docker_config: Option<PathBuf>,
    pub(crate) image_quota: Option<Quota>,
}

impl Settings {
    /// What was asked for; for the rest what a running platform has, else the defaults.
    /// A port 0 becomes the one that a running platform has, else a free one.
    pub(crate) fn new(layout: Layout, asked: Asked) -> io::Result<Self> {
        let before = Self::read(&layout);
        let b = before.as_ref();
        // A port is kept only from what still listens there.
        let alive = b.filter(|_| process::any_running(&layout));
        Ok(Self {
            listen: match asked.listen.or(b.map(|s| s.listen)).unwrap_or(Listen(Some(API))) {
                Listen(Some(addr)) => Listen(Some(chosen(addr, alive.and_then(|s| s.listen.0))?)),
                none => none,
            },
            http: chosen(asked.http.or(b.map(|s| s.http)).unwrap_or(HTTP), alive.map(|s| s.http))?,
            tls: asked.tls.or_else(|| b?.tls.clone()),
            metrics: match asked.metrics.or_else(|| b?.metrics) {
                Some(addr) => Some(chosen(addr, alive.and_then(|s| s.metrics))?),
                None => None,
            },
            registries: match b {
                Some(before) if asked.registries == Registries::default() => {
                    before.registries.clone()
                }
                _ => asked.registries,
            },
            docker_config: asked.docker_config.or_else(|| b?.docker_config.clone()),
            image_quota: asked.image_quota.or_else(|| Some(b?.image_quota)).unwrap_or_default(),
            layout,
        })
    }

    /// What the platform in this run folder was last started with.
    fn read(layout: &Layout) -> Option<Self> {
        let settings: Self = serde_json::from_slice(&fs::read(layout.settings()).ok()?).ok()?;
        (settings.layout == *layout).then_some(settings)
    }

    /// The folders of the platform whose run folder this is, as it was last started.
    pub(crate) fn layout_of(run_dir: &Path) -> Option<Layout> {
        let settings: Self =
            serde_json::from_slice(&fs::read(run_dir.join(SETTINGS)).ok()?).ok()?;
        (settings.layout.run_dir == run_dir).then_some(settings.layout)
    }

    /// Notes them for the next command.
    pub(crate) fn write(&self) -> io::Result<()> {
        write_whole(&self.layout.settings(), &serde_json::to_vec_pretty(self)?)
    }

    /// The flags of `stead serve`.
    pub(super) fn serve_flags(&self) -> Vec<OsString> {
        let mut flags = self.folder_flags();
        push(&mut flags, "--listen", self.listen);
        push(&mut flags, "--http", self.http);
        for registry in &self.registries.insecure {
            push(&mut flags, "--insecure-registry", registry);
        }
        for registry in &self.registries.private {
            push(&mut flags, "--private-registry", registry);
        }
        if let Some(config) = &self.docker_config {
            flags.extend(["--docker-config".into(), config.into()]);
        }
        if self.image_quota.0.is_some() {
            push(&mut flags, "--image-quota", self.image_quota);
        }
        flags
    }

    /// The flags of `stead gateway`.
    pub(super) fn gateway_flags(&self) -> Vec<OsString> {
        let mut flags = self.folder_flags();
        push(&mut flags, "--http", self.http);
        if let Some(tls) = &self.tls {
            push(&mut flags, "--https", tls.addr);
            flags.extend(["--tls-cert".into(), (&tls.cert).into()]);
            flags.extend(["--tls-key".into(), (&tls.key).into()]);
        }
        if let Some(metrics) = self.metrics {
            push(&mut flags, "--metrics", metrics);
        }
        flags
    }

    /// All of them, as `stead supervise` takes them.
    pub(super) fn all_flags(&self) -> Vec<OsString> {
        let mut flags = self.serve_flags();
        // Folders and --http are in already.
        flags.extend(self.gateway_flags().into_iter().skip(6));
        flags
    }

    fn folder_flags(&self) -> Vec<OsString> {
        let Layout { data_dir, run_dir } = &self.layout;
        vec!["--data-dir".into(), data_dir.into(), "--run-dir".into(), run_dir.into()]
    }
}

impl Tls {
    /// The three flags belong together.
    pub(crate) fn given(
        addr: Option<SocketAddr>,
        cert: Option<&Path>,
        key: Option<&Path>,
    ) -> Result<Option<Self>, UserError> {
        match (addr, cert, key) {
            (None, None, None) => Ok(None),
            (Some(addr), Some(cert), Some(key)) => {
                let whole =
                    |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
                Ok(Some(Self { addr, cert: whole(cert), key: whole(key) }))
            }
            _ => Err(UserError::new(
                Code::BadRequest,
                "TLS at the gateway needs an address, a certificate and its key",
                "give --https, --tls-cert and --tls-key together",
            )),
        }
    }
}

fn push(flags: &mut Vec<OsString>, name: &str, value: impl ToString) {
    flags.extend([name.into(), value.to_string().into()]);
}

/// The address with a port where 0 asked for any: the one it had before, else a free one.
fn chosen(addr: SocketAddr, before: Option<SocketAddr>) -> io::Result<SocketAddr> {
    match before.filter(|before| before.ip() == addr.ip()) {
        _ if addr.port() != 0 => Ok(addr),
        Some(before) => Ok(before),
        None => TcpListener::bind(addr)?.local_addr(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_up_keeps_what_it_is_not_told() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(Some(dir.path()), Some(&dir.path().join("run"))).unwrap();
        layout.make().unwrap();
        let asked = Asked {
            http: Some("127.0.0.1:0".parse().unwrap()),
            registries: Registries { insecure: vec!["box:5000".into()], private: Vec::new() },
            ..Asked::default()
        };
        let first = Settings::new(layout.clone(), asked).unwrap();
        assert_ne!(first.http.port(), 0);
        assert_eq!(first.listen, Listen(Some(API)));
        first.write().unwrap();
        let none: Listen = "none".parse().unwrap();
        let http = Some("127.0.0.1:0".parse().unwrap());
        let asked = Asked { listen: Some(none), http, ..Asked::default() };
        let second = Settings::new(layout.clone(), asked.clone()).unwrap();
        assert_ne!(second.http, first.http, "nothing runs: the port is free for others");
        process::note(&layout, process::Kind::Gateway, std::process::id().cast_signed()).unwrap();
        let third = Settings::new(layout, asked).unwrap();
        assert_eq!(third, Settings { listen: none, ..first });
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let read = |text: &str| text.parse::<Quota>().map(|quota| quota.0);
        for (text, bytes) in [
            ("64MB", 64_000_000),
            ("1GB", 1_000_000_000),
            ("8GiB", 8 << 30),
            ("8Gi", 8 << 30),
            ("512", 512),
            ("3B", 3),
        ] {
            assert_eq!(read(text), Ok(Some(bytes)), "{text}");
            let written = Quota(Some(bytes)).to_string();
            assert_eq!(read(&written), Ok(Some(bytes)));
        }
        assert_eq!(read("none"), Ok(None));
        for text in ["", "GB", "0GB", "1.5GB", "1gb", "-1GB", "99999999999TB", "1GBB", "5iB"] {
            assert!(read(text).is_err(), "{text}");
        }
    }

    #[test]
    fn tls_is_whole_or_not_there() {
        let (addr, path) = ("127.0.0.1:8443".parse().unwrap(), Path::new("/x"));
        assert_eq!(Tls::given(None, None, None), Ok(None));
        assert!(Tls::given(Some(addr), Some(path), Some(path)).unwrap().is_some());
        assert_eq!(Tls::given(Some(addr), None, Some(path)).unwrap_err().code, Code::BadRequest);
    }
}
