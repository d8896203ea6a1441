//! Checks of where images come from: registries, and what is installed on the machine.

use std::path::PathBuf;

use stead_core::error::Code;
use stead_core::registry::{Login, RegistryChecked};
use stead_core::secret::Secret;

use super::super::stage::{Stage, Verdict};
use super::{equal, refused};

pub(super) async fn a_wrong_login_is_denied(stage: &mut Stage) -> Verdict {
    let there = stage.registries();
    let password = Secret::new("wrong".into()).expect("it is a password");
    let wrong = Login { password, ..there.login.clone() };
    let answer = stage.engine().check_registry(&there.guarded, Some(&wrong)).await;
    refused("a wrong login", answer, Code::RegistryDenied)?;
    let right = stage.engine().check_registry(&there.guarded, Some(&there.login)).await;
    equal("the right one", &right, &Ok(RegistryChecked::Accepted))?;
    let none = stage.engine().check_registry(&there.guarded, None).await;
    equal("whether it answers", &none, &Ok(RegistryChecked::Accepted))
}

pub(super) async fn a_registry_without_logins_says_so(stage: &mut Stage) -> Verdict {
    let there = stage.registries();
    let answer = stage.engine().check_registry(&there.open, Some(&there.login)).await;
    equal("a login nobody wants", &answer, &Ok(RegistryChecked::WantsNone))
}

pub(super) async fn a_registry_that_is_away_is_no_wrong_login(stage: &mut Stage) -> Verdict {
    let there = stage.registries();
    let answer = stage.engine().check_registry(&there.away, Some(&there.login)).await;
    refused("a registry that is away", answer, Code::RegistryUnavailable).map(drop)
}

pub(super) async fn an_installed_runtime_makes_the_same_base_again(stage: &mut Stage) -> Verdict {
    let failed = |error| format!("it fails: {error}");
    let all = stage.engine().host_runtimes().await.map_err(failed)?;
    let installed = all.last().ok_or("no runtime is installed: `cargo xtask prepare`")?;
    let path = Some(PathBuf::from(&installed.path));
    let first = stage.engine().make_base(&installed.base, path).await.map_err(failed)?;
    equal("what it was made of", &first.runtime, installed)?;
    let again = stage.engine().make_base(&installed.base, None).await.map_err(failed)?;
    equal("the base made again", &again.image.digest, &first.image.digest)?;
    equal("images", &stage.images().await?, &vec![first.image.digest])
}

pub(super) async fn a_runtime_that_is_not_installed_makes_no_base(stage: &mut Stage) -> Verdict {
    let base = "java:999".parse().expect("it is a name");
    let answer = stage.engine().make_base(&base, None).await;
    let error = refused("a runtime nobody has", answer, Code::PackageUnfit)?;
    equal("whether the error names it", &error.message.contains("java:999"), &true)?;
    equal("images", &stage.images().await?, &vec![])
}
