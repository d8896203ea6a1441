//! Finds the known word that a person probably meant.

/// What other tools call the keys of ours.
const FOREIGN: [(&str, &str); 38] = [
    ("autoscaling", "scale"),
    ("batch", "batches"),
    ("canary", "batches"),
    ("cmd", "args"),
    ("configs", "files"),
    ("container_name", "app"),
    ("containers", "sidecars"),
    ("cpus", "resources.cpu"),
    ("cpu", "resources.cpu"),
    ("domain", "http.hosts"),
    ("domains", "http.hosts"),
    ("entrypoint", "command"),
    ("environment", "env"),
    ("healthcheck", "health"),
    ("host", "http.hosts"),
    ("hosts", "http.hosts"),
    ("image", "source"),
    ("initContainers", "init"),
    ("interval", "period"),
    ("livenessProbe", "health.liveness"),
    ("mem", "resources.memory"),
    ("mem_limit", "resources.memory"),
    ("memory", "resources.memory"),
    ("mountPath", "mount"),
    ("name", "app"),
    ("path", "http"),
    ("periodSeconds", "period"),
    ("port", "http.port"),
    ("readinessProbe", "health.readiness"),
    ("replicas", "instances"),
    ("retries", "failures"),
    ("startupProbe", "health.startup"),
    ("steps", "batches"),
    ("stop_grace_period", "lifecycle.grace"),
    ("strategy", "rollout.strategy"),
    ("terminationGracePeriodSeconds", "lifecycle.grace"),
    ("timeoutSeconds", "timeout"),
    ("workdir", "working_dir"),
];

/// Our name for a key of another tool, where `known` has it.
pub(super) fn translated(key: &str, known: &[&str]) -> Option<&'static str> {
    let ours = FOREIGN.iter().filter(|(theirs, _)| *theirs == key).map(|(_, ours)| *ours);
    ours.into_iter().find(|ours| known.contains(&ours.split('.').next().unwrap_or(ours)))
}

/// The word nearest to `text`, if it is near enough to have been meant.
pub(super) fn nearest<'a>(text: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let text: Vec<char> = plain(text).take(40).collect();
    let (distance, word) = known
        .map(|word| (distance(&text, &plain(word).collect::<Vec<_>>()), word))
        .min_by_key(|(distance, _)| *distance)?;
    let allowed = text.len().max(word.len()) / 3;
    (distance <= allowed.max(1) && distance < text.len()).then_some(word)
}

/// A word without what people mix up: case, `-` and `_`.
fn plain(word: &str) -> impl Iterator<Item = char> {
    word.chars().filter(|c| !matches!(c, '-' | '_')).map(|c| c.to_ascii_lowercase())
}

/// Edits between two words: inserted, dropped, changed and swapped letters
/// (optimal string alignment; Damerau 1964).
fn distance(a: &[char], b: &[char]) -> usize {
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let changed = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
                let best = changed.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
                let swapped = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                if swapped { best.min(rows[i - 2][j - 2] + 1) } else { best }
            };
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn near(text: &str) -> Option<&str> {
        nearest(text, ["startup", "readiness", "liveness", "in-place"].into_iter())
    }

    #[test]
    fn a_slip_is_found_and_a_stranger_is_not() {
        assert_eq!(near("redyness"), Some("readiness"));
        assert_eq!(near("lvieness"), Some("liveness"));
        assert_eq!(near("InPlace"), Some("in-place"));
        assert_eq!(near("banana"), None);
        assert_eq!(near(""), None);
    }

    #[test]
    fn words_of_other_tools_are_known_where_they_make_sense() {
        assert_eq!(translated("replicas", &["app", "instances"]), Some("instances"));
        assert_eq!(translated("port", &["app", "http"]), Some("http.port"));
        assert_eq!(translated("replicas", &["period"]), None);
    }
}
