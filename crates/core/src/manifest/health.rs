//! Probes: how stead knows that an Instance is started, ready and alive.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::problem::BadValue;
use super::quantity::Span;
use super::text::{HttpPath, Port};
use crate::error::Code;

/// How stead knows that an Instance is started, ready and alive.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(inline)]
pub struct Health {
    /// Asked from the start until it succeeds once. Left out: the readiness probe, or a TCP
    /// connection to the HTTP port, or only that the process runs; for at most 60s.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<StartupText>")]
    pub startup: Option<Startup>,
    /// While it fails, the Instance gets no requests.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ProbeText>")]
    pub readiness: Option<Probe>,
    /// When it fails, the Container is restarted.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<ProbeText>")]
    pub liveness: Option<Probe>,
}

impl Health {
    /// How long a started Container may take until it is ready.
    pub fn startup_timeout(&self) -> Span {
        self.startup.as_ref().map_or(STARTUP_TIMEOUT, |startup| startup.timeout)
    }

    /// Each check that is asked for: its key, what is asked, its period and its timeout.
    pub(super) fn checks(&self) -> impl Iterator<Item = (&'static str, &Check, Span, Span)> {
        let repeated = [("readiness", &self.readiness), ("liveness", &self.liveness)];
        let startup = self.startup.iter().map(|s| ("startup", &s.check, s.period, s.timeout));
        startup.chain(repeated.into_iter().filter_map(|(key, probe)| {
            probe.as_ref().map(|probe| (key, &probe.check, probe.period, probe.timeout))
        }))
    }
}

/// How long an App may take to start where its manifest does not say.
const STARTUP_TIMEOUT: Span = Span::from_secs(60);
const STARTUP_PERIOD: Span = Span::from_secs(1);
const PERIOD: Span = Span::from_secs(5);
const TIMEOUT: Span = Span::from_secs(1);
const FAILURES: u32 = 3;

/// What is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// An HTTP GET; an answer from 200 to 399 is a success.
    Http {
        /// The path asked for.
        path: HttpPath,
        /// The port; `None` for the App's HTTP port.
        port: Option<Port>,
    },
    /// A TCP connection.
    Tcp {
        /// The port.
        port: Port,
    },
    /// A program in the Container; exit code 0 is a success.
    Exec {
        /// The program and its arguments; at least the program.
        argv: Vec<String>,
    },
}

/// The probe of a start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "StartupText", into = "StartupText")]
pub struct Startup {
    /// What is asked.
    pub check: Check,
    /// Longest time between two attempts; the first ones follow each other at once.
    pub period: Span,
    /// How long the App may take until the first success.
    pub timeout: Span,
}

/// A probe that is repeated as long as the Container runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ProbeText", into = "ProbeText")]
pub struct Probe {
    /// What is asked.
    pub check: Check,
    /// Time between two attempts.
    pub period: Span,
    /// How long one attempt may take.
    pub timeout: Span,
    /// How many attempts in a row must fail until the probe has failed.
    pub failures: u32,
}

/// A startup probe as it is written: exactly one of `http`, `tcp` and `exec`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = Startup)]
#[schemars(inline)]
pub(super) struct StartupText {
    /// Path of an HTTP GET; an answer from 200 to 399 is a success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) http: Option<HttpPath>,
    /// Port of a TCP connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tcp: Option<Port>,
    /// Program run in the Container, with its arguments; exit code 0 is a success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exec: Option<Vec<String>>,
    /// Port of `http`. Left out: the App's HTTP port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) port: Option<Port>,
    /// Longest time between two attempts, 1s if left out. The first ones follow each other
    /// at once, so that a start is noticed within milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) period: Option<Span>,
    /// How long the App may take until the first success, 60s if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timeout: Option<Span>,
}

/// A probe as it is written: exactly one of `http`, `tcp` and `exec`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schema(as = Probe)]
#[schemars(inline)]
pub(super) struct ProbeText {
    /// Path of an HTTP GET; an answer from 200 to 399 is a success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) http: Option<HttpPath>,
    /// Port of a TCP connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) tcp: Option<Port>,
    /// Program run in the Container, with its arguments; exit code 0 is a success.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) exec: Option<Vec<String>>,
    /// Port of `http`. Left out: the App's HTTP port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) port: Option<Port>,
    /// Time between two attempts, 5s if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) period: Option<Span>,
    /// How long one attempt may take, 1s if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) timeout: Option<Span>,
    /// How many attempts in a row must fail until the probe has failed, 3 if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub(super) failures: Option<u32>,
}

/// What of `http`, `tcp`, `exec` and `port` was written.
type Asked = (Option<HttpPath>, Option<Port>, Option<Vec<String>>, Option<Port>);

impl Check {
    fn read(asked: Asked) -> Result<Self, BadValue> {
        let conflict = |found: &str| {
            let expected = "exactly one of http, tcp and exec";
            BadValue::new(Code::ManifestConflict, expected, found)
        };
        match asked {
            (Some(path), None, None, port) => Ok(Self::Http { path, port }),
            (None, Some(port), None, None) => Ok(Self::Tcp { port }),
            (None, None, Some(argv), None) => match argv.first() {
                Some(program) if !program.is_empty() => Ok(Self::Exec { argv }),
                _ => Err(BadValue::new(Code::ManifestText, "a program to run", "none")),
            },
            (None, None, None, None) => Err(conflict("none")),
            (None, None, None, Some(_)) => {
                Err(conflict("only port").hint("write http: /PATH, or tcp: PORT"))
            }
            (None, Some(_), None, Some(_)) => {
                Err(conflict("tcp and port").hint("tcp names the port already; leave out port"))
            }
            (None, None, Some(_), Some(_)) => {
                Err(conflict("exec and port").hint("a program needs no port; leave out port"))
            }
            _ => Err(conflict("several of them")),
        }
    }

    fn write(self) -> Asked {
        match self {
            Self::Http { path, port } => (Some(path), None, None, port),
            Self::Tcp { port } => (None, Some(port), None, None),
            Self::Exec { argv } => (None, None, Some(argv), None),
        }
    }
}

impl TryFrom<StartupText> for Startup {
    type Error = BadValue;
    fn try_from(text: StartupText) -> Result<Self, BadValue> {
        Ok(Self {
            check: Check::read((text.http, text.tcp, text.exec, text.port))?,
            period: text.period.unwrap_or(STARTUP_PERIOD),
            timeout: text.timeout.unwrap_or(STARTUP_TIMEOUT),
        })
    }
}

impl From<Startup> for StartupText {
    fn from(startup: Startup) -> Self {
        let (http, tcp, exec, port) = startup.check.write();
        let (period, timeout) = (Some(startup.period), Some(startup.timeout));
        Self { http, tcp, exec, port, period, timeout }
    }
}

impl TryFrom<ProbeText> for Probe {
    type Error = BadValue;
    fn try_from(text: ProbeText) -> Result<Self, BadValue> {
        Ok(Self {
            check: Check::read((text.http, text.tcp, text.exec, text.port))?,
            period: text.period.unwrap_or(PERIOD),
            timeout: text.timeout.unwrap_or(TIMEOUT),
            failures: text.failures.unwrap_or(FAILURES),
        })
    }
}

impl From<Probe> for ProbeText {
    fn from(probe: Probe) -> Self {
        let (http, tcp, exec, port) = probe.check.write();
        let (period, timeout) = (Some(probe.period), Some(probe.timeout));
        Self { http, tcp, exec, port, period, timeout, failures: Some(probe.failures) }
    }
}

/// Describes a type to the API by the form in which it is written.
macro_rules! described_by {
    ($type:ident, $text:ident) => {
        impl utoipa::PartialSchema for $type {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
                <$text as utoipa::PartialSchema>::schema()
            }
        }

        impl utoipa::ToSchema for $type {
            fn schemas(out: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)>) {
                <$text as utoipa::ToSchema>::schemas(out);
            }
        }
    };
}

pub(super) use described_by;

described_by!(Startup, StartupText);
described_by!(Probe, ProbeText);
