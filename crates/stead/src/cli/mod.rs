//! The command line: its grammar here, one file per group of commands beside it.

mod about;
pub(crate) mod base;
mod change;
mod config;
mod deploy;
mod enter;
mod follow;
mod image;
mod look;
mod namespace;
mod plan;
mod platform;
mod registry;
mod rollout_flags;
mod save;
mod secrets;
mod story;
mod stream;
mod terminal;
mod token;
mod typed;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use stead_core::name::{AppKey, AppName, NamespaceName};

use crate::client::{Client, Endpoint};
use crate::failure;
use crate::output::{Format, Output};
use crate::platform::layout;

/// stead: hand it an application, get a running, routed, elastic service.
#[derive(Debug, Parser)]
#[command(name = "stead", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Exit codes: 0 done, 1 failed, 2 bad usage or manifest, 3 not found, \
    4 new version unhealthy (rolled back or held), 5 timed out, 6 denied.")]
pub(crate) struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Args)]
struct Global {
    /// Where the platform is: unix:PATH or http://HOST:PORT [default: unix:/run/stead/stead.sock]
    #[arg(long, global = true, env = "STEAD_SERVER", value_name = "URL", hide_env_values = true)]
    server: Option<String>,
    /// Token for a platform reached by URL
    #[arg(long, global = true, env = "STEAD_TOKEN", value_name = "T", hide_env_values = true)]
    token: Option<String>,
    /// Namespace of the App
    #[arg(short, long, global = true, env = "STEAD_NAMESPACE", value_name = "NAMESPACE")]
    namespace: Option<NamespaceName>,
    /// Form of the answer
    #[arg(short, long, global = true, value_enum, default_value_t, value_name = "FORMAT")]
    output: Format,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start the platform, or replace a running one without dropping a request
    Up(platform::Up),
    /// Stop the platform; Containers go on unless --all
    Down(platform::Down),
    /// Deploy an App, or a new Release of it
    Deploy(Box<deploy::Deploy>),
    /// List Apps
    Apps(look::Apps),
    /// Show how an App is
    Status(look::OfApp),
    /// List an App's Instances
    Ps(look::OfApp),
    /// List an App's Releases
    Releases(look::OfApp),
    /// Show where a Rollout's time went
    Waterfall(look::OfRollout),
    /// Show what became of an App's requests, per Release
    Ledger(look::OfRelease),
    /// Show what happened
    Events(stream::Events),
    /// Show the output of an App's Containers
    Logs(stream::Logs),
    /// Show what Instances use
    Top(look::Top),
    /// Watch or steer the Rollout under way
    #[command(subcommand)]
    Rollout(change::RolloutCommand),
    /// Go back to an earlier Release
    Rollback(change::Rollback),
    /// Run the same Release again
    Restart(change::Restart),
    /// Set the number of Instances
    Scale(change::Scale),
    /// Stop an App; its volumes and Releases stay
    Stop(look::OfApp),
    /// Start a stopped App
    Start(look::OfApp),
    /// Delete an App
    Delete(change::Delete),
    /// Environment variables of an App
    #[command(subcommand)]
    Env(config::EnvCommand),
    /// Secrets of an App
    #[command(subcommand)]
    Secrets(secrets::SecretsCommand),
    /// Run a command inside an Instance
    Exec(enter::ExecArgs),
    /// Forward a local port to an Instance
    PortForward(enter::PortForward),
    /// Images on the platform's machine
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Logins and mirrors of registries
    #[command(subcommand)]
    Registry(registry::RegistryCommand),
    /// Namespaces
    #[command(subcommand)]
    Namespace(namespace::NamespaceCommand),
    /// Tokens for the API over TCP
    #[command(subcommand)]
    Token(token::TokenCommand),
    /// Check whether this machine can run the platform
    Doctor(platform::Doctor),
    /// Show versions
    Version,
    /// Print a completion script for a shell
    Completion(about::Completion),
    /// Write the manual pages into a folder
    Man(about::Man),
    /// The control plane and engine, as `up` starts it
    #[command(hide = true)]
    Serve(platform::Serve),
    /// The gateway, as `up` starts it
    #[command(hide = true)]
    Gateway(platform::Gateway),
    /// The parent of both, as `up --detach` starts it
    #[command(hide = true)]
    Supervise(platform::Up),
}

/// What every command of the API has at hand.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) output: Output,
    /// The Namespace named on the command line or in the environment.
    namespace: Option<NamespaceName>,
}

impl Context {
    /// The Namespace to look in.
    pub(crate) fn namespace(&self) -> NamespaceName {
        self.namespace.clone().unwrap_or_default()
    }

    /// The full name of an App.
    pub(crate) fn key(&self, app: &AppName) -> AppKey {
        AppKey::new(self.namespace(), app.clone())
    }

    /// The API's path of an App.
    pub(crate) fn path(&self, app: &AppName) -> String {
        app_path(&self.key(app))
    }
}

/// The API's path of an App.
pub(crate) fn app_path(key: &AppKey) -> String {
    // Names are DNS labels: nothing in them needs escaping.
    format!("/namespaces/{}/apps/{}", key.namespace, key.app)
}

/// Reads the command line, runs the command, reports its failure.
pub(crate) fn main() -> ExitCode {
    let cli = Cli::parse();
    let format = cli.global.output;
    match run(cli) {
        Ok(code) => code,
        Err(error) => failure::report(&error, format),
    }
}

fn run(cli: Cli) -> Result<ExitCode> {
    let Cli { global, command } = cli;
    // The platform's own roles choose their runtime themselves.
    let command = match command {
        Command::Up(args) => return platform::up(args).map(done),
        Command::Supervise(args) => return platform::supervise(args).map(done),
        Command::Serve(args) => return platform::serve(args).map(done),
        Command::Gateway(args) => return platform::gateway(args).map(done),
        Command::Down(args) => return platform::down(&args).map(done),
        Command::Doctor(args) => return platform::doctor(&args, Output { format: global.output }),
        Command::Completion(args) => return about::completion(&args).map(done),
        Command::Man(args) => return about::man(&args).map(done),
        other => other,
    };
    let context = context(global)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let code = runtime.block_on(ask(&context, command));
    // A blocked read of standard input must not hold the exit up.
    runtime.shutdown_background();
    code
}

fn context(global: Global) -> Result<Context> {
    let endpoint = match &global.server {
        Some(server) => server.parse()?,
        None => Endpoint::Unix(layout::default_run_dir().join(layout::API_SOCKET)),
    };
    Ok(Context {
        client: Client::new(endpoint, global.token),
        output: Output { format: global.output },
        namespace: global.namespace,
    })
}

fn done((): ()) -> ExitCode {
    ExitCode::SUCCESS
}

/// Runs a command that asks the platform.
async fn ask(context: &Context, command: Command) -> Result<ExitCode> {
    match command {
        Command::Deploy(args) => deploy::run(context, *args).await,
        Command::Apps(args) => look::apps(context, &args).await,
        Command::Status(args) => look::status(context, &args.app).await,
        Command::Ps(args) => look::ps(context, &args.app).await,
        Command::Releases(args) => look::releases(context, &args.app).await,
        Command::Waterfall(args) => look::waterfall(context, &args).await,
        Command::Ledger(args) => look::ledger(context, &args).await,
        Command::Events(args) => stream::events(context, &args).await,
        Command::Logs(args) => stream::logs(context, &args).await,
        Command::Top(args) => look::top(context, &args).await,
        Command::Rollout(command) => change::rollout(context, command).await,
        Command::Rollback(args) => change::rollback(context, args).await,
        Command::Restart(args) => change::restart(context, args).await,
        Command::Scale(args) => change::scale(context, &args).await,
        Command::Stop(args) => change::stop(context, &args.app).await,
        Command::Start(args) => change::start(context, &args.app).await,
        Command::Delete(args) => change::delete(context, &args).await,
        Command::Env(command) => config::env(context, command).await,
        Command::Secrets(command) => secrets::run(context, command).await,
        Command::Exec(args) => enter::exec(context, args).await,
        Command::PortForward(args) => enter::port_forward(context, &args).await,
        Command::Image(command) => image::run(context, command).await,
        Command::Registry(command) => registry::run(context, command).await,
        Command::Namespace(command) => namespace::run(context, command).await,
        Command::Token(command) => token::run(context, command).await,
        Command::Version => about::version(context).await,
        Command::Up(_)
        | Command::Supervise(_)
        | Command::Serve(_)
        | Command::Gateway(_)
        | Command::Down(_)
        | Command::Doctor(_)
        | Command::Completion(_)
        | Command::Man(_) => unreachable!("handled before a runtime was made"),
    }
    .map(done)
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_command_after_two_dashes_keeps_its_flags() {
        let cli = Cli::parse_from(["stead", "exec", "web", "-i", "1", "--", "ls", "-l", "-n", "x"]);
        let Command::Exec(args) = cli.command else { panic!("not exec") };
        assert_eq!(args.argv, ["ls", "-l", "-n", "x"]);
        assert!(cli.global.namespace.is_none());
    }
}
