//! Errors a person sees. Each has a code with a page under `docs/errors/`, a sentence that
//! says what happened, and a hint that says what to do.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What kind of failure this is: decides the exit code of the CLI and the status of the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// It was tried and did not work. Exit code 1, HTTP 500 or 502.
    Failed,
    /// The request itself is wrong. Exit code 2, HTTP 400 or 422.
    BadInput,
    /// What was named does not exist. Exit code 3, HTTP 404.
    NotFound,
    /// The new version did not become healthy. Exit code 4.
    Unhealthy,
    /// It did not finish in time. Exit code 5, HTTP 504.
    TimedOut,
    /// Not permitted. Exit code 6, HTTP 401 or 403.
    Denied,
    /// Somebody else changed it first. Exit code 1, HTTP 409 or 412.
    Conflict,
}

impl Kind {
    /// The exit code of the CLI.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Failed | Kind::Conflict => 1,
            Kind::BadInput => 2,
            Kind::NotFound => 3,
            Kind::Unhealthy => 4,
            Kind::TimedOut => 5,
            Kind::Denied => 6,
        }
    }
}

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $text:literal, $kind:ident;)*) => {
        /// Code of an error. Its text is stable: people search for it.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
        pub enum Code {
            $($(#[$doc])* #[serde(rename = $text)] $variant,)*
        }

        impl Code {
            /// Every code, in order. `xtask tidy` compares them with the pages.
            pub const ALL: &'static [Code] = &[$(Code::$variant,)*];

            /// The code as people see it.
            pub fn as_str(self) -> &'static str {
                match self { $(Code::$variant => $text,)* }
            }

            /// What kind of failure it is.
            pub fn kind(self) -> Kind {
                match self { $(Code::$variant => Kind::$kind,)* }
            }
        }
    };
}

// Manifest codes are STEAD-M…, requests STEAD-R…, images STEAD-I…, engine and rollout
// STEAD-E…, the platform itself STEAD-P….
codes! {
    /// The manifest is not YAML or JSON.
    ManifestSyntax = "STEAD-M001", BadInput;
    /// The manifest uses a feature of YAML that manifests do without.
    ManifestYaml = "STEAD-M002", BadInput;
    /// A value is of the wrong type.
    ManifestType = "STEAD-M003", BadInput;
    /// There is no such key.
    ManifestUnknownKey = "STEAD-M004", BadInput;
    /// A required key is missing.
    ManifestMissingKey = "STEAD-M005", BadInput;
    /// A key, name or host is given twice.
    ManifestDuplicate = "STEAD-M006", BadInput;
    /// A quantity (cpu, memory, duration, share) is malformed.
    ManifestQuantity = "STEAD-M007", BadInput;
    /// A name is malformed.
    ManifestName = "STEAD-M008", BadInput;
    /// A host name is malformed or reserved.
    ManifestHost = "STEAD-M009", BadInput;
    /// A number or length lies outside its range.
    ManifestRange = "STEAD-M010", BadInput;
    /// A path is malformed or reserved.
    ManifestPath = "STEAD-M011", BadInput;
    /// An environment variable's name or value is malformed.
    ManifestEnv = "STEAD-M012", BadInput;
    /// A value is none of those that can be chosen.
    ManifestChoice = "STEAD-M013", BadInput;
    /// Two parts of the manifest contradict each other.
    ManifestConflict = "STEAD-M014", BadInput;
    /// The manifest asks for what stead does not do yet.
    ManifestNotBuilt = "STEAD-M015", BadInput;
    /// A file's content was not sent along.
    ManifestFileMissing = "STEAD-M016", BadInput;
    /// The manifest is too large or too deep.
    ManifestTooBig = "STEAD-M017", BadInput;
    /// The manifest is indented with a tab.
    ManifestTab = "STEAD-M018", BadInput;
    /// A text is malformed: a user, a signal, a source, a command.
    ManifestText = "STEAD-M019", BadInput;

    /// A request's body or parameter is malformed.
    BadRequest = "STEAD-R001", BadInput;
    /// The App, Release, Namespace or other thing named does not exist.
    NotFound = "STEAD-R002", NotFound;
    /// Somebody changed the thing in the meantime.
    Conflict = "STEAD-R003", Conflict;
    /// The caller may not do this.
    Denied = "STEAD-R004", Denied;
    /// stead does not do this yet.
    NotBuilt = "STEAD-R005", BadInput;
    /// The caller gave no token, or one that is unknown or expired.
    Unauthenticated = "STEAD-R006", Denied;
    /// The manifest names a secret that has no value.
    SecretUnset = "STEAD-R007", BadInput;

    /// The image does not exist in the registry.
    ImageNotFound = "STEAD-I001", Failed;
    /// The registry refused the credentials, or wants some.
    RegistryDenied = "STEAD-I002", Failed;
    /// The registry cannot be reached or keeps failing.
    RegistryUnavailable = "STEAD-I003", Failed;
    /// What arrived is not what its digest or size says.
    ImageCorrupt = "STEAD-I004", Failed;
    /// The image is malformed, hostile, or not for this platform.
    ImageRefused = "STEAD-I005", Failed;
    /// The disk has no room for the image.
    DiskFull = "STEAD-I006", Failed;
    /// The image reference is malformed.
    BadReference = "STEAD-I007", BadInput;
    /// The file or folder given is not an image stead can read.
    NotAnImage = "STEAD-I008", BadInput;
    /// The package is damaged, or holds what no honest package holds.
    PackageRefused = "STEAD-I009", BadInput;
    /// The package is whole, but nothing that runs can be made of it as it is.
    PackageUnfit = "STEAD-I010", BadInput;
    /// A program that packing needs is missing, or failed.
    PackageTool = "STEAD-I011", Failed;
    /// A file or folder of the package cannot be read.
    PackageUnreadable = "STEAD-I012", BadInput;
    /// The base image that the package needs is not here.
    BaseMissing = "STEAD-I013", Failed;
    /// The image holds no site, or one that cannot be served.
    SiteUnfit = "STEAD-I014", BadInput;

    /// The new Release's Instances did not become ready in time.
    NeverReady = "STEAD-E001", Unhealthy;
    /// The new Release's main process ended at once.
    ExitedAtOnce = "STEAD-E002", Unhealthy;
    /// The command cannot be started: missing or not executable.
    CannotStart = "STEAD-E003", Unhealthy;
    /// The Rollout did not finish within its deadline.
    RolloutTimedOut = "STEAD-E004", TimedOut;
    /// The Rollout was replaced by a newer change or aborted by a person.
    RolloutAborted = "STEAD-E005", Failed;
    /// The engine could not do what it was asked.
    EngineFailed = "STEAD-E006", Failed;
    /// The App has no running Instance to enter.
    NoInstance = "STEAD-E007", NotFound;
    /// The new Release answers with more errors, or more slowly, than the old one.
    ReleaseWorse = "STEAD-E008", Unhealthy;
    /// A lifecycle hook failed, or was not done in time.
    HookFailed = "STEAD-E009", Unhealthy;

    /// The platform is not running, or not where the CLI looks.
    PlatformDown = "STEAD-P001", Failed;
    /// The state on disk cannot be read.
    StateCorrupt = "STEAD-P002", Failed;
    /// The machine lacks something stead needs.
    MachineUnfit = "STEAD-P003", Failed;
    /// An error inside stead. A bug.
    Internal = "STEAD-P004", Failed;
    /// Secrets cannot be read: their key is missing, readable by others, or another one.
    SecretsLocked = "STEAD-P005", Failed;
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An error for a person: what happened, and what to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{code}: {message}")]
pub struct UserError {
    /// The code; its page explains more.
    pub code: Code,
    /// What happened, subject first.
    pub message: String,
    /// What to do about it.
    pub hint: String,
}

impl UserError {
    /// An error with its hint.
    pub fn new(code: Code, message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: hint.into() }
    }

    /// What kind of failure it is.
    pub fn kind(&self) -> Kind {
        self.code.kind()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_travel_as_their_text() {
        let mut seen = std::collections::BTreeSet::new();
        for code in Code::ALL {
            assert!(seen.insert(code.as_str()), "{code} is given twice");
            assert_eq!(serde_json::to_string(code).unwrap(), format!("\"{code}\""));
        }
    }
}
