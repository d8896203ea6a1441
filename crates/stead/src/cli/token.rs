//! `stead token …`.

use anyhow::Result;
use clap::{Subcommand, ValueEnum};
use http::Method;
use stead_core::api::{Role, TokenRequest, TokenView};
use stead_core::manifest::Span;
use stead_core::name::NamespaceName;

use super::Context;
use crate::client;
use crate::output::{Table, human};

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token; its secret is shown once
    Create {
        /// What it is for
        name: String,
        /// What it permits
        #[arg(long, value_enum)]
        role: RoleName,
        /// Limit it to one Namespace
        #[arg(long = "in", value_name = "NAMESPACE")]
        within: Option<NamespaceName>,
        /// How long it is valid, such as 12h
        #[arg(long, value_name = "D", default_value = "24h")]
        ttl: Span,
    },
    /// List tokens, without their secrets
    #[command(visible_alias = "ls")]
    List,
    /// Make a token invalid at once
    Revoke {
        /// Its id
        id: String,
    },
}

/// A role by its name on the command line.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum RoleName {
    /// Look
    Viewer,
    /// Look, deploy, change, enter
    Deployer,
    /// Everything, tokens included
    Admin,
}

impl From<RoleName> for Role {
    fn from(name: RoleName) -> Role {
        match name {
            RoleName::Viewer => Role::Viewer,
            RoleName::Deployer => Role::Deployer,
            RoleName::Admin => Role::Admin,
        }
    }
}

fn word(role: Role) -> &'static str {
    match role {
        Role::Viewer => "viewer",
        Role::Deployer => "deployer",
        Role::Admin => "admin",
    }
}

pub(super) async fn run(context: &Context, command: TokenCommand) -> Result<()> {
    match command {
        TokenCommand::Create { name, role, within, ttl } => {
            let request = TokenRequest {
                name,
                role: role.into(),
                namespace: within,
                ttl_secs: ttl.millis().div_ceil(1000),
            };
            let token: TokenView = context.client.post("/tokens", &request).await?;
            context.output.show(&token, |token| {
                let secret = token.secret.as_deref().unwrap_or("-");
                format!(
                    "token {} ({}), valid until {}\n{secret}\n\nIt is shown only now. Use it as \
                     STEAD_TOKEN with --server http://…",
                    token.id,
                    word(token.role),
                    human::stamp(token.expires)
                )
            })
        }
        TokenCommand::List => {
            let tokens: Vec<TokenView> = context.client.get("/tokens").await?;
            context.output.show(&tokens, |tokens| {
                let mut table =
                    Table::new(["ID", "NAME", "ROLE", "NAMESPACE", "EXPIRES"], "no tokens");
                for token in tokens {
                    let namespace = token.namespace.as_ref().map_or("all", NamespaceName::as_str);
                    table.row([
                        token.id.clone(),
                        token.name.clone(),
                        word(token.role).to_owned(),
                        namespace.to_owned(),
                        human::stamp(token.expires),
                    ]);
                }
                table.finish()
            })
        }
        TokenCommand::Revoke { id } => {
            let path = format!("/tokens/{}", client::escaped(&id));
            context.client.act(Method::DELETE, &path).await?;
            context.output.say(&format!("token {id} is revoked"))
        }
    }
}
