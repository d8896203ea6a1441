//! Commands that run the platform: `up`, `down`, `doctor`, and the roles that `up` starts.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;

use crate::doctor;
use crate::output::Output;
use crate::platform::layout::Layout;
use crate::platform::settings::{Asked, Listen, Quota, Registries, Settings, Tls};
use crate::platform::{down, gateway, serve, up};

#[derive(Debug, Args)]
pub(super) struct Folders {
    /// What survives a reboot [default: /var/lib/stead]
    #[arg(long, value_name = "D")]
    data_dir: Option<PathBuf>,
    /// Sockets and locks [default: /run/stead, or one of its own for another --data-dir]
    #[arg(long, value_name = "R")]
    run_dir: Option<PathBuf>,
}

impl Folders {
    fn layout(&self) -> Result<Layout> {
        Ok(Layout::new(self.data_dir.as_deref(), self.run_dir.as_deref())?)
    }
}

#[derive(Debug, Args)]
pub(super) struct Up {
    #[command(flatten)]
    folders: Folders,
    /// Address of the API, or none for its socket alone [default: 127.0.0.1:7070]
    #[arg(long, value_name = "ADDR")]
    listen: Option<Listen>,
    /// Address of the gateway [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDR")]
    http: Option<SocketAddr>,
    /// Address of the gateway with TLS
    #[arg(long, value_name = "ADDR")]
    https: Option<SocketAddr>,
    /// Certificate chain for --https, PEM
    #[arg(long, value_name = "FILE")]
    tls_cert: Option<PathBuf>,
    /// Key for --https, PEM
    #[arg(long, value_name = "FILE")]
    tls_key: Option<PathBuf>,
    /// Address of the gateway's Prometheus metrics
    #[arg(long, value_name = "ADDR")]
    metrics: Option<SocketAddr>,
    /// Talk to this registry without TLS; may be given more than once
    #[arg(long, value_name = "HOST")]
    insecure_registry: Vec<String>,
    /// This registry may be on a private network, with TLS; may be given more than once
    #[arg(long, value_name = "HOST")]
    private_registry: Vec<String>,
    /// Credentials of registries, as `docker login` writes them [default: ~/.docker/config.json]
    #[arg(long, value_name = "FILE")]
    docker_config: Option<PathBuf>,
    /// What images may take of the disk, such as 20GB, or none: unneeded ones go for new ones
    #[arg(long, value_name = "SIZE")]
    image_quota: Option<Quota>,
    /// Return once the platform answers
    #[arg(short, long)]
    detach: bool,
}

impl Up {
    fn settings(self) -> Result<(Settings, bool)> {
        let tls = Tls::given(self.https, self.tls_cert.as_deref(), self.tls_key.as_deref())?;
        let asked = Asked {
            listen: self.listen,
            http: self.http,
            tls,
            metrics: self.metrics,
            registries: Registries {
                insecure: self.insecure_registry,
                private: self.private_registry,
            },
            docker_config: self.docker_config,
            image_quota: self.image_quota,
        };
        Ok((Settings::new(self.folders.layout()?, asked)?, self.detach))
    }
}

pub(super) fn up(args: Up) -> Result<()> {
    let (settings, detach) = args.settings()?;
    if detach { up::detached(settings) } else { up::attached(settings) }
}

pub(super) fn supervise(args: Up) -> Result<()> {
    up::background(args.settings()?.0)
}

#[derive(Debug, Args)]
pub(super) struct Down {
    #[command(flatten)]
    folders: Folders,
    /// Remove every Container and network as well; data stays
    #[arg(long)]
    all: bool,
}

pub(super) fn down(args: &Down) -> Result<()> {
    let layout = args.folders.layout()?;
    // Before it stops: what it was started with goes with it.
    let settings = Settings::new(layout.clone(), Asked::default())?;
    down::stop(&layout)?;
    if args.all {
        down::destroy(&settings)?;
        println!("stead is down, and nothing of it runs");
    } else {
        println!("stead is down; containers go on (`stead down --all` removes them)");
    }
    Ok(())
}

#[derive(Debug, Args)]
pub(super) struct Doctor {
    #[command(flatten)]
    folders: Folders,
}

pub(super) fn doctor(args: &Doctor, output: Output) -> Result<ExitCode> {
    doctor::run(&args.folders.layout()?, output)
}

#[derive(Debug, Args)]
pub(super) struct Serve {
    #[arg(long)]
    data_dir: PathBuf,
    #[arg(long)]
    run_dir: PathBuf,
    #[arg(long)]
    listen: Listen,
    #[arg(long)]
    http: SocketAddr,
    #[arg(long)]
    insecure_registry: Vec<String>,
    #[arg(long)]
    private_registry: Vec<String>,
    #[arg(long)]
    docker_config: Option<PathBuf>,
    #[arg(long)]
    image_quota: Option<Quota>,
    /// Remove everything that runs, and end
    #[arg(long)]
    destroy: bool,
}

pub(super) fn serve(args: Serve) -> Result<()> {
    let layout = Layout { data_dir: args.data_dir, run_dir: args.run_dir };
    let config = serve::Config {
        layout,
        listen: args.listen.0,
        http: args.http,
        registries: Registries { insecure: args.insecure_registry, private: args.private_registry },
        docker_config: args.docker_config,
        image_quota: args.image_quota.unwrap_or_default().0,
    };
    if args.destroy { serve::destroy(config) } else { serve::run(config) }
}

#[derive(Debug, Args)]
pub(super) struct Gateway {
    #[arg(long)]
    data_dir: PathBuf,
    #[arg(long)]
    run_dir: PathBuf,
    #[arg(long)]
    http: SocketAddr,
    #[arg(long)]
    https: Option<SocketAddr>,
    #[arg(long)]
    tls_cert: Option<PathBuf>,
    #[arg(long)]
    tls_key: Option<PathBuf>,
    #[arg(long)]
    metrics: Option<SocketAddr>,
}

pub(super) fn gateway(args: Gateway) -> Result<()> {
    let tls = Tls::given(args.https, args.tls_cert.as_deref(), args.tls_key.as_deref())?;
    let layout = Layout { data_dir: args.data_dir, run_dir: args.run_dir };
    let addresses = gateway::Addresses { http: args.http, tls, metrics: args.metrics };
    gateway::run(&layout, addresses)
}
