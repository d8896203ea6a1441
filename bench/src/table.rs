//! Outcomes for people and for programs.

use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};

use crate::contest::{Outcome, Row};

/// Prints one outcome as a table with its notes.
pub(crate) fn print(outcome: &Outcome) {
    println!("\n{}", outcome.title);
    if !outcome.goal.is_empty() {
        println!("goal: {}", outcome.goal);
    }
    let mut table = Table::new();
    table.load_style(presets::UTF8_FULL_CONDENSED);
    table.set_header([outcome.unit, "p50", "p99", "min", "max", "n", "stead is better by"]);
    for row in &outcome.rows {
        let figure = |value: Option<f64>| value.map_or_else(|| "–".to_owned(), rounded);
        table.add_row([
            row.name.clone(),
            figure(row.percentile(0.5)),
            figure(row.percentile(0.99)),
            figure(row.percentile(0.0)),
            figure(row.percentile(1.0)),
            row.sorted.len().to_string(),
            outcome.advantage_over(row).map_or_else(String::new, |ratio| format!("{ratio:.1}x")),
        ]);
    }
    for column in 1..7 {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    println!("{table}");
    for note in notes(outcome) {
        println!("  {note}");
    }
}

/// The same for programs.
pub(crate) fn to_json(outcome: &Outcome) -> Value {
    let row = |row: &Row| {
        json!({
            "name": row.name,
            "p50": row.percentile(0.5),
            "p99": row.percentile(0.99),
            "min": row.percentile(0.0),
            "max": row.percentile(1.0),
            "n": row.sorted.len(),
            "stead_is_better_by": outcome.advantage_over(row),
            "trouble": row.trouble,
        })
    };
    json!({
        "title": outcome.title,
        "goal": outcome.goal,
        "unit": outcome.unit,
        "rows": outcome.rows.iter().map(row).collect::<Vec<_>>(),
        "notes": outcome.notes,
    })
}

fn notes(outcome: &Outcome) -> impl Iterator<Item = String> {
    let troubles = outcome.rows.iter().filter_map(|row| {
        row.trouble.as_ref().map(|trouble| format!("{}: not measured: {trouble}", row.name))
    });
    outcome.notes.iter().cloned().chain(troubles)
}

/// Three significant digits or so: more would pretend.
fn rounded(value: f64) -> String {
    match value.abs() {
        large if large >= 100.0 => format!("{value:.0}"),
        middle if middle >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
