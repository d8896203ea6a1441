//! From cumulative counters of gateways to what came since each was last heard.

use std::collections::BTreeMap;

use stead_core::analysis::Sample;
use stead_core::ids::ReleaseNo;
use stead_core::name::AppKey;
use stead_core::routes::Report;
use stead_core::time::Time;

use super::Totals;
use crate::traffic::process_lives;

/// More gateways than this are never at work at once: those that ended are forgotten.
const MANY: usize = 16;

/// What each gateway last reported.
#[derive(Default)]
pub(super) struct Gateways(BTreeMap<(u32, Time), Counters>);

#[derive(Default)]
struct Counters {
    /// It has told of all its Apps: one that comes now begins at zero.
    whole: bool,
    apps: BTreeMap<AppKey, BTreeMap<ReleaseNo, Sample>>,
}

impl Gateways {
    /// What came since the gateway's last report, by App and Release. What it had counted
    /// before `began`, when nobody listened, is left out.
    pub(super) fn since_last(
        &mut self,
        pid: u32,
        report: &Report,
        began: Time,
    ) -> Vec<(AppKey, Totals)> {
        let id = (pid, report.started);
        // Another process has the pid now.
        self.0.retain(|other, _| other.0 != pid || *other == id);
        if self.0.len() > MANY {
            self.0.retain(|other, _| *other == id || process_lives(other.0));
        }
        let known = self.0.entry(id).or_default();
        let from_zero = known.whole || report.started >= began;
        if !report.partial {
            known.whole = true;
            known.apps.retain(|key, _| report.apps.iter().any(|app| app.app == *key));
        }
        let mut all = Vec::new();
        for app in &report.apps {
            let counted_before = from_zero || known.apps.contains_key(&app.app);
            let last = known.apps.entry(app.app.clone()).or_default();
            // What the gateway does not count any more begins at zero when it comes again.
            last.retain(|number, _| app.releases.iter().any(|one| one.release == *number));
            let mut came = Totals::new();
            for release in &app.releases {
                let now = Sample::of(release);
                let before = last.insert(release.release, now.clone());
                let before = before.filter(|before| before.requests <= now.requests);
                let more = now.since(&before.unwrap_or_default());
                if counted_before && more != Sample::default().since(&Sample::default()) {
                    came.insert(release.release, more);
                }
            }
            if !came.is_empty() {
                all.push((app.app.clone(), came));
            }
        }
        all
    }
}
