//! Commands about stead itself: versions, completion scripts, manual pages.

use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use serde::Serialize;
use stead_core::api::VersionView;
use stead_core::error::{Code, UserError};

use super::{Cli, Context};

#[derive(Debug, Args)]
pub(super) struct Completion {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

#[derive(Debug, Args)]
pub(super) struct Man {
    /// The folder; it is made if there is none
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

pub(super) fn completion(args: &Completion) -> Result<()> {
    // Through a buffer: the generator panics when its writer fails.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "stead", &mut script);
    io::Write::write_all(&mut io::stdout(), &script)?;
    Ok(())
}

pub(super) fn man(args: &Man) -> Result<()> {
    let folder = args.folder.display();
    fs::create_dir_all(&args.folder).with_context(|| format!("cannot make {folder}"))?;
    clap_mangen::generate_to(Cli::command(), &args.folder)
        .with_context(|| format!("cannot write the manual pages into {folder}"))
}

#[derive(Serialize)]
struct Versions {
    client: &'static str,
    platform: Option<VersionView>,
}

pub(super) async fn version(context: &Context) -> Result<()> {
    let platform = match context.client.get::<VersionView>("/version").await {
        Ok(view) => Some(view),
        Err(error) => match error.downcast_ref::<UserError>() {
            // The client's own version is worth printing without a platform.
            Some(error) if error.code == Code::PlatformDown => None,
            _ => return Err(error),
        },
    };
    let versions = Versions { client: env!("CARGO_PKG_VERSION"), platform };
    context.output.show(&versions, |versions| {
        let platform = match &versions.platform {
            None => format!("platform  not running at {}", context.client.endpoint()),
            Some(view) => format!(
                "serve     {}\ngateway   {}",
                view.version,
                if view.gateways.is_empty() { "-".into() } else { view.gateways.join(", ") }
            ),
        };
        format!("client    {}\n{platform}", versions.client)
    })
}
