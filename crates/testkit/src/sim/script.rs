//! What a simulated image does, chosen by its reference.

use stead_core::error::{Code, UserError};
use stead_core::ids::Digest;
use stead_core::time::Micros;

/// What the program of a simulated image does.
///
/// The last part of the reference before its tag or digest names the behaviour:
///
/// | name | behaviour |
/// |---|---|
/// | `ready`, and every name not listed | ready 1 ms after its start |
/// | `slow` | ready 50 ms after its start |
/// | `slow-stop` | takes 20 ms to end after its stop signal |
/// | `stubborn` | ends only when its grace is over |
/// | `never-ready` | runs and never answers |
/// | `crash` | ends with exit code 3 after 1 ms, never ready |
/// | `crash-later` | ready, and ends with exit code 3 after 200 ms |
/// | `oom` | ready, and killed for lack of memory after 20 ms |
/// | `cannot-start` | its command does not exist |
/// | `missing` | its reference resolves to nothing |
/// | `refused` | resolves, and its pull fails for good |
/// | `registry-down` | resolves, and its pull fails as if the registry were away |
/// | `bad-hook` | ready, and every hook of it fails |
/// | `endless-hook` | ready, and no hook of it ends |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Script {
    /// From the start until it is ready; `None`: never.
    pub ready_after: Option<Micros>,
    /// From the start until it ends by itself.
    pub ends: Option<Ending>,
    /// From the stop signal to the end; `None`: it ignores the signal.
    pub stop_takes: Option<Micros>,
    /// Why its pull fails.
    pub pull_fails: Option<Code>,
    /// Whether its command exists.
    pub starts: bool,
    /// Whether its reference resolves.
    pub resolves: bool,
    /// What becomes of its hooks.
    pub hooks: HookScript,
}

/// What becomes of the hooks of a Release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookScript {
    /// They do what they should.
    Succeeds,
    /// They fail.
    Fails,
    /// They do not end.
    Hangs,
}

/// How a program ends by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ending {
    /// How long after its start.
    pub after: Micros,
    /// With which exit code.
    pub code: i32,
    /// Whether the kernel ended it for lack of memory.
    pub oom_killed: bool,
}

impl Script {
    /// Whether it becomes ready and stays so.
    pub fn works(&self) -> bool {
        self.resolves
            && self.pull_fails.is_none()
            && self.starts
            && self.ready_after.is_some()
            && self.ends.is_none()
            && self.hooks == HookScript::Succeeds
    }
}

const WELL_BEHAVED: Script = Script {
    ready_after: Some(Micros::from_millis(1)),
    ends: None,
    stop_takes: Some(Micros::from_millis(1)),
    pull_fails: None,
    starts: true,
    resolves: true,
    hooks: HookScript::Succeeds,
};

/// The behaviour that `reference` names.
pub fn script(reference: &str) -> Script {
    let ending = |millis, code, oom_killed| {
        Some(Ending { after: Micros::from_millis(millis), code, oom_killed })
    };
    match behaviour(reference) {
        "slow" => Script { ready_after: Some(Micros::from_millis(50)), ..WELL_BEHAVED },
        "slow-stop" => Script { stop_takes: Some(Micros::from_millis(20)), ..WELL_BEHAVED },
        "stubborn" => Script { stop_takes: None, ..WELL_BEHAVED },
        "never-ready" => Script { ready_after: None, ..WELL_BEHAVED },
        "crash" => Script { ready_after: None, ends: ending(1, 3, false), ..WELL_BEHAVED },
        "crash-later" => Script { ends: ending(200, 3, false), ..WELL_BEHAVED },
        "oom" => Script { ends: ending(20, 137, true), ..WELL_BEHAVED },
        "cannot-start" => Script { starts: false, ..WELL_BEHAVED },
        "bad-hook" => Script { hooks: HookScript::Fails, ..WELL_BEHAVED },
        "endless-hook" => Script { hooks: HookScript::Hangs, ..WELL_BEHAVED },
        "missing" => Script { resolves: false, ..WELL_BEHAVED },
        "refused" => Script { pull_fails: Some(Code::ImageRefused), ..WELL_BEHAVED },
        "registry-down" => Script { pull_fails: Some(Code::RegistryUnavailable), ..WELL_BEHAVED },
        _ => WELL_BEHAVED,
    }
}

/// The last part of a reference without its tag and digest.
fn behaviour(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or(reference);
    let last = name.rsplit('/').next().unwrap_or(name);
    last.split(':').next().unwrap_or(last)
}

/// The digest that `reference` names: what it says, or one that follows from its text.
pub fn resolve(reference: &str) -> Result<Digest, UserError> {
    if let Some((_, digest)) = reference.split_once('@') {
        return digest.parse().map_err(|error: stead_core::ids::BadDigest| {
            UserError::new(Code::BadReference, error.to_string(), "give the digest as text")
        });
    }
    if !script(reference).resolves {
        return Err(UserError::new(
            Code::ImageNotFound,
            format!("image {reference} does not exist"),
            "look for a mistake in its name",
        ));
    }
    Ok(digest_of(reference))
}

/// The digest that follows from a text.
pub fn digest_of(text: &str) -> Digest {
    digest_of_bytes(text.as_bytes())
}

pub(super) fn digest_of_bytes(bytes: &[u8]) -> Digest {
    use sha2::Digest as _;
    Digest::from_sha256(sha2::Sha256::digest(bytes).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_chooses_the_behaviour() {
        assert!(script("sim/never-ready:1").ready_after.is_none());
        assert!(script("host:5000/sim/never-ready").ready_after.is_none());
        assert_eq!(script("sim/web:2"), WELL_BEHAVED);
        assert_eq!(resolve("sim/missing:1").unwrap_err().code, Code::ImageNotFound);
        let digest = resolve("sim/web:1").unwrap();
        assert_ne!(digest, resolve("sim/web:2").unwrap());
        assert_eq!(resolve(&format!("sim/web@{digest}")).unwrap(), digest);
    }
}
