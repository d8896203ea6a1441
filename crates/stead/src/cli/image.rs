//! `stead image …`, and the taking in of what `deploy` is given as a file.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use futures_util::future::join_all;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use stead_core::api::{PruneRequest, Pruned, PullRequest, Pulled};
use stead_core::engine::{ImageInfo, PullSeen};
use stead_core::error::{Code, UserError};
use stead_core::manifest::Span;
use stead_engine_node::image::Reference;

use super::save::Target;
use super::{Context, base};
use crate::client;
use crate::output::{Format, Output, Table, human};
use crate::source::Source;

/// Between two looks at how far pulls are.
const LOOK: Duration = Duration::from_millis(200);

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
    /// Write an image to a file, or with a slash at the end to a folder as an OCI layout
    Save {
        /// Its reference or digest
        image: String,
        /// The file or folder
        path: PathBuf,
        /// Form of the file
        #[arg(long, value_enum, default_value_t)]
        format: Form,
    },
    /// Fetch and unpack images before they are needed
    Warm {
        /// Their references
        #[arg(required = true)]
        references: Vec<String>,
    },
    /// Remove an image with all its names, unless an App needs it
    #[command(visible_alias = "remove")]
    Rm {
        /// Its reference or digest
        image: String,
    },
    /// What packages run on: list bases, make or take one
    Base(base::Base),
    /// Remove images that nothing needs
    Prune {
        /// Only those that were not used for so long, such as 72h
        #[arg(long, value_name = "TIME")]
        older_than: Option<Span>,
    },
}

/// The form of an archive.
#[derive(Debug, Clone, Copy, Default, ValueEnum)]
pub(super) enum Form {
    /// An OCI layout
    #[default]
    Oci,
    /// What `docker save` writes
    Docker,
}

impl Form {
    fn word(self) -> &'static str {
        match self {
            Self::Oci => "oci",
            Self::Docker => "docker",
        }
    }
}

pub(super) async fn run(context: &Context, command: ImageCommand) -> Result<()> {
    match command {
        ImageCommand::Ls => {
            let images: Vec<ImageInfo> = context.client.get("/images").await?;
            context.output.show(&images, |images| images_table(images))
        }
        // A pulled image is unpacked: there is nothing more to warm.
        ImageCommand::Pull { reference } => {
            let pulled = pull(context, reference).await?;
            context.output.show(&pulled, |pulled| format!("{} is here", pulled.digest))
        }
        ImageCommand::Warm { references } => {
            let pulled = warm(context, references).await?;
            let lines = |all: &Vec<Pulled>| {
                let lines = all.iter().map(|pulled| format!("{} is here", pulled.digest));
                lines.collect::<Vec<_>>().join("\n")
            };
            context.output.show(&pulled, lines)
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
                Source::Package(..) => {
                    return Err(UserError::new(
                        Code::NotAnImage,
                        format!("{text} is a package, not an image"),
                        format!("`stead deploy {text}` makes an image of it and runs that"),
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
        ImageCommand::Save { image, path, format } => {
            let target = Target::of(path.clone())?;
            if matches!((format, &target), (Form::Docker, Target::Folder(_))) {
                return Err(UserError::new(
                    Code::BadRequest,
                    "a folder takes an OCI layout, not what `docker save` writes",
                    "leave out --format, or name a file",
                )
                .into());
            }
            let found = find(context, &image).await?;
            let (digest, format) = (client::escaped(found.digest.as_str()), format.word());
            let path_of = format!("/images/{digest}/archive?format={format}");
            let body = context.client.download(&path_of).await?;
            let bar = bytes_bar(context.output, found.size);
            let written = target.write(body, &bar).await;
            bar.finish_and_clear();
            written?;
            context
                .output
                .show(&found, |found| format!("{} is in {}", found.digest.short(), path.display()))
        }
        ImageCommand::Rm { image } => {
            let found = find(context, &image).await?;
            let path = format!("/images/{}", client::escaped(found.digest.as_str()));
            let pruned: Pruned = context.client.delete(&path).await?;
            context.output.show(&pruned, |pruned| {
                let names = human::plain(&found.names.join(", "));
                let freed = human::bytes(pruned.freed);
                format!("removed {} {names}: freed {freed}", found.digest.short())
            })
        }
        ImageCommand::Base(args) => base::run(context, args).await,
        ImageCommand::Prune { older_than } => {
            let request = PruneRequest { older_than };
            let pruned: Pruned = context.client.post("/images/prune", &request).await?;
            context.output.show(&pruned, |pruned| format!("freed {}", human::bytes(pruned.freed)))
        }
    }
}

async fn pull(context: &Context, reference: String) -> Result<Pulled> {
    context.client.post("/images/pull", &PullRequest { reference }).await
}

/// Fetches images side by side, and shows how far each is. All are tried before the first that
/// failed is the error.
async fn warm(context: &Context, references: Vec<String>) -> Result<Vec<Pulled>> {
    let bars = match context.output.format == Format::Table && io::stderr().is_terminal() {
        true => Some(MultiProgress::new()),
        false => None,
    };
    let all = join_all(references.iter().map(|reference| pull(context, reference.clone())));
    let ended = tokio::select! {
        ended = all => ended,
        never = watch(context, bars.as_ref(), &references) => match never {},
    };
    if let Some(bars) = bars {
        // A failure to draw is no failure.
        let _ = bars.clear();
    }
    let mut pulled = Vec::new();
    let mut failed = None;
    for (reference, end) in references.iter().zip(ended) {
        match (end, &failed) {
            (Ok(one), _) => pulled.push(one),
            (Err(error), None) => failed = Some(error),
            (Err(error), Some(_)) => eprintln!("{}: {error:#}", human::plain(reference)),
        }
    }
    match failed {
        None => Ok(pulled),
        Some(error) => Err(error),
    }
}

/// Draws how far the pulls of these references are, until dropped.
async fn watch(
    context: &Context,
    bars: Option<&MultiProgress>,
    references: &[String],
) -> std::convert::Infallible {
    let Some(bars) = bars else { return std::future::pending().await };
    let mut drawn: BTreeMap<String, ProgressBar> = BTreeMap::new();
    loop {
        // Whoever cannot say how far it is may still be fetching.
        let pulls: Vec<PullSeen> = context.client.get("/images/pulls").await.unwrap_or_default();
        for pull in pulls.iter().filter(|pull| references.contains(&pull.reference)) {
            let bar = drawn.entry(pull.reference.clone()).or_insert_with(|| {
                let bar = bars.add(ProgressBar::new(0));
                bar.with_style(style("  {msg} [{bar:30}] {bytes}/{total_bytes}"))
            });
            bar.set_length(pull.progress.total.max(pull.progress.bytes));
            bar.set_position(pull.progress.bytes);
            bar.set_message(human::plain(&pull.reference));
        }
        for (_, bar) in drawn.iter().filter(|(r, _)| pulls.iter().all(|p| p.reference != **r)) {
            bar.finish();
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// A bar for bytes on their way, where somebody looks.
fn bytes_bar(output: Output, about: u64) -> ProgressBar {
    if output.format != Format::Table || !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    ProgressBar::new(about).with_style(style("[{bar:30}] {bytes}/{total_bytes} {bytes_per_sec}"))
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the templates are constants")
}

/// The image that a person names: by reference, by digest, or by the digits that a list shows.
async fn find(context: &Context, text: &str) -> Result<ImageInfo> {
    let mut images: Vec<ImageInfo> = context.client.get("/images").await?;
    images.retain(|image| is_called(image, text));
    match images.pop() {
        Some(image) if images.is_empty() => Ok(image),
        Some(_) => Err(UserError::new(
            Code::BadRequest,
            format!("{text} could be several images"),
            "give the whole digest",
        )
        .into()),
        None => Err(UserError::new(
            Code::NotFound,
            format!("image {text} is not on the platform's machine"),
            "`stead image ls` lists those that are; `stead image pull` fetches one",
        )
        .into()),
    }
}

fn is_called(image: &ImageInfo, text: &str) -> bool {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let is_digits = digits.len() >= 6 && image.digest.hex().starts_with(digits);
    let reference = || text.parse::<Reference>().ok().map(|reference| reference.to_string());
    is_digits || reference().is_some_and(|name| image.names.contains(&name))
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
