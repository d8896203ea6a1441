//! From host and path to App, in two steps: a hash of the host, then its few prefixes.
//!
//! Where two Apps claim the same host and prefix, the one whose key sorts first has it, so
//! that every gateway decides alike; the control plane should not let it come to that.

use std::borrow::Cow;
use std::collections::HashMap;

use super::RouteTable;
use crate::name::AppKey;

/// Finds what belongs to a host and a path. `T` is what the caller keeps per App.
#[derive(Debug, Clone)]
pub struct HostIndex<T> {
    hosts: HashMap<Box<str>, Vec<(Box<str>, T)>>,
}

impl<T> Default for HostIndex<T> {
    fn default() -> Self {
        Self { hosts: HashMap::new() }
    }
}

impl<T> HostIndex<T> {
    /// The index of `table`, with `entry` giving what is kept for each App.
    pub fn build(table: &RouteTable, mut entry: impl FnMut(&AppKey) -> T) -> Self {
        let mut hosts: HashMap<Box<str>, Vec<(Box<str>, T)>> = HashMap::new();
        for (app, routes) in &table.apps {
            for rule in &routes.hosts {
                let prefix = rule.path_prefix.trim_end_matches('/');
                let rules = hosts.entry(normal_host(&rule.host).into()).or_default();
                if rules.iter().all(|(taken, _)| **taken != *prefix) {
                    rules.push((prefix.into(), entry(app)));
                }
            }
        }
        for rules in hosts.values_mut() {
            rules.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.len()));
        }
        Self { hosts }
    }

    /// What belongs to `host`, given as in a request (any case, with or without port and
    /// trailing dot), and `path`.
    pub fn find(&self, host: &str, path: &str) -> Option<&T> {
        let rules = self.hosts.get(normal_host(host).as_ref())?;
        rules.iter().find(|(prefix, _)| covers(prefix, path)).map(|(_, entry)| entry)
    }
}

/// Whether `path` lies at or under `prefix`, which has no trailing slash.
fn covers(prefix: &str, path: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| {
        prefix.is_empty() || rest.is_empty() || rest.starts_with('/') || rest.starts_with('?')
    })
}

/// `host` without port and trailing dot, in lower case. Allocates only for upper case.
pub fn normal_host(host: &str) -> Cow<'_, str> {
    let name = match host.rfind(']') {
        Some(end) => &host[..=end], // an IPv6 literal: its colons are not a port's
        None => host.split_once(':').map_or(host, |(name, _)| name),
    };
    let name = name.strip_suffix('.').unwrap_or(name);
    if name.bytes().any(|b| b.is_ascii_uppercase()) {
        Cow::Owned(name.to_ascii_lowercase())
    } else {
        Cow::Borrowed(name)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{AppRoutes, HostRule};
    use super::*;

    fn index(rules: &[(&str, &str, &str)]) -> HostIndex<AppKey> {
        let mut table = RouteTable::default();
        for (app, host, prefix) in rules {
            let routes: &mut AppRoutes = table.apps.entry(app.parse().unwrap()).or_default();
            routes.hosts.push(HostRule { host: (*host).into(), path_prefix: (*prefix).into() });
        }
        HostIndex::build(&table, AppKey::clone)
    }

    #[test]
    fn hosts_match_without_case_port_and_dot() {
        let index = index(&[("d/web", "Web.Example.com", "/"), ("d/six", "[::1]", "/")]);
        for host in
            ["web.example.com", "WEB.example.COM:8080", "web.example.com.", "web.example.com.:80"]
        {
            assert!(index.find(host, "/").is_some(), "{host}");
        }
        assert_eq!(index.find("[::1]:80", "/").unwrap().to_string(), "d/six");
        for host in ["", "example.com", "xweb.example.com", "web.example.com.evil"] {
            assert!(index.find(host, "/").is_none(), "{host}");
        }
    }

    #[test]
    fn the_longest_prefix_of_whole_segments_wins() {
        let index =
            index(&[("d/web", "h", "/"), ("d/api", "h", "/api/"), ("d/v2", "h", "/api/v2")]);
        for (path, app) in [
            ("/", "d/web"),
            ("/apix", "d/web"),
            ("*", "d/web"),
            ("/api", "d/api"),
            ("/api?x", "d/api"),
            ("/api/v1", "d/api"),
            ("/api/v2/x", "d/v2"),
        ] {
            assert_eq!(index.find("h", path).unwrap().to_string(), app, "{path}");
        }
    }

    #[test]
    fn of_two_claims_the_first_key_wins() {
        let index = index(&[("d/b", "h", "/"), ("d/a", "h", "")]);
        assert_eq!(index.find("h", "/").unwrap().to_string(), "d/a");
    }
}
