//! Any manifest, and any text that looks like one: what holds for all of them.

use proptest::prelude::*;
use proptest::strategy::Strategy as Generate;
use serde_json::Value;

use super::super::*;

/// A manifest in the JSON form that a person could have written.
fn any_manifest() -> impl Generate<Value = Value> {
    let span = (0_u64..100_000_000).prop_map(|ms| Span::from_millis(ms).to_string());
    let period = (10_u64..100_000).prop_map(|ms| Span::from_millis(ms).to_string());
    let check = prop_oneof![
        (1_u16..).prop_map(|port| serde_json::json!({ "tcp": port })),
        "/[a-z]{0,8}".prop_map(|path| serde_json::json!({ "http": path, "port": 81 })),
        prop::collection::vec("[a-z]{1,5}", 1..3)
            .prop_map(|argv| serde_json::json!({ "exec": argv })),
    ];
    let probe = (check, period, 1_u32..10).prop_map(|(mut check, period, failures)| {
        check["period"] = period.into();
        check["failures"] = failures.into();
        check
    });
    let env = prop::collection::btree_map("[A-Z_][A-Z0-9_]{0,6}", any::<String>(), 0..4)
        .prop_map(|env| env.into_iter().map(|(k, v)| (k, v.replace('\0', ""))).collect::<Vec<_>>());
    let rest = (any::<bool>(), 0_u32..=1000, 0_u8..=100, 8_u32..1000, 4_u64 << 20..1 << 40);
    (env, probe, span, "[a-z][a-z0-9]{0,10}", any::<String>(), rest, any_change()).prop_map(
        |(env, probe, span, name, content, (flag, count, share, pids, memory), change)| {
            let (hook, sidecars, mut rollout) = change;
            rollout["max_unavailable"] = format!("{share}%").into();
            rollout["auto_rollback"] = flag.into();
            serde_json::json!({
                "app": name,
                "source": "web:1",
                "env": env.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
                "files": { format!("/etc/{name}"): { "content": content } },
                "http": { "port": 8080, "hosts": [format!("{name}.example.com")] },
                "resources": { "memory": Memory::from_bytes(memory).to_string(), "pids": pids },
                "health": { "readiness": probe },
                "lifecycle": { "grace": span, "hooks": { "after_update": hook } },
                "sidecars": sidecars,
                "instances": count,
                "rollout": rollout,
            })
        },
    )
}

/// A hook, sidecars and a rollout in the JSON form that a person could have written.
fn any_change() -> impl Generate<Value = (Value, Value, Value)> {
    use serde_json::json;
    type About = (Option<u8>, Vec<Value>, Option<Value>);
    let hook = prop_oneof![
        Just(json!({ "exec": ["a", "-b"], "deadline": "5s" })),
        Just(json!({ "http": "/a", "port": 80 })),
    ];
    let sidecars = prop::collection::btree_set("[a-l][a-z0-9]{0,5}", 0..3).prop_map(|names| {
        let sidecar = |name| json!({ "name": name, "source": "a:1", "env": { "A": "b" } });
        names.into_iter().map(sidecar).collect::<Vec<_>>().into()
    });
    let pause = prop_oneof![Just(json!("manual")), Just(json!("0s")), Just(json!("1m30s"))];
    let rule = prop_oneof![
        Just(json!({ "header": { "name": "x-gray", "value": "yes" } })),
        Just(json!({ "cookie": { "name": "gray" } })),
        Just(json!({ "query": { "name": "g", "value": "" } })),
    ];
    let rules = prop::collection::vec(rule, 0..3);
    let about = (prop::option::of(0_u8..=100), rules, prop::option::of(pause.clone()));
    let list = prop::collection::btree_map(1_u8..100, prop::option::of(about), 1..6);
    let list = list.prop_map(|list| {
        let batch = |(share, about): (u8, Option<About>)| {
            let share = format!("{share}%");
            let Some((weight, rules, pause)) = about else { return json!(share) };
            json!({ "instances": share, "weight": weight, "match": rules, "pause": pause })
        };
        list.into_iter().map(batch).collect::<Vec<_>>().into()
    });
    let batches = prop_oneof![(1_u32..=1000).prop_map(Value::from), list];
    let analysis = prop_oneof![
        any::<bool>().prop_map(Value::from),
        Just(json!({ "latency": false, "min_requests": 7 })),
    ];
    let priority = prop::collection::btree_map(0_u32..1000, any::<i32>(), 0..4)
        .prop_map(|map| map.into_iter().map(|(n, weight)| (n.to_string(), weight.into())).collect())
        .prop_map(Value::Object);
    let order = prop::sample::select(Order::WORDS);
    (hook, sidecars, batches, pause, analysis, priority, order).prop_map(
        |(hook, sidecars, batches, pause, analysis, priority, order)| {
            let rollout = json!({
                "batches": batches, "pause": pause, "analysis": analysis, "priority": priority,
                "order": order, "sticky": "1h", "partition": "10%", "watch": "0s",
            });
            (hook, sidecars, rollout)
        },
    )
}

/// Texts that look like manifests until something goes wrong.
fn nearly_yaml() -> impl Generate<Value = String> {
    let piece = prop::sample::select(vec![
        "app",
        "web",
        ": ",
        ":",
        "\n",
        "\n  ",
        "\n    ",
        "\t",
        "- ",
        "[",
        "]",
        "{",
        "}",
        ", ",
        "\"",
        "'",
        "&a ",
        "*a",
        "!!str ",
        "!x",
        "|\n",
        ">-\n",
        "#",
        "---\n",
        "...\n",
        "? ",
        "<<: ",
        "%",
        "source",
        "env",
        "health",
        "http",
        "instances",
        "8080",
        "5s",
        "null",
        "~",
        "\u{feff}",
        "é",
        "\r\n",
        "\r",
        "\u{85}",
        "\0",
        "@",
        "`",
        "\\",
        "1e9",
        "true",
    ]);
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

fn holds_for(text: &str) -> Result<(), TestCaseError> {
    if let Err(problems) = parse(text, "t") {
        prop_assert!(!problems.list.is_empty());
        let lines = text.lines().count().max(1);
        for problem in &problems.list {
            let at = problem.at.unwrap();
            prop_assert!(at.line >= 1 && at.line as usize <= lines, "{problem:?} in {text:?}");
            prop_assert!(at.column >= 1);
            prop_assert!(!problem.expected.is_empty() && !problem.found.is_empty());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text_gives_a_manifest_or_problems_inside_it(text in any::<String>()) {
        holds_for(&text)?;
    }

    #[test]
    fn any_nearly_yaml_gives_a_manifest_or_problems_inside_it(text in nearly_yaml()) {
        holds_for(&text)?;
        holds_for(&format!("app: web\nsource: web:1\n{text}"))?;
    }

    #[test]
    fn a_manifest_reads_what_it_writes(json in any_manifest()) {
        let manifest = parse(&json.to_string(), "t").map_err(|p| TestCaseError::fail(p.to_string()))?;
        prop_assert!(manifest.problems().is_empty());
        let written = serde_json::to_string(&manifest).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Manifest>(&written).unwrap(), &manifest);
        prop_assert_eq!(&parse(&written, "t").unwrap(), &manifest);
        prop_assert!(diff(&manifest, &manifest).is_empty());
    }
}
