//! Which versions of a runtime a project says it runs on: `requires-python` and `engines.node`.
//!
//! Promises: a version is refused only by what was understood. A base names as few parts of its
//! version as matter (`python:3.11`), so only those are compared. Does not know which versions
//! exist.
//!
//! Formats: Python's "Version specifiers" (PEP 440), and the ranges of node-semver.

use std::cmp::Ordering;

/// Which versions will do: all comparators of one of the alternatives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Versions {
    alternatives: Vec<Vec<Comparator>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Comparator {
    operator: Operator,
    version: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    /// Also for `>`: of 3.8 nobody knows whether it is 3.8.0.
    AtLeast,
    AtMost,
    Below,
    /// The parts that are written.
    Same,
    NotSame,
    /// The same but for the last part written, and at least this: `~=3.8`.
    Compatible,
}

const OPERATORS: [(&str, Operator); 10] = [
    // Those that begin like another come before it.
    (">=", Operator::AtLeast),
    ("<=", Operator::AtMost),
    ("==", Operator::Same),
    ("!=", Operator::NotSame),
    ("~=", Operator::Compatible),
    (">", Operator::AtLeast),
    ("<", Operator::Below),
    ("=", Operator::Same),
    ("^", Operator::Same),
    ("~", Operator::Same),
];

impl Versions {
    /// The versions that `text` names; `None` when it is not understood.
    pub(super) fn read(text: &str) -> Option<Self> {
        let alternatives: Option<Vec<_>> = text.split("||").map(alternative).collect();
        Some(Self { alternatives: alternatives? })
    }

    /// Whether this version, its parts as numbers, is one of them.
    pub(super) fn allow(&self, version: &[u32]) -> bool {
        let fits =
            |alternative: &Vec<Comparator>| alternative.iter().all(|one| one.allows(version));
        self.alternatives.iter().any(fits)
    }
}

fn alternative(text: &str) -> Option<Vec<Comparator>> {
    // `>= 18` is one comparator, `>=18 <21` and `>=3.8,<4` are two.
    let mut joined = text.replace(',', " ");
    for (sign, _) in OPERATORS {
        joined = joined.replace(&format!("{sign} "), sign);
    }
    joined.split_whitespace().map(Comparator::read).collect()
}

impl Comparator {
    fn read(text: &str) -> Option<Self> {
        let found = OPERATORS.iter().find_map(|(sign, op)| Some((*op, text.strip_prefix(sign)?)));
        let (operator, rest) = found.unwrap_or((Operator::Same, text));
        let mut version = Vec::new();
        for part in rest.strip_prefix('v').unwrap_or(rest).split('.') {
            if matches!(part, "*" | "x" | "X") {
                break;
            }
            version.push(part.parse().ok()?);
        }
        // A caret keeps the first part; a tilde the first two, which a base seldom names.
        if text.starts_with('^') {
            version.truncate(1);
        }
        Some(Self { operator, version })
    }

    fn allows(&self, version: &[u32]) -> bool {
        let parts = version.len().min(self.version.len());
        let order = version[..parts].cmp(&self.version[..parts]);
        // Of 3.8 nobody knows whether it is below 3.8.1: then it will do.
        let unknown = version.len() < self.version.len();
        match self.operator {
            Operator::AtLeast => order != Ordering::Less,
            Operator::AtMost => order != Ordering::Greater,
            Operator::Below => order == Ordering::Less || (order == Ordering::Equal && unknown),
            Operator::Same => order == Ordering::Equal,
            Operator::NotSame => order != Ordering::Equal || unknown,
            Operator::Compatible => {
                let same = self.version.len().saturating_sub(1).min(parts);
                version[..same] == self.version[..same] && order != Ordering::Less
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_python_and_node_are_read() {
        // What is written, what fits, what does not.
        type Case<'a> = (&'a str, &'a [&'a [u32]], &'a [&'a [u32]]);
        let cases: [Case<'_>; 12] = [
            (">=3.8", &[&[3, 8], &[3, 12]], &[&[3, 7], &[2, 7]]),
            (">=3.8.1,<4", &[&[3, 8], &[3, 13]], &[&[3, 7], &[4, 0]]),
            ("~=3.10", &[&[3, 10], &[3, 12]], &[&[3, 9], &[4, 0]]),
            ("==3.11.*", &[&[3, 11]], &[&[3, 12]]),
            ("!=3.9.0, >=3.8", &[&[3, 9]], &[&[3, 7]]),
            ("!=3.9.*", &[&[3, 8]], &[&[3, 9]]),
            (">3.8", &[&[3, 8], &[3, 9]], &[&[3, 7]]),
            ("<3.12", &[&[3, 11]], &[&[3, 12]]),
            ("^20.1.0", &[&[20]], &[&[18], &[22]]),
            (">= 18", &[&[18], &[22]], &[&[16]]),
            ("18.x || >=20 <23", &[&[18], &[20], &[22]], &[&[19], &[23]]),
            ("v20", &[&[20]], &[&[21]]),
        ];
        for (text, fit, others) in cases {
            let versions = Versions::read(text).unwrap();
            for version in fit {
                assert!(versions.allow(version), "{text}: {version:?}");
            }
            for version in others {
                assert!(!versions.allow(version), "{text}: {version:?}");
            }
        }
        assert!(Versions::read("*").unwrap().allow(&[20]));
        for text in ["lts/iron", ">=3.8rc1", "18 - 20"] {
            assert_eq!(Versions::read(text), None, "{text}");
        }
    }
}
