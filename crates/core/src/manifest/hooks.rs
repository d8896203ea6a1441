//! Hooks: what an App does itself at turns of an Instance's life.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::health::described_by;
use super::problem::BadValue;
use super::quantity::Span;
use super::text::{HttpPath, Port};
use crate::error::Code;

/// How long a hook may take where its manifest does not say.
const DEADLINE: Span = Span::from_secs(30);

/// What an App does itself at turns of an Instance's life. A hook that fails, or is not done
/// within its deadline, stops the change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct Hooks {
    /// Before an Instance changes, in its old Container.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<HookText>")]
    pub before_update: Option<Hook>,
    /// Once the new Container is ready and before it gets requests, in the new Container.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<HookText>")]
    pub after_update: Option<Hook>,
    /// Before an Instance is removed for good, in its Container.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<HookText>")]
    pub pre_delete: Option<Hook>,
}

impl Hooks {
    /// Each hook that is asked for, with its key.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Hook)> {
        let Self { before_update, after_update, pre_delete } = self;
        let all = [
            ("before_update", before_update),
            ("after_update", after_update),
            ("pre_delete", pre_delete),
        ];
        all.into_iter().filter_map(|(key, hook)| Some((key, hook.as_ref()?)))
    }
}

/// What is done, and how long it may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "HookText", into = "HookText")]
pub struct Hook {
    /// What is done.
    pub run: HookRun,
    /// How long it may take.
    pub deadline: Span,
}

/// What a hook does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookRun {
    /// Run this program in the Container; exit code 0 is a success.
    Exec(Vec<String>),
    /// An HTTP GET on the Instance; an answer from 200 to 399 is a success.
    Http {
        /// The path asked for.
        path: HttpPath,
        /// The port; `None` for the App's HTTP port.
        port: Option<Port>,
    },
}

/// A hook as it is written: exactly one of `exec` and `http`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = Hook)]
#[schemars(inline)]
pub(super) struct HookText {
    /// Program run in the Container, with its arguments; exit code 0 is a success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exec: Option<Vec<String>>,
    /// Path of an HTTP GET on the Instance; an answer from 200 to 399 is a success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) http: Option<HttpPath>,
    /// Port of `http`. Left out: the App's HTTP port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) port: Option<Port>,
    /// How long it may take, 30s if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) deadline: Option<Span>,
}

impl TryFrom<HookText> for Hook {
    type Error = BadValue;
    fn try_from(text: HookText) -> Result<Self, BadValue> {
        let conflict = |found: &str| {
            BadValue::new(Code::ManifestConflict, "exactly one of exec and http", found)
        };
        let run = match (text.exec, text.http, text.port) {
            (Some(argv), None, None) => HookRun::Exec(argv),
            (None, Some(path), port) => HookRun::Http { path, port },
            (Some(_), None, Some(_)) => {
                let hint = "a program needs no port; leave out port";
                return Err(conflict("exec and port").hint(hint));
            }
            (None, None, Some(_)) => return Err(conflict("only port").hint("write http: /PATH")),
            (None, None, None) => return Err(conflict("none")),
            (Some(_), Some(_), _) => return Err(conflict("both")),
        };
        Ok(Self { run, deadline: text.deadline.unwrap_or(DEADLINE) })
    }
}

impl From<Hook> for HookText {
    fn from(hook: Hook) -> Self {
        let deadline = Some(hook.deadline);
        match hook.run {
            HookRun::Exec(argv) => Self { exec: Some(argv), deadline, ..Self::default() },
            HookRun::Http { path, port } => {
                Self { http: Some(path), port, deadline, ..Self::default() }
            }
        }
    }
}

described_by!(Hook, HookText);
