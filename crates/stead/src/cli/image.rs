//! `stead image …`, and the taking in of what `deploy` is given as a file.

use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::Subcommand;
use stead_core::api::{Pruned, PullRequest, Pulled};
use stead_core::engine::ImageInfo;
use stead_core::error::{Code, UserError};

use super::Context;
use crate::client;
use crate::output::{Table, human};
use crate::source::Source;

#[derive(Debug, Subcommand)]
pub(super) enum ImageCommand {
    /// List images
    #[command(visible_alias = "list")]
    Ls,
    /// Fetch an image
    Pull {
        /// Its reference
        reference: String,
    },
    /// Take in an OCI archive or layout, or the output of `docker save`
    Import {
        /// The file or folder
        path: PathBuf,
        /// Call it so
        #[arg(long)]
        name: Option<String>,
    },
    /// Fetch and unpack an image before it is needed
    Warm {
        /// Its reference
        reference: String,
    },
    /// Remove images that nothing needs
    Prune,
}

pub(super) async fn run(context: &Context, command: ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Ls => {
            let images: Vec<ImageInfo> = context.client.get("/images").await?;
            context.output.show(&images, |images| images_table(images))
        }
        // A pulled image is unpacked: there is nothing more to warm.
        ImageCommand::Pull { reference } | ImageCommand::Warm { reference } => {
            let request = PullRequest { reference };
            let pulled: Pulled = context.client.post("/images/pull", &request).await?;
            context.output.show(&pulled, |pulled| format!("{} is here", pulled.digest))
        }
        ImageCommand::Import { path, name } => {
            let text = path.to_string_lossy();
            let source = match Source::find(&text, Path::new(""))? {
                Source::Reference(_) => {
                    return Err(UserError::new(
                        Code::NotAnImage,
                        format!("{text} does not exist"),
                        "`stead image pull` fetches from a registry",
                    )
                    .into());
                }
                source => source,
            };
            let image = import(context, &source, name.as_deref()).await?;
            context.output.show(&image, |image| {
                format!("{}  {}", image.digest, human::plain(&image.names.join(", ")))
            })
        }
        ImageCommand::Prune => {
            let pruned: Pruned = context.client.post("/images/prune", &()).await?;
            context.output.show(&pruned, |pruned| format!("freed {}", human::bytes(pruned.freed)))
        }
    }
}

/// Sends an archive or layout to the platform. Nothing is sent for a reference.
pub(super) async fn import(
    context: &Context,
    source: &Source,
    name: Option<&str>,
) -> Result<ImageInfo> {
    let Some(body) = source.archive() else {
        unreachable!("only files and folders are imported");
    };
    let query = match name {
        Some(name) => format!("?name={}", client::escaped(name)),
        None => String::new(),
    };
    context.client.upload(&format!("/images/import{query}"), body).await
}

fn images_table(images: &[ImageInfo]) -> String {
    let now = human::now();
    let mut table = Table::new(["IMAGE", "DIGEST", "SIZE", "SHARED", "CAME"], "no images");
    for image in images {
        let mut names = image.names.iter();
        table.row([
            names.next().map_or_else(|| "-".to_owned(), Clone::clone),
            image.digest.short().to_owned(),
            human::bytes(image.size),
            human::bytes(image.shared),
            human::ago(now, image.last_used),
        ]);
        // Further names of the same image stand below it.
        for name in names {
            table.row([
                name.clone(),
                image.digest.short().to_owned(),
                "".into(),
                "".into(),
                "".into(),
            ]);
        }
    }
    table.finish()
}
