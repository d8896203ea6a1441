//! Commands that change an App: rollouts, size and life.

use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use clap::{Args, Subcommand};
use http::Method;
use stead_core::api::{Accepted, RestartRequest, RollbackRequest, ScaleRequest, SteerRequest};
use stead_core::error::{Code, UserError};
use stead_core::ids::{Ordinal, ReleaseNo};
use stead_core::name::AppName;

use super::follow::{self, Aim, Wait};
use super::{Context, look::OfApp, story};

#[derive(Debug, Subcommand)]
pub(super) enum RolloutCommand {
    /// Tell the story of a Rollout: what is planned, where each Instance is, what was decided
    Status(story::Status),
    /// Hold it where it is
    Pause(OfApp),
    /// Go on after a pause
    Resume(OfApp),
    /// Begin the next batch without waiting; end the watch of one that is through
    Promote(Promote),
    /// End it and go back to what was before
    Abort(OfApp),
}

#[derive(Debug, Args)]
pub(super) struct Promote {
    /// The App
    app: AppName,
    /// Everything that is left at once
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    wait: Wait,
}

pub(super) async fn rollout(context: &Context, command: RolloutCommand) -> Result<()> {
    let (app, verb, said) = match command {
        RolloutCommand::Status(args) => return story::status(context, &args).await,
        RolloutCommand::Promote(args) => return promote(context, args).await,
        RolloutCommand::Pause(OfApp { app }) => {
            (app, "pause", "paused; what has begun is finished, no other instance changes")
        }
        RolloutCommand::Resume(OfApp { app }) => (app, "resume", "the rollout goes on"),
        RolloutCommand::Abort(OfApp { app }) => (app, "abort", "given up; it goes back"),
    };
    let path = format!("{}/rollouts/current/{verb}", context.path(&app));
    let accepted: Accepted = context.client.post(&path, &()).await?;
    committed(context, &accepted, said)
}

async fn promote(context: &Context, args: Promote) -> Result<()> {
    let path = format!("{}/rollouts/current/promote", context.path(&args.app));
    let request = SteerRequest { all: args.all };
    let accepted: Accepted = context.client.post(&path, &request).await?;
    follow::rollout(context, accepted, &args.wait, Aim::Forward).await
}

#[derive(Debug, Args)]
pub(super) struct Rollback {
    /// The App
    app: AppName,
    /// Number of the Release [default: the one before]
    release: Option<ReleaseNo>,
    /// Why, for the record
    #[arg(short, long)]
    message: Option<String>,
    #[command(flatten)]
    wait: Wait,
}

pub(super) async fn rollback(context: &Context, args: Rollback) -> Result<()> {
    let request = RollbackRequest { release: args.release, message: args.message };
    let path = format!("{}/rollback", context.path(&args.app));
    let accepted: Accepted = context.client.post(&path, &request).await?;
    follow::rollout(context, accepted, &args.wait, Aim::Back).await
}

#[derive(Debug, Args)]
pub(super) struct Restart {
    /// The App
    app: AppName,
    /// One Instance [default: all, one after the other]
    #[arg(short, long, value_name = "I")]
    instance: Option<Ordinal>,
    /// Why, for the record
    #[arg(short, long)]
    message: Option<String>,
    #[command(flatten)]
    wait: Wait,
}

pub(super) async fn restart(context: &Context, args: Restart) -> Result<()> {
    let request = RestartRequest { instance: args.instance, message: args.message };
    let path = format!("{}/restart", context.path(&args.app));
    let accepted: Accepted = context.client.post(&path, &request).await?;
    follow::rollout(context, accepted, &args.wait, Aim::Forward).await
}

#[derive(Debug, Args)]
pub(super) struct Scale {
    /// The App
    app: AppName,
    /// How many Instances [default with --remove: those that are left]
    #[arg(value_parser = clap::value_parser!(u32).range(0..=1000), required_unless_present = "remove")]
    instances: Option<u32>,
    /// Instances that go, such as 3,5; the others keep their numbers
    #[arg(long, value_name = "I,…", value_delimiter = ',')]
    remove: Vec<Ordinal>,
}

pub(super) async fn scale(context: &Context, args: &Scale) -> Result<()> {
    let path = format!("{}/scale", context.path(&args.app));
    let remove = args.remove.iter().copied().collect();
    let request = ScaleRequest { instances: args.instances, remove };
    let accepted: Accepted = context.client.post(&path, &request).await?;
    let mut said =
        args.instances.map(|count| format!("{count} instances")).into_iter().collect::<Vec<_>>();
    if !args.remove.is_empty() {
        let names: Vec<String> = args.remove.iter().map(ToString::to_string).collect();
        said.push(format!("without {}", names.join(", ")));
    }
    committed(context, &accepted, &said.join(", "))
}

pub(super) async fn stop(context: &Context, app: &AppName) -> Result<()> {
    let path = format!("{}/stop", context.path(app));
    let accepted: Accepted = context.client.post(&path, &()).await?;
    committed(context, &accepted, "stop")
}

pub(super) async fn start(context: &Context, app: &AppName) -> Result<()> {
    let path = format!("{}/start", context.path(app));
    let accepted: Accepted = context.client.post(&path, &()).await?;
    committed(context, &accepted, "start")
}

/// Says that a change is in, where no Rollout is followed.
fn committed(context: &Context, accepted: &Accepted, what: &str) -> Result<()> {
    context.output.show(accepted, |accepted| format!("{}: {what}: committed", accepted.app))
}

#[derive(Debug, Args)]
pub(super) struct Delete {
    /// The App
    app: AppName,
    /// Delete the data in its volumes as well
    #[arg(long)]
    volumes: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

pub(super) async fn delete(context: &Context, args: &Delete) -> Result<()> {
    let key = context.key(&args.app);
    if !args.yes {
        let data = if args.volumes { " and all data in its volumes" } else { "" };
        confirm(&format!("Delete app {key}{data}?"))?;
    }
    let path = format!("{}?volumes={}", context.path(&args.app), args.volumes);
    context.client.act(Method::DELETE, &path).await?;
    context.output.say(&format!("app {key} is being deleted"))
}

/// Asks a person; without one the flag has to be given.
fn confirm(question: &str) -> Result<()> {
    let refused = |message: &str| -> anyhow::Error {
        UserError::new(Code::BadRequest, message, "give --yes to go on without being asked").into()
    };
    if !io::stdin().is_terminal() {
        return Err(refused("deleting needs a confirmation, and there is no terminal to ask on"));
    }
    eprint!("{question} [y/N] ");
    io::stderr().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    if matches!(answer.trim(), "y" | "Y" | "yes") { Ok(()) } else { Err(refused("not confirmed")) }
}
