//! `stead registry …`: logins and mirrors of registries. A password comes from standard input,
//! never from the command line, which everybody on the machine can read.

use std::io::{self, IsTerminal};

use anyhow::Result;
use clap::{Args, Subcommand};
use http::Method;
use stead_core::api::{LoggedIn, LoginRequest, MirrorRequest, RegistryView};
use stead_core::error::{Code, UserError};
use stead_core::registry::{Mirror, MirrorAddress, RegistryHost};
use stead_core::secret::Secret;

use super::{Context, typed};
use crate::client;
use crate::output::{Table, human};

#[derive(Debug, Subcommand)]
pub(super) enum RegistryCommand {
    /// Give the platform a login for a registry
    #[command(after_help = "The login is tried before it is kept, and kept sealed. It comes \
        before what a docker config says:\n  \
        stead registry login ghcr.io -u team --password-stdin < token.txt")]
    Login(Login),
    /// Forget the login for a registry
    Logout {
        /// The registry, as in references: ghcr.io, localhost:5000
        host: RegistryHost,
    },
    /// List logins and mirrors, never passwords
    #[command(visible_alias = "list")]
    Ls,
    /// Mirrors of registries
    #[command(subcommand)]
    Mirror(MirrorCommand),
}

#[derive(Debug, Args)]
pub(super) struct Login {
    /// The registry, as in references: ghcr.io, localhost:5000; Docker Hub is docker.io
    host: RegistryHost,
    /// The name; asked for if it is left out
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// Read the password, or a token in its place, from standard input
    #[arg(long)]
    password_stdin: bool,
}

#[derive(Debug, Subcommand)]
pub(super) enum MirrorCommand {
    /// Ask a mirror before the registry itself, behind the mirrors it has
    #[command(after_help = "What is named by a digest is taken from any mirror, because the \
        digest decides what is right. What a tag names is asked of the registry itself, unless \
        the mirror is given with --tags. A mirror on a private network must be among those that \
        `stead up` was given with --private-registry or --insecure-registry.")]
    Add {
        /// The registry: docker.io
        host: RegistryHost,
        /// The mirror: HOST[:PORT][/PREFIX]
        mirror: MirrorAddress,
        /// Believe it which image a tag names
        #[arg(long)]
        tags: bool,
    },
    /// Ask a mirror no more
    Rm {
        /// The registry
        host: RegistryHost,
        /// The mirror
        mirror: MirrorAddress,
    },
    /// List mirrors
    #[command(visible_alias = "list")]
    Ls,
}

pub(super) async fn run(context: &Context, command: RegistryCommand) -> Result<()> {
    match command {
        RegistryCommand::Login(login) => log_in(context, login).await,
        RegistryCommand::Logout { host } => {
            let path = format!("{}/login", path_of(&host));
            context.client.act(Method::DELETE, &path).await?;
            context.output.say(&format!("the login for {host} is forgotten"))
        }
        RegistryCommand::Ls => list(context, registries_table).await,
        RegistryCommand::Mirror(MirrorCommand::Ls) => list(context, mirrors_table).await,
        RegistryCommand::Mirror(MirrorCommand::Add { host, mirror, tags }) => {
            let path = mirror_path(&host, &mirror);
            let added: Mirror = context.client.put(&path, &MirrorRequest { tags }).await?;
            context.output.show(&added, |added| {
                let what = if added.tags { "images and tags" } else { "images" };
                format!("{} is asked for {what} of {host} first", added.address)
            })
        }
        RegistryCommand::Mirror(MirrorCommand::Rm { host, mirror }) => {
            context.client.act(Method::DELETE, &mirror_path(&host, &mirror)).await?;
            context.output.say(&format!("{mirror} is asked for {host} no more"))
        }
    }
}

fn path_of(host: &RegistryHost) -> String {
    format!("/registries/{}", client::escaped(host.as_str()))
}

fn mirror_path(host: &RegistryHost, mirror: &MirrorAddress) -> String {
    format!("{}/mirrors/{}", path_of(host), client::escaped(&mirror.to_string()))
}

async fn log_in(context: &Context, login: Login) -> Result<()> {
    let Login { host, user, password_stdin } = login;
    let on_terminal = io::stdin().is_terminal();
    let bad = |message: String, hint: &str| UserError::new(Code::BadRequest, message, hint);
    if !password_stdin && !on_terminal {
        let hint = "give the password on standard input, with --password-stdin";
        return Err(bad("there is no terminal to ask for the password on".into(), hint).into());
    }
    let user = match user {
        Some(user) => user,
        None if on_terminal => text(typed::line(&format!("User of {host}")).await?, &host)?,
        None => return Err(bad("the login has no name".into(), "give it with --user").into()),
    };
    let password = text(typed::secret(&format!("Password for {user} at {host}")).await?, &host)?;
    let password = Secret::new(password)
        .map_err(|bad_secret| bad(format!("password for {host}: {bad_secret}"), "give another"))?;
    let path = format!("{}/login", path_of(&host));
    let done: LoggedIn = context.client.put(&path, &LoginRequest { user, password }).await?;
    context.output.show(&done, |LoggedIn { host, accepted }| match accepted {
        true => format!("{host} accepted the login; it holds for the next pull"),
        false => {
            format!("the login for {host} is kept; {host} asked for none, so it was not tried")
        }
    })
}

fn text(bytes: Vec<u8>, host: &RegistryHost) -> Result<String, UserError> {
    String::from_utf8(bytes).map_err(|_| {
        let message = format!("the login for {host} is not text in UTF-8");
        UserError::new(Code::BadRequest, message, "give it as text")
    })
}

async fn list(context: &Context, table: fn(&[RegistryView]) -> String) -> Result<()> {
    let registries: Vec<RegistryView> = context.client.get("/registries").await?;
    context.output.show(&registries, |registries| table(registries))
}

fn registries_table(registries: &[RegistryView]) -> String {
    let columns = ["REGISTRY", "USER", "SET", "BY", "MIRRORS"];
    let mut table = Table::new(columns, "no logins and no mirrors");
    for RegistryView { host, login, mirrors } in registries {
        let dash = || "-".to_owned();
        let mirrors: Vec<_> = mirrors.iter().map(|mirror| mirror.address.to_string()).collect();
        table.row([
            host.to_string(),
            login.as_ref().map_or_else(dash, |login| human::plain(&login.user)),
            login.as_ref().map_or_else(dash, |login| human::stamp(login.set)),
            login.as_ref().map_or_else(dash, |login| login.by.clone()),
            if mirrors.is_empty() { dash() } else { mirrors.join(", ") },
        ]);
    }
    table.finish()
}

fn mirrors_table(registries: &[RegistryView]) -> String {
    let mut table = Table::new(["REGISTRY", "ORDER", "MIRROR", "TAGS"], "no mirrors");
    for RegistryView { host, mirrors, .. } in registries {
        for (number, mirror) in mirrors.iter().enumerate() {
            let tags = if mirror.tags { "yes" } else { "no" };
            let order = (number + 1).to_string();
            table.row([host.to_string(), order, mirror.address.to_string(), tags.to_owned()]);
        }
    }
    table.finish()
}
