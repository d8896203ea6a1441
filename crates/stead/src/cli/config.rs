//! `stead env …`.

use std::collections::BTreeMap;

use anyhow::Result;
use clap::{Args, Subcommand};
use stead_core::api::{Accepted, EnvRequest, EnvView};
use stead_core::manifest::EnvName;
use stead_core::name::AppName;

use super::follow::{self, Aim, Wait};
use super::{Context, look::OfApp};
use crate::output::Table;

#[derive(Debug, Subcommand)]
pub(super) enum EnvCommand {
    /// Set variables: a new Release that differs in them alone
    Set(EnvSet),
    /// Remove variables: a new Release that differs in them alone
    Unset(EnvUnset),
    /// List variables
    #[command(visible_alias = "ls")]
    List(OfApp),
}

#[derive(Debug, Args)]
pub(super) struct EnvSet {
    /// The App
    app: AppName,
    /// The variables
    #[arg(required = true, value_name = "K=V")]
    pairs: Vec<Pair>,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, Args)]
pub(super) struct EnvUnset {
    /// The App
    app: AppName,
    /// Their names
    #[arg(required = true, value_name = "K")]
    names: Vec<EnvName>,
    #[command(flatten)]
    wait: Wait,
}

/// An environment variable with its value, written `K=V`.
#[derive(Debug, Clone)]
pub(super) struct Pair {
    pub(super) name: EnvName,
    pub(super) value: String,
}

impl std::str::FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("expected K=V")?;
        let name = name.parse().map_err(|e| format!("{e}"))?;
        Ok(Self { name, value: value.to_owned() })
    }
}

pub(super) async fn env(context: &Context, command: EnvCommand) -> Result<()> {
    let (app, request, wait) = match command {
        EnvCommand::List(OfApp { app }) => return list(context, &app).await,
        EnvCommand::Set(EnvSet { app, pairs, wait }) => {
            let set = pairs.into_iter().map(|pair| (pair.name.to_string(), pair.value)).collect();
            (app, EnvRequest { set, unset: Vec::new() }, wait)
        }
        EnvCommand::Unset(EnvUnset { app, names, wait }) => {
            let unset = names.iter().map(ToString::to_string).collect();
            (app, EnvRequest { set: BTreeMap::new(), unset }, wait)
        }
    };
    let path = format!("{}/env", context.path(&app));
    let accepted: Accepted = context.client.patch(&path, &request).await?;
    follow::rollout(context, accepted, &wait, Aim::Forward).await
}

async fn list(context: &Context, app: &AppName) -> Result<()> {
    let view: EnvView = context.client.get(&format!("{}/env", context.path(app))).await?;
    context.output.show(&view.env, |env| {
        let mut table = Table::new(["NAME", "VALUE"], "no variables");
        for (name, value) in env {
            table.row([name.clone(), value.clone()]);
        }
        table.finish()
    })
}
