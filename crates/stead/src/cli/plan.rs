//! `stead deploy --plan`: what a deploy would change, field by field and Instance by Instance,
//! as the platform that would do it says. Changes nothing.

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;
use stead_core::api::{BatchPlan, ChangePlan, DeployRequest, PlanView};
use stead_core::fleet::Part;
use stead_core::manifest::{Effect, FieldChange, Manifest, Pause};

use super::deploy::with_digest;
use super::{Context, app_path};
use crate::output::Table;
use crate::output::human::{self, or_dash};
use crate::upload::{Package, PackageView};

pub(super) async fn show(context: &Context, manifest: Manifest) -> Result<()> {
    let plan = ask(context, manifest).await?;
    context.output.show(&plan, |plan| format!("{}\n\nNothing was changed.", text(plan)))
}

async fn ask(context: &Context, manifest: Manifest) -> Result<PlanView> {
    let path = format!("{}/plan", app_path(&manifest.key()));
    let request = DeployRequest { manifest, message: None };
    context.client.post(&path, &request).await
}

/// What a Package consists of, and what would change, as far as that can be said before it is
/// sent.
#[derive(Serialize)]
struct PackagePlan {
    package: PackageView,
    /// `None` while the platform lacks a part: which image it makes is not known then.
    #[serde(flatten)]
    change: Option<PlanView>,
}

/// The plan of a Package. Nothing of it is sent.
pub(super) async fn of_package(
    context: &Context,
    package: &Package,
    mut manifest: Manifest,
) -> Result<()> {
    let (view, image) = package.look(&context.client).await?;
    let change = match image {
        Some(image) => {
            manifest.source = with_digest(&image, &manifest.app);
            Some(ask(context, manifest).await?)
        }
        None => None,
    };
    let plan = PackagePlan { package: view, change };
    context.output.show(&plan, |plan| {
        let mut parts = vec![layers(&plan.package)];
        match &plan.change {
            Some(change) => parts.push(text(change)),
            None => parts.push("A deploy would send this, and make a new image of it.".to_owned()),
        }
        parts.push("Nothing was changed.".to_owned());
        parts.join("\n\n")
    })
}

/// Kind, base and layers of a Package.
fn layers(package: &PackageView) -> String {
    let mut head = package.kind.to_string();
    if let Some(base) = &package.base {
        let made = if package.base_is_here { "" } else { " (not made yet)" };
        head.push_str(&format!(" on {base}{made}"));
    }
    if !package.command.is_empty() {
        head.push_str(&format!(", runs {}", human::plain(&package.command.join(" "))));
    }
    let notes = package.notes.iter().map(|note| format!("\n{}", human::plain(note)));
    let mut table = Table::new(["LAYER", "SIZE", "DIGEST", "SENT"], "no layers");
    for layer in &package.layers {
        table.row([
            layer.what.clone(),
            human::bytes(layer.size),
            layer.diff_id.short().to_owned(),
            if layer.here { "no, it is there" } else { "yes" }.to_owned(),
        ]);
    }
    format!("{head}{}\n\n{}", notes.collect::<String>(), table.finish())
}

fn text(PlanView { app, plan }: &PlanView) -> String {
    let mut parts = Vec::new();
    if plan.new {
        parts.push(format!("{app} would be created"));
    } else if plan.changes.is_empty() {
        parts.push(format!("{app}: no field differs, and the images are the same"));
    } else {
        parts.push(format!("{app} would change\n\n{}", fields(&plan.changes)));
    }
    parts.push(instances(plan));
    if plan.batches.len() > 1 {
        parts.push(batches(&plan.batches));
    }
    if !plan.new {
        parts.push(plan.summary());
    }
    parts.join("\n\n")
}

/// The fields that differ, and what each asks of which part.
pub(super) fn fields(changes: &[FieldChange]) -> String {
    let mut table = Table::new(["FIELD", "FROM", "TO", "NEEDS"], "");
    for change in changes {
        let needs = match change.effect {
            Effect::None => "nothing of a running instance",
            Effect::ResourcesOnly => "new limits, no restart",
            Effect::RestartContainer => "a new container",
            Effect::RecreateSandbox => "a new sandbox",
        };
        let needs = match &change.part {
            Part::Sidecar(name) if change.effect > Effect::None => format!("{needs} of {name}"),
            _ => needs.to_owned(),
        };
        let (from, to) = (short(change.from.as_ref()), short(change.to.as_ref()));
        table.row([change.path.clone(), from, to, needs]);
    }
    table.finish()
}

/// What becomes of each Instance.
pub(super) fn instances(plan: &ChangePlan) -> String {
    let mut table = Table::new(["INSTANCE", "IP", "BATCH", "CHANGE"], "no instances");
    for instance in &plan.instances {
        table.row([
            instance.instance.to_string(),
            or_dash(instance.ip.as_ref()),
            or_dash(instance.batch),
            instance.sentence(),
        ]);
    }
    table.finish()
}

/// The batches, each in a line.
pub(super) fn batches(batches: &[BatchPlan]) -> String {
    let count = batches.len();
    let lines = batches.iter().enumerate().map(|(index, batch)| {
        let mut line = format!("batch {} of {count}: up to {} instances", index + 1, batch.upto);
        if batch.rules {
            line.push_str(", requests by rules");
        }
        if let Some(weight) = batch.weight {
            line.push_str(&format!(", {weight}% of the requests"));
        }
        if index + 1 < count {
            match batch.pause {
                Pause::Manual => line.push_str("; then a person promotes it"),
                Pause::For(span) if span.millis() > 0 => line.push_str(&format!("; then {span}")),
                Pause::For(_) => {}
            }
        }
        line
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A value on one line, shortened.
fn short(value: Option<&Value>) -> String {
    const LONGEST: usize = 40;
    let text = match value {
        None => return "-".to_owned(),
        Some(Value::String(text)) => human::plain(text),
        Some(other) => human::plain(&other.to_string()),
    };
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use stead_core::api::InstancePlan;
    use stead_core::api::package::PackageKind;
    use stead_core::fleet::{Fallback, Way};
    use stead_core::ids::{Digest, Ordinal};
    use stead_core::manifest::{diff, parse};

    use super::*;
    use crate::upload::LayerView;

    fn manifest(rest: &str) -> Manifest {
        parse(&format!("app: web\nsource: web:1\n{rest}"), "t").unwrap()
    }

    fn plan(old: &str, new: &str, way: Way, sidecars: &[&str]) -> String {
        let instance = InstancePlan {
            instance: Ordinal(0),
            ip: Some("10.0.0.1".into()),
            batch: None,
            way: Some(way),
            sidecars: sidecars.iter().map(|name| (*name).to_owned()).collect(),
        };
        let plan = ChangePlan {
            new: false,
            changes: diff(&manifest(old), &manifest(new)),
            instances: vec![instance],
            batches: Vec::new(),
        };
        text(&PlanView { app: "default/web".parse().unwrap(), plan })
    }

    #[test]
    fn the_plan_shows_fields_with_what_they_need() {
        assert_eq!(
            plan("", "env: {A: b}", Way::Handover, &[]),
            "default/web would change\n\n\
             FIELD  FROM  TO  NEEDS\n\
             env.A  -     b   a new container\n\n\
             INSTANCE  IP        BATCH  CHANGE\n\
             0         10.0.0.1  -      is handed over: the new container takes over from the old one \
             when it is ready; keeps its IP\n\n\
             Of 1 instances 1 are restarted, once each."
        );
    }

    #[test]
    fn memory_alone_restarts_nothing() {
        let text = plan("", "resources: {memory: 64Mi}", Way::Update, &[]);
        assert!(text.contains("new limits, no restart"), "{text}");
        assert!(text.contains("it is not restarted"), "{text}");
        assert!(text.contains("Of 1 instances none is restarted."), "{text}");
    }

    #[test]
    fn a_sidecar_changes_by_itself() {
        let sidecar = |image| format!("sidecars: [{{name: log, source: '{image}'}}]");
        let text = plan(&sidecar("log:1"), &sidecar("log:2"), Way::Update, &["log"]);
        assert!(
            text.contains("sidecars.log.source  log:1  log:2  a new container of log"),
            "{text}"
        );
        assert!(
            text.contains("Only sidecars are restarted (log); the app itself is not."),
            "{text}"
        );
    }

    #[test]
    fn a_package_shows_what_would_be_sent() {
        let layer = |what: &str, here| LayerView {
            what: what.to_owned(),
            diff_id: Digest::from_sha256([7; 32]),
            size: 3 << 20,
            here,
        };
        let text = layers(&PackageView {
            kind: PackageKind::Jar,
            base: Some("java:17".parse().unwrap()),
            base_is_here: false,
            layers: vec![layer("dependencies", true), layer("application", false)],
            command: vec!["java".into(), "-jar".into()],
            notes: vec!["a note".into()],
        });
        let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
        assert_eq!(lines[0], "jar on java:17 (not made yet), runs java -jar");
        assert_eq!(lines[1], "a note");
        assert!(
            lines[4].starts_with("dependencies") && lines[4].ends_with("it is there"),
            "{text}"
        );
        assert!(lines[5].contains("3.00 MiB") && lines[5].ends_with("yes"), "{text}");
    }

    #[test]
    fn what_falls_back_says_why() {
        let because = Some(Fallback::ExclusiveVolume { name: "data".into() });
        let text = plan("", "args: [x]", Way::InPlace { because }, &[]);
        assert!(text.contains("because volume data is not shared"), "{text}");
    }
}
