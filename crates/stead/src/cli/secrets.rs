//! `stead secrets …`. A value comes from standard input, never from the command line, which
//! everybody on the machine can read.

use anyhow::Result;
use clap::{Args, Subcommand};
use stead_core::api::{SecretChanged, SecretRequest, SecretView};
use stead_core::error::{Code, UserError};
use stead_core::manifest::EnvName;
use stead_core::name::AppName;
use stead_core::secret::{LONGEST, Secret};

use super::follow::{self, Aim, Wait};
use super::{Context, look::OfApp, typed};
use crate::output::{Table, human};

#[derive(Debug, Subcommand)]
pub(super) enum SecretsCommand {
    /// Set a secret; an App that uses it is restarted with it
    #[command(after_help = "The value is read from standard input, without the line end that \
        follows it; on a terminal it is asked for and not shown:\n  \
        stead secrets set web DB_PASSWORD < password.txt\n\n\
        An App gets a secret as an environment variable when its manifest names it:\n  \
        secrets: [DB_PASSWORD]")]
    Set(Named),
    /// Remove a secret; an App that uses it is restarted without it
    Unset(Named),
    /// List names of secrets, never values
    #[command(visible_alias = "ls")]
    List(OfApp),
}

#[derive(Debug, Args)]
pub(super) struct Named {
    /// The App; it need not be deployed yet
    app: AppName,
    /// The secret's name, which is that of the variable
    name: String,
    #[command(flatten)]
    wait: Wait,
}

impl Named {
    /// Read here and not by clap, which repeats what it refuses.
    fn name(&self) -> Result<EnvName> {
        if self.name.contains('=') {
            return Err(UserError::new(
                Code::BadRequest,
                "a value does not belong on the command line, where others can read it",
                "name the secret alone; its value is read from standard input, or asked for",
            )
            .into());
        }
        self.name.parse().map_err(|bad| {
            let message = format!("{:?} is no name of a secret: {bad}", self.name);
            UserError::new(Code::BadRequest, message, "correct the name").into()
        })
    }
}

pub(super) async fn run(context: &Context, command: SecretsCommand) -> Result<()> {
    let (named, changed) = match command {
        SecretsCommand::List(OfApp { app }) => return list(context, &app).await,
        SecretsCommand::Set(named) => {
            let name = named.name()?;
            let request = SecretRequest { value: value(&name).await? };
            let path = format!("{}/secrets/{name}", context.path(&named.app));
            let changed: SecretChanged = context.client.put(&path, &request).await?;
            (named, changed)
        }
        SecretsCommand::Unset(named) => {
            let path = format!("{}/secrets/{}", context.path(&named.app), named.name()?);
            let changed: SecretChanged = context.client.delete(&path).await?;
            (named, changed)
        }
    };
    match changed.accepted {
        Some(accepted) => follow::rollout(context, accepted, &named.wait, Aim::Forward).await,
        None => context.output.show(&changed, |changed| {
            let (name, key) = (&changed.name, context.key(&named.app));
            match changed.version {
                Some(version) => {
                    format!("secret {name} of app {key} is set, version {version}")
                }
                None => format!("secret {name} of app {key} is not set any more"),
            }
        }),
    }
}

async fn list(context: &Context, app: &AppName) -> Result<()> {
    let path = format!("{}/secrets", context.path(app));
    let secrets: Vec<SecretView> = context.client.get(&path).await?;
    context.output.show(&secrets, |secrets| {
        let mut table = Table::new(["NAME", "VERSION", "IN USE", "SET", "BY"], "no secrets");
        let number = |version: Option<u32>| version.map_or("-".to_owned(), |n| n.to_string());
        for secret in secrets {
            let version = match secret.version {
                None => "unset".to_owned(),
                version => number(version),
            };
            table.row([
                secret.name.to_string(),
                version,
                number(secret.used),
                human::stamp(secret.set),
                secret.by.clone(),
            ]);
        }
        table.finish()
    })
}

/// The value, from a person or a pipe.
async fn value(name: &EnvName) -> Result<Secret> {
    let bytes = typed::secret(&format!("Value of {name}")).await?;
    let bad = || {
        UserError::new(
            Code::BadRequest,
            format!("secret {name}: expected a text of 1 to {LONGEST} bytes without NUL"),
            "give the value on standard input, or type it when asked",
        )
    };
    let text = String::from_utf8(bytes).map_err(|_| bad())?;
    Ok(Secret::new(text).map_err(|_| bad())?)
}
