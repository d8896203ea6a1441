//! `stead namespace …`.

use anyhow::Result;
use clap::Subcommand;
use http::Method;
use stead_core::api::NamespaceView;
use stead_core::name::NamespaceName;

use super::Context;
use crate::output::Table;

#[derive(Debug, Subcommand)]
pub(super) enum NamespaceCommand {
    /// List Namespaces
    #[command(visible_alias = "ls")]
    List,
    /// Make a Namespace
    Create {
        /// Its name
        name: NamespaceName,
    },
    /// Delete an empty Namespace
    Delete {
        /// Its name
        name: NamespaceName,
    },
}

pub(super) async fn run(context: &Context, command: NamespaceCommand) -> Result<()> {
    match command {
        NamespaceCommand::List => {
            let namespaces: Vec<NamespaceView> = context.client.get("/namespaces").await?;
            context.output.show(&namespaces, |namespaces| {
                let mut table = Table::new(["NAMESPACE", "APPS"], "no namespaces");
                for namespace in namespaces {
                    table.row([namespace.name.to_string(), namespace.apps.to_string()]);
                }
                table.finish()
            })
        }
        NamespaceCommand::Create { name } => {
            context.client.act(Method::PUT, &format!("/namespaces/{name}")).await?;
            context.output.say(&format!("namespace {name} is there"))
        }
        NamespaceCommand::Delete { name } => {
            context.client.act(Method::DELETE, &format!("/namespaces/{name}")).await?;
            context.output.say(&format!("namespace {name} is gone"))
        }
    }
}
