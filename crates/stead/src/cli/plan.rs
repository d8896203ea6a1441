//! `stead deploy --plan`: what a deploy would change, field by field and Instance by
//! Instance. It asks and never changes anything.

use std::collections::BTreeSet;

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;
use stead_core::api::{AppView, InstanceView, ReleaseView};
use stead_core::error::{Code, UserError};
use stead_core::ids::Ordinal;
use stead_core::manifest::{Effect, FieldChange, Manifest, Strategy, diff, strongest};
use stead_core::name::AppKey;

use super::{Context, app_path};
use crate::output::Table;
use crate::output::human::or_dash;

/// What would change.
#[derive(Serialize)]
struct Plan {
    app: AppKey,
    /// There is no such App yet.
    new: bool,
    changes: Vec<FieldChange>,
    instances: Vec<InstancePlan>,
}

#[derive(Serialize)]
struct InstancePlan {
    instance: Ordinal,
    ip: Option<String>,
    change: InstanceChange,
}

#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
enum InstanceChange {
    Create,
    ReplaceContainer,
    ReplaceSandbox,
    Remove,
}

impl InstanceChange {
    fn sentence(self) -> &'static str {
        match self {
            Self::Create => "is created",
            Self::ReplaceContainer => "gets a new container in the same sandbox, keeps its IP",
            Self::ReplaceSandbox => "gets a new sandbox and a new IP",
            Self::Remove => "is removed",
        }
    }
}

pub(super) async fn show(context: &Context, manifest: &Manifest) -> Result<()> {
    let path = app_path(&manifest.key());
    let releases = match context.client.get::<Vec<ReleaseView>>(&format!("{path}/releases")).await {
        Ok(releases) => releases,
        Err(error) => match error.downcast_ref::<UserError>() {
            Some(error) if error.code == Code::NotFound => Vec::new(),
            _ => return Err(error),
        },
    };
    let current = releases.into_iter().find(|view| view.current);
    let mut running = None;
    if let Some(view) = current {
        let app: AppView = context.client.get(&path).await?;
        let instances = context.client.get(&format!("{path}/instances")).await?;
        let settings = view.release.settings;
        running = Some(Running { settings, wanted: app.instances, instances });
    }
    let plan = make(manifest, running.as_ref());
    context.output.show(&plan, text)
}

/// What runs before the change.
struct Running {
    settings: Manifest,
    /// Wanted Instances: the App may have been scaled by hand.
    wanted: u32,
    instances: Vec<InstanceView>,
}

fn make(manifest: &Manifest, running: Option<&Running>) -> Plan {
    let changes = running.map(|now| diff(&now.settings, manifest)).unwrap_or_default();
    let replaced = match (manifest.rollout.strategy(), strongest(&changes)) {
        (Strategy::Recreate, _) | (_, Effect::RecreateSandbox) => InstanceChange::ReplaceSandbox,
        _ => InstanceChange::ReplaceContainer,
    };
    // Scaling by hand outlives a deploy whose manifest says the number it said before.
    let wanted = match running {
        Some(now) if now.settings.instances == manifest.instances => now.wanted,
        _ => manifest.instances,
    };
    let views = running.map(|now| now.instances.as_slice()).unwrap_or_default();
    let ordinals = views.iter().map(|view| view.instance);
    let all: BTreeSet<Ordinal> = ordinals.chain((0..wanted).map(Ordinal)).collect();
    let instances = all.into_iter().map(|instance| {
        let view = views.iter().find(|view| view.instance == instance);
        let change = match view {
            None => InstanceChange::Create,
            Some(_) if instance.0 >= wanted => InstanceChange::Remove,
            Some(_) => replaced,
        };
        InstancePlan { instance, ip: view.and_then(|view| view.ip.clone()), change }
    });
    let instances = instances.collect();
    Plan { app: manifest.key(), new: running.is_none(), changes, instances }
}

fn text(plan: &Plan) -> String {
    let mut parts = Vec::new();
    if plan.new {
        parts.push(format!("{} would be created", plan.app));
    } else if plan.changes.is_empty() {
        parts.push(format!(
            "{}: no field differs; a deploy resolves the image's tag again and restarts",
            plan.app
        ));
    } else {
        let mut table = Table::new(["FIELD", "FROM", "TO", "NEEDS"], "");
        for change in &plan.changes {
            let needs = match change.effect {
                Effect::None => "nothing of a running instance",
                Effect::ResourcesOnly => "new limits",
                Effect::RestartContainer => "a new container",
                Effect::RecreateSandbox => "a new sandbox",
            };
            table.row([
                change.path.clone(),
                short(change.from.as_ref()),
                short(change.to.as_ref()),
                needs.to_owned(),
            ]);
        }
        parts.push(format!("{} would change\n\n{}", plan.app, table.finish()));
    }
    let mut table = Table::new(["INSTANCE", "IP", "CHANGE"], "no instances");
    for instance in &plan.instances {
        table.row([
            instance.instance.to_string(),
            or_dash(instance.ip.as_ref()),
            instance.change.sentence().to_owned(),
        ]);
    }
    parts.push(table.finish());
    parts.push("Nothing was changed.".to_owned());
    parts.join("\n\n")
}

/// A value on one line, shortened.
fn short(value: Option<&Value>) -> String {
    const LONGEST: usize = 40;
    let text = match value {
        None => return "-".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use stead_core::manifest::parse;

    use super::*;

    fn manifest(rest: &str) -> Manifest {
        parse(&format!("app: web\nsource: web:1\n{rest}"), "t").unwrap()
    }

    fn instance(n: u32) -> InstanceView {
        InstanceView {
            instance: Ordinal(n),
            ip: Some(format!("10.0.0.{n}")),
            revision: None,
            state: "ready".into(),
            container: None,
            since: None,
            health: None,
            traffic: None,
            crashes: 0,
            last_exit: None,
            trouble: None,
        }
    }

    fn running(settings: &str, count: u32) -> Running {
        let instances = (0..count).map(instance).collect();
        Running { settings: manifest(settings), wanted: count, instances }
    }

    fn changes(old: Option<&str>, new: &str, count: u32) -> Vec<InstanceChange> {
        let old = old.map(|settings| running(settings, count));
        let plan = make(&manifest(new), old.as_ref());
        plan.instances.iter().map(|instance| instance.change).collect()
    }

    #[test]
    fn each_instance_is_told_what_becomes_of_it() {
        use InstanceChange::{Create, Remove, ReplaceContainer, ReplaceSandbox};
        assert_eq!(changes(None, "instances: 2", 0), [Create, Create]);
        assert_eq!(changes(Some(""), "env: {A: b}", 1), [ReplaceContainer]);
        assert_eq!(changes(Some(""), "rollout: {strategy: recreate}", 1), [ReplaceSandbox]);
        assert_eq!(changes(Some(""), "volumes: [{name: d, mount: /d}]", 1), [ReplaceSandbox]);
        assert_eq!(changes(Some(""), "", 3), [ReplaceContainer; 3], "scaled by hand to 3");
        assert_eq!(changes(Some("instances: 2"), "instances: 1", 2), [ReplaceContainer, Remove]);
    }

    #[test]
    fn the_plan_shows_fields_with_what_they_need() {
        let plan = make(&manifest("env: {A: b}"), Some(&running("", 1)));
        assert_eq!(
            text(&plan),
            "default/web would change\n\n\
             FIELD  FROM  TO  NEEDS\n\
             env.A  -     b   a new container\n\n\
             INSTANCE  IP        CHANGE\n\
             0         10.0.0.0  gets a new container in the same sandbox, keeps its IP\n\n\
             Nothing was changed."
        );
    }
}
