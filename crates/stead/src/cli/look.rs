//! Commands that look: `apps`, `status`, `ps`, `releases`, `waterfall`, `ledger`, `top`.

use std::time::Duration;

use anyhow::Result;
use clap::Args;
use serde::Serialize;
use stead_core::api::{
    AppView, ContainerView, InstanceView, LedgerView, NamespaceView, ReleaseView, Waterfall,
};
use stead_core::engine::Usage;
use stead_core::fleet::{ArchiveSeen, Health, JvmSeen, TrafficState};
use stead_core::ids::{Ordinal, ReleaseNo, RolloutNo};
use stead_core::name::{AppKey, AppName, NamespaceName};
use stead_core::time::Micros;

use super::{Context, app_path};
use crate::output::human::{self, or_dash};
use crate::output::{Table, waterfall as drawing};

#[derive(Debug, Args)]
pub(super) struct OfApp {
    /// The App
    pub(super) app: AppName,
}

#[derive(Debug, Args)]
pub(super) struct Apps {
    /// Apps of every Namespace
    #[arg(short = 'A', long)]
    all_namespaces: bool,
}

#[derive(Debug, Args)]
pub(super) struct OfRollout {
    /// The App
    app: AppName,
    /// Number of the Rollout [default: the last one]
    rollout: Option<RolloutNo>,
}

#[derive(Debug, Args)]
pub(super) struct OfRelease {
    /// The App
    app: AppName,
    /// Number of the Release [default: all]
    release: Option<ReleaseNo>,
}

#[derive(Debug, Args)]
pub(super) struct Top {
    /// The App [default: all of the Namespace]
    app: Option<AppName>,
    /// Over how many seconds CPU time is measured
    #[arg(long, value_name = "SECONDS", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=60))]
    interval: u64,
}

pub(super) async fn apps(context: &Context, args: &Apps) -> Result<()> {
    let namespaces: Vec<NamespaceName> = if args.all_namespaces {
        let all: Vec<NamespaceView> = context.client.get("/namespaces").await?;
        all.into_iter().map(|namespace| namespace.name).collect()
    } else {
        vec![context.namespace()]
    };
    let mut apps: Vec<AppView> = Vec::new();
    for namespace in namespaces {
        apps.extend(apps_of(context, &namespace).await?);
    }
    context.output.show(&apps, |apps| apps_table(apps))
}

async fn apps_of(context: &Context, namespace: &NamespaceName) -> Result<Vec<AppView>> {
    context.client.get(&format!("/namespaces/{namespace}/apps")).await
}

fn apps_table(apps: &[AppView]) -> String {
    let mut table = Table::new(
        ["APP", "STATE", "READY", "RELEASE", "IMAGE", "URL"],
        "no apps; `stead deploy IMAGE --app NAME` makes one",
    );
    for app in apps {
        table.row([
            app.key.to_string(),
            app.state.clone(),
            if app.site { "site".to_owned() } else { format!("{}/{}", app.ready, app.instances) },
            or_dash(app.release),
            or_dash(app.image.as_deref().map(human::image)),
            or_dash(app.urls.first()),
        ]);
    }
    table.finish()
}

pub(super) async fn status(context: &Context, app: &AppName) -> Result<()> {
    let path = context.path(app);
    let view: AppView = context.client.get(&path).await?;
    let instances: Vec<InstanceView> = context.client.get(&format!("{path}/instances")).await?;
    let status = Status { app: view, instances };
    context.output.show(&status, status_text)
}

/// What `status` shows.
#[derive(Serialize)]
struct Status {
    #[serde(flatten)]
    app: AppView,
    #[serde(rename = "instance_list")]
    instances: Vec<InstanceView>,
}

fn status_text(status: &Status) -> String {
    let Status { app, instances } = status;
    let now = human::now();
    let mut lines = vec![format!("{}  {}", app.key, app.state)];
    let mut line = |name: &str, value: String| lines.push(format!("  {name:<10}{value}"));
    if let Some(why) = &app.why {
        line("why", human::plain(why));
    }
    for url in &app.urls {
        line("url", human::plain(url));
    }
    if let Some(release) = app.release {
        line("release", release.to_string());
    }
    if let Some(image) = &app.image {
        line("image", human::plain(image));
    }
    if app.site {
        line("served", "by the gateway, from files".to_owned());
    } else {
        line("ready", format!("{} of {} instances", app.ready, app.instances));
    }
    if let Some(jvm) = &app.jvm {
        line("jvm", human::plain(&jvm_text(jvm)));
        for note in &jvm.notes {
            line("note", human::plain(note));
        }
    }
    line("created", human::ago(now, app.created));
    if let Some(rollout) = &app.rollout {
        let ago = human::ago(now, rollout.started);
        let by = human::plain(&rollout.by);
        line(
            "rollout",
            format!("{} {}, begun {ago} by {by}", rollout.number, rollout.phase.name()),
        );
        if let Some(message) = &rollout.message {
            line("message", human::plain(message));
        }
        if let Some(why) = rollout.failure() {
            line("failure", format!("{}: {}", why.code, human::plain(&why.message)));
            line("help", human::plain(&why.hint));
        }
    }
    for instance in instances {
        if let Some(trouble) = &instance.trouble {
            let text = human::plain(&trouble.message);
            line("trouble", format!("instance {}: {}: {text}", instance.instance, trouble.code));
        }
    }
    if app.site {
        return lines.join("\n");
    }
    lines.push(String::new());
    lines.push(instances_table(instances));
    let aside =
        |container: &ContainerView| !container.part.is_main() || container.state == "frozen";
    if instances.iter().flat_map(|instance| &instance.containers).any(aside) {
        lines.push(String::new());
        lines.push(containers_table(instances));
    }
    lines.join("\n")
}

/// Which virtual machine, and what speeds its starts up.
fn jvm_text(jvm: &JvmSeen) -> String {
    let start = match &jvm.archive {
        ArchiveSeen::Awaited => "an archive of its classes is still to be recorded".to_owned(),
        ArchiveSeen::Recording => "an archive of its classes is being recorded".to_owned(),
        ArchiveSeen::Kept(kept) => format!(
            "start {} → {} ({:.1}x, {} {})",
            seconds(kept.plain),
            seconds(kept.fast),
            kept.gain(),
            kept.kind.as_str(),
            human::bytes(kept.bytes)
        ),
        ArchiveSeen::None { why } => format!("starts without an archive: {why}"),
    };
    format!("{}, {start}", jvm.jdk)
}

/// A length that is compared with another one: a tenth of a second is enough.
fn seconds(length: Micros) -> String {
    format!("{:.1} s", length.0 as f64 / 1e6)
}

pub(super) async fn ps(context: &Context, app: &AppName) -> Result<()> {
    let instances: Vec<InstanceView> =
        context.client.get(&format!("{}/instances", context.path(app))).await?;
    context.output.show(&instances, |instances| {
        format!("{}\n\n{}", instances_table(instances), containers_table(instances))
    })
}

/// Every Container, frozen ones and sidecars included. Another id means another start.
fn containers_table(instances: &[InstanceView]) -> String {
    let now = human::now();
    let mut table = Table::new(
        ["INSTANCE", "PART", "SLOT", "RELEASE", "STATE", "SINCE", "CONTAINER"],
        "no containers",
    );
    for instance in instances {
        for container in &instance.containers {
            let current = container.part.is_main() && container.slot == instance.slot;
            table.row([
                instance.instance.to_string(),
                container.part.to_string(),
                format!("{}{}", container.slot, if current { " *" } else { "" }),
                container.revision.release.to_string(),
                container.state.clone(),
                or_dash(container.since.map(|since| human::ago(now, since))),
                container.id.to_string(),
            ]);
        }
    }
    table.finish()
}

fn instances_table(instances: &[InstanceView]) -> String {
    let now = human::now();
    let mut table = Table::new(
        [
            "INSTANCE",
            "IP",
            "RELEASE",
            "STATE",
            "HEALTH",
            "TRAFFIC",
            "SINCE",
            "CRASHES",
            "LAST EXIT",
        ],
        "no instances",
    );
    for instance in instances {
        let exit = instance.last_exit.map(|exit| match exit.oom_killed {
            true => format!("{} (out of memory)", exit.code),
            false => exit.code.to_string(),
        });
        table.row([
            instance.instance.to_string(),
            or_dash(instance.ip.as_ref()),
            or_dash(instance.revision.map(|revision| revision.release)),
            instance.state.clone(),
            or_dash(instance.health.map(health_word)),
            or_dash(instance.traffic.map(traffic_word)),
            or_dash(instance.since.map(|since| human::ago(now, since))),
            instance.crashes.to_string(),
            or_dash(exit),
        ]);
    }
    table.finish()
}

fn health_word(health: Health) -> &'static str {
    match health {
        Health::Starting => "starting",
        Health::Ready => "ready",
        Health::Unready => "unready",
        Health::Dead => "dead",
    }
}

fn traffic_word(traffic: TrafficState) -> &'static str {
    match traffic {
        TrafficState::Detached => "detached",
        TrafficState::Attached => "attached",
        TrafficState::Draining => "draining",
    }
}

pub(super) async fn releases(context: &Context, app: &AppName) -> Result<()> {
    let releases: Vec<ReleaseView> =
        context.client.get(&format!("{}/releases", context.path(app))).await?;
    context.output.show(&releases, |releases| releases_table(releases))
}

fn releases_table(releases: &[ReleaseView]) -> String {
    let now = human::now();
    let mut table =
        Table::new(["RELEASE", "IMAGE", "DIGEST", "MADE", "BY", "MESSAGE"], "no releases");
    for ReleaseView { release, current } in releases {
        table.row([
            format!("{}{}", release.number, if *current { " *" } else { "" }),
            human::image(&release.reference),
            release.image.short().to_owned(),
            human::ago(now, release.created),
            release.by.clone(),
            release.message.clone().unwrap_or_default(),
        ]);
    }
    table.finish()
}

pub(super) async fn waterfall(context: &Context, args: &OfRollout) -> Result<()> {
    let waterfall = waterfall_of(context, &context.key(&args.app), args.rollout).await?;
    context.output.show(&waterfall, drawing::draw)
}

/// The waterfall of a Rollout, the last one if none is named.
pub(super) async fn waterfall_of(
    context: &Context,
    key: &AppKey,
    rollout: Option<RolloutNo>,
) -> Result<Waterfall> {
    let query = rollout.map_or(String::new(), |number| format!("?rollout={number}"));
    context.client.get(&format!("{}/waterfall{query}", app_path(key))).await
}

pub(super) async fn ledger(context: &Context, args: &OfRelease) -> Result<()> {
    let query = args.release.map_or(String::new(), |number| format!("?release={number}"));
    let path = format!("{}/ledger{query}", context.path(&args.app));
    let ledgers: Vec<LedgerView> = context.client.get(&path).await?;
    context.output.show(&ledgers, |ledgers| ledger_table(ledgers))
}

fn ledger_table(ledgers: &[LedgerView]) -> String {
    let mut table = Table::new(
        ["RELEASE", "RECEIVED", "COMPLETED", "ABORTED", "FAILED", "IN FLIGHT", "PARKED", "BALANCE"],
        "no requests yet",
    );
    let mut reasons = Vec::new();
    for LedgerView { release, ledger } in ledgers {
        table.row([
            release.to_string(),
            ledger.received.to_string(),
            ledger.completed.to_string(),
            ledger.client_aborted.to_string(),
            ledger.failures().to_string(),
            ledger.in_flight.to_string(),
            ledger.parked.to_string(),
            if ledger.balances() { "ok" } else { "OFF" }.to_owned(),
        ]);
        for (reason, count) in &ledger.failed {
            reasons.push(format!("release {release} failed: {count} {}", human::plain(reason)));
        }
    }
    [vec![table.finish()], reasons].concat().join("\n")
}

/// What one Instance used.
#[derive(Serialize)]
struct Used {
    app: AppKey,
    instance: Ordinal,
    /// CPU in thousandths of a processor.
    cpu_millis: u64,
    /// Bytes.
    memory: u64,
    pids: u64,
}

pub(super) async fn top(context: &Context, args: &Top) -> Result<()> {
    let keys: Vec<AppKey> = match &args.app {
        Some(app) => vec![context.key(app)],
        None => {
            apps_of(context, &context.namespace()).await?.into_iter().map(|app| app.key).collect()
        }
    };
    let before = usages(context, &keys).await?;
    let begun = tokio::time::Instant::now();
    // The interval is what is measured, not a wait for something.
    tokio::time::sleep(Duration::from_secs(args.interval)).await;
    let after = usages(context, &keys).await?;
    let used = compare(&before, &after, begun.elapsed());
    context.output.show(&used, |used| {
        let mut table = Table::new(["APP", "INSTANCE", "CPU", "MEMORY", "PIDS"], "no instances");
        for used in used {
            table.row([
                used.app.to_string(),
                used.instance.to_string(),
                human::cpu(used.cpu_millis),
                human::bytes(used.memory),
                used.pids.to_string(),
            ]);
        }
        table.finish()
    })
}

async fn usages(context: &Context, keys: &[AppKey]) -> Result<Vec<(AppKey, Usage)>> {
    let mut all = Vec::new();
    for key in keys {
        let usages: Vec<Usage> = context.client.get(&format!("{}/usage", app_path(key))).await?;
        all.extend(usages.into_iter().map(|usage| (key.clone(), usage)));
    }
    Ok(all)
}

fn compare(before: &[(AppKey, Usage)], after: &[(AppKey, Usage)], over: Duration) -> Vec<Used> {
    let micros = u64::try_from(over.as_micros()).unwrap_or(u64::MAX).max(1);
    let earlier = |key: &AppKey, instance| {
        before.iter().find(|(k, u)| k == key && u.instance == instance).map(|(_, u)| u.cpu_micros)
    };
    let used = after.iter().map(|(key, usage)| {
        // A Container started in between counts from zero.
        let base = earlier(key, usage.instance).filter(|base| *base <= usage.cpu_micros);
        Used {
            app: key.clone(),
            instance: usage.instance,
            cpu_millis: (usage.cpu_micros - base.unwrap_or(0)).saturating_mul(1000) / micros,
            memory: usage.memory,
            pids: usage.pids,
        }
    });
    used.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use stead_core::api::Ledger;
    use stead_core::fleet::{ArchiveKept, ArchiveKind};
    use stead_core::time::Time;

    use super::*;

    #[test]
    fn what_a_start_gains_is_shown_or_why_it_gains_nothing() {
        let kept = ArchiveKept {
            kind: ArchiveKind::AppCds,
            bytes: 40 << 20,
            plain: Micros::from_millis(2_900),
            fast: Micros::from_millis(1_700),
            made: Time(0),
        };
        let mut jvm = JvmSeen {
            release: ReleaseNo(1),
            jdk: "Debian 17.0.15".to_owned(),
            options: Vec::new(),
            archive: ArchiveSeen::Kept(kept),
            notes: Vec::new(),
        };
        let gain = "Debian 17.0.15, start 2.9 s → 1.7 s (1.7x, AppCDS 40.0 MiB)";
        assert_eq!(jvm_text(&jvm), gain);
        jvm.archive = ArchiveSeen::None { why: "jvm.archive is off".to_owned() };
        let none = "Debian 17.0.15, starts without an archive: jvm.archive is off";
        assert_eq!(jvm_text(&jvm), none);
    }

    #[test]
    fn a_ledger_that_does_not_add_up_shows() {
        let good = Ledger {
            received: 10,
            completed: 7,
            client_aborted: 1,
            failed: BTreeMap::from([("app: connection closed".to_owned(), 1)]),
            in_flight: 1,
            parked: 3,
        };
        let bad = Ledger { completed: 6, ..good.clone() };
        let text = ledger_table(&[
            LedgerView { release: ReleaseNo(1), ledger: good },
            LedgerView { release: ReleaseNo(2), ledger: bad },
        ]);
        assert_eq!(
            text,
            "RELEASE  RECEIVED  COMPLETED  ABORTED  FAILED  IN FLIGHT  PARKED  BALANCE\n\
             1        10        7          1        1       1          3       ok\n\
             2        10        6          1        1       1          3       OFF\n\
             release 1 failed: 1 app: connection closed\n\
             release 2 failed: 1 app: connection closed"
        );
    }

    #[test]
    fn cpu_is_what_was_used_in_between() {
        let key: AppKey = "default/web".parse().unwrap();
        let at = |cpu_micros| Usage { instance: Ordinal(0), cpu_micros, memory: 1, pids: 1 };
        let one = |usage| vec![(key.clone(), usage)];
        let millis = |before, after| {
            compare(&one(at(before)), &one(at(after)), Duration::from_secs(1))[0].cpu_millis
        };
        assert_eq!(millis(1_000_000, 1_250_000), 250);
        assert_eq!(millis(9_000_000, 100_000), 100, "another container: its whole time");
    }
}
