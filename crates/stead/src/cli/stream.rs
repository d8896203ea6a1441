//! Commands that stream: `events` and `logs`.

use anyhow::Result;
use clap::Args;
use stead_core::api::{EventPage, EventRecord};
use stead_core::engine::LogLine;
use stead_core::event::Fact;
use stead_core::ids::Ordinal;
use stead_core::name::AppName;

use super::Context;
use crate::output::human;

#[derive(Debug, Args)]
pub(super) struct Events {
    /// The App [default: all]
    app: Option<AppName>,
    /// Go on with new ones
    #[arg(short, long)]
    follow: bool,
    /// How many of the last ones
    #[arg(long, value_name = "N", default_value_t = 100)]
    tail: usize,
}

#[derive(Debug, Args)]
pub(super) struct Logs {
    /// The App
    app: AppName,
    /// Go on with new lines
    #[arg(short, long)]
    follow: bool,
    /// One Instance [default: all]
    #[arg(short, long, value_name = "I")]
    instance: Option<Ordinal>,
    /// How many of the last lines per Container [default: all, with --follow 100]
    #[arg(long, value_name = "N")]
    tail: Option<usize>,
    /// Show the time of each line
    #[arg(long)]
    timestamps: bool,
}

pub(super) async fn logs(context: &Context, args: &Logs) -> Result<()> {
    let mut query = Vec::new();
    let tail = args.tail.or(args.follow.then_some(100));
    query.extend(tail.map(|n| format!("tail={n}")));
    query.extend(args.instance.map(|i| format!("instance={i}")));
    let path = format!("{}/logs", context.path(&args.app));
    let line = |line: &LogLine| log_line(line, args);
    if !args.follow {
        let lines: Vec<LogLine> = context.client.get(&with_query(&path, &query)).await?;
        return lines.iter().try_for_each(|item| context.output.item(item, line));
    }
    query.push("follow=true".to_owned());
    let mut stream = context.client.follow(&with_query(&path, &query)).await?;
    while let Some(item) = stream.next::<LogLine>().await? {
        context.output.item(&item, line)?;
    }
    Err(ended(context))
}

fn log_line(line: &LogLine, args: &Logs) -> String {
    let mut text = String::new();
    if args.timestamps {
        text.push_str(&line.time);
        text.push(' ');
    }
    if args.instance.is_none() {
        text.push_str(&format!("{} | ", line.instance));
    }
    text + &readable(&line.text)
}

/// A line of an App as it may go to a terminal: colours stay, all else that steers goes.
fn readable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '\x1b' if chars.peek() == Some(&'[') => {
                let mut sequence = String::from("\x1b");
                for c in chars.by_ref() {
                    sequence.push(c);
                    if ('@'..='~').contains(&c) && c != '[' {
                        break;
                    }
                }
                if sequence.ends_with('m') {
                    out.push_str(&sequence);
                }
            }
            '\t' => out.push('\t'),
            c if c.is_control() => {}
            c => out.push(c),
        }
    }
    out
}

pub(super) async fn events(context: &Context, args: &Events) -> Result<()> {
    let path = match &args.app {
        Some(app) => format!("{}/events", context.path(app)),
        None => "/events".to_owned(),
    };
    let mut query = vec![format!("tail={}", args.tail)];
    if !args.follow {
        let page: EventPage = context.client.get(&with_query(&path, &query)).await?;
        return page.events.iter().try_for_each(|event| context.output.item(event, event_line));
    }
    query.push("follow=true".to_owned());
    let mut stream = context.client.follow(&with_query(&path, &query)).await?;
    while let Some(event) = stream.next::<EventRecord>().await? {
        context.output.item(&event, event_line)?;
    }
    Err(ended(context))
}

fn with_query(path: &str, query: &[String]) -> String {
    if query.is_empty() { path.to_owned() } else { format!("{path}?{}", query.join("&")) }
}

/// A followed stream has no end of its own.
fn ended(context: &Context) -> anyhow::Error {
    use stead_core::error::{Code, UserError};
    UserError::new(
        Code::PlatformDown,
        format!("the platform at {} ended the stream", context.client.endpoint()),
        "it is being stopped or replaced: run the command again",
    )
    .into()
}

fn event_line(record: &EventRecord) -> String {
    let event = &record.event;
    let instance = event.instance.map(|i| format!("/{i}")).unwrap_or_default();
    let text = match &event.fact {
        Fact::Phase { phase, took, .. } => format!("{} took {took}", phase.as_str()),
        Fact::Exited { exit } => {
            let why = match (exit.oom_killed, exit.intended) {
                (true, _) => ", out of memory",
                (false, true) => ", as asked",
                (false, false) => "",
            };
            format!("exited with code {}{why}", exit.code)
        }
        Fact::Ready => "ready".to_owned(),
        Fact::Unready { why } => format!("not ready: {why}"),
        Fact::Trouble { error } => format!("trouble: {error}"),
        Fact::Fallback { because } => format!("no handover: {because}"),
        Fact::Noted { what } => what.clone(),
        Fact::Rollout { number, phase, why } => format!("rollout {number} {phase}: {why}"),
        Fact::Changed { by, what } => format!("{by}: {what}"),
    };
    format!("{}  {}{instance}  {}", human::stamp(event.at), event.app, human::plain(&text))
}

#[cfg(test)]
mod tests {
    use stead_core::time::Time;

    use super::*;

    #[test]
    fn a_line_of_an_app_keeps_its_colours_and_nothing_else() {
        assert_eq!(readable("\x1b[31mred\x1b[0m\ta"), "\x1b[31mred\x1b[0m\ta");
        assert_eq!(readable("\x1b[2J\x1b[1;1Hx\x07\x1b]0;t\x07\r"), "x]0;t");
    }

    #[test]
    fn an_event_is_one_line() {
        let event = stead_core::event::Event {
            at: Time(1_700_000_000_000_000),
            app: "default/web".parse().unwrap(),
            instance: Some(Ordinal(1)),
            container: None,
            revision: None,
            fact: Fact::Unready { why: "GET /healthz:\n503".into() },
        };
        assert_eq!(
            event_line(&EventRecord { id: 1, event }),
            "2023-11-14T22:13:20.000Z  default/web/1  not ready: GET /healthz: 503"
        );
    }
}
