//! The flags of `stead deploy` that say how the new Release replaces the old one. They lie
//! over what the manifest says under `rollout`; who does not give them changes nothing.

use std::str::FromStr;

use clap::Args;
use stead_core::manifest::{
    Amount, BadValue, Batch, Batches, HeaderName, Match, Pause, Rollout, Span, Strategy,
};

#[derive(Debug, Default, Args)]
#[command(next_help_heading = "How the new release replaces the old one")]
pub(super) struct RolloutFlags {
    /// How Instances change: handover, in-place or recreate
    #[arg(long, value_name = "S")]
    strategy: Option<Strategy>,
    /// In how many steps: a number, or how many Instances run the new release after each, such
    /// as 1,25%,100%
    #[arg(long, value_name = "N|LIST")]
    batches: Option<Batches>,
    /// Begin with one Instance that takes only requests with this header, until a person
    /// promotes it (or for as long as --pause says)
    #[arg(long, value_name = "HEADER[=VALUE]")]
    gray: Option<Gray>,
    /// Between batches: a time such as 30s, or `manual` for `stead rollout promote`
    #[arg(long, value_name = "D|manual")]
    pause: Option<Pause>,
    /// How many Instances stay on the old release until a person promotes: a number or a share
    #[arg(long, value_name = "N|%")]
    partition: Option<Amount>,
    /// How many Instances may run above the wanted number
    #[arg(long, value_name = "N|%")]
    max_surge: Option<Amount>,
    /// How many Instances may be out of service at once
    #[arg(long, value_name = "N|%")]
    max_unavailable: Option<Amount>,
    /// How long the old Container stays frozen, so that a rollback is a thaw
    #[arg(long, value_name = "D")]
    keep_previous: Option<Span>,
}

impl RolloutFlags {
    /// Puts what is given here over what `rollout` says.
    pub(super) fn lie_over(&self, rollout: &mut Rollout) {
        fn put<T: Clone>(flag: &Option<T>, over: &mut T) {
            if let Some(value) = flag {
                over.clone_from(value);
            }
        }
        rollout.strategy = self.strategy.or(rollout.strategy);
        rollout.keep_previous = self.keep_previous.or(rollout.keep_previous);
        put(&self.batches, &mut rollout.batches);
        put(&self.pause, &mut rollout.pause);
        put(&self.partition, &mut rollout.partition);
        put(&self.max_surge, &mut rollout.max_surge);
        put(&self.max_unavailable, &mut rollout.max_unavailable);
        if let Some(gray) = &self.gray {
            let pause = if self.pause.is_some() { None } else { Some(Pause::Manual) };
            gray.begin(&mut rollout.batches, pause);
        }
    }
}

/// The requests that a gray first batch takes: those with a header.
#[derive(Debug, Clone)]
struct Gray(Match);

impl FromStr for Gray {
    type Err = BadValue;

    fn from_str(text: &str) -> Result<Self, BadValue> {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text, None),
        };
        let name: HeaderName = name.parse()?;
        Ok(Self(Match::Header { name, value }))
    }
}

impl Gray {
    /// Makes the first of listed batches the gray one; equal batches get one of a single
    /// Instance before them.
    fn begin(&self, batches: &mut Batches, pause: Option<Pause>) {
        let mut list = match batches {
            Batches::List(list) => std::mem::take(list),
            Batches::Count(count) => {
                let mut shares: Vec<u8> = (1..=*count).map(|nth| share(nth, *count)).collect();
                shares.dedup();
                let equal = shares.into_iter().filter(|share| *share > 0).map(Amount::Percent);
                std::iter::once(Amount::Count(1)).chain(equal).map(Batch::of).collect()
            }
        };
        if let Some(first) = list.first_mut() {
            first.matches.push(self.0.clone());
            first.pause = first.pause.or(pause);
        }
        *batches = Batches::List(list);
    }
}

/// The share of the Instances that the first `nth` of `count` equal batches are, in per cent.
fn share(nth: u32, count: u32) -> u8 {
    let share = u64::from(nth) * 100 / u64::from(count.max(1));
    u8::try_from(share).unwrap_or(100)
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::{Value, json};

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        flags: RolloutFlags,
    }

    fn over(rollout: Value, line: &[&str]) -> Rollout {
        let mut rollout = serde_json::from_value(rollout).unwrap();
        Line::parse_from([&["deploy"], line].concat()).flags.lie_over(&mut rollout);
        rollout
    }

    fn batches(rollout: Value, line: &[&str]) -> Value {
        serde_json::to_value(over(rollout, line).batches).unwrap()
    }

    #[test]
    fn flags_lie_over_what_the_manifest_says() {
        let said = json!({ "batches": 3, "pause": "5s", "max_surge": 2, "strategy": "recreate" });
        let same = serde_json::from_value(said.clone()).unwrap();
        assert_eq!(over(said.clone(), &[]), same, "no flags, no change");
        let line = "--strategy in-place --batches 1,25%,100% --pause manual --partition 10% \
                    --max-surge 1 --max-unavailable 50% --keep-previous 5m";
        let rollout = over(said, &line.split_whitespace().collect::<Vec<_>>());
        assert_eq!(rollout.strategy, Some(Strategy::InPlace));
        let sizes = [Amount::Count(1), Amount::Percent(25), Amount::Percent(100)];
        assert_eq!(rollout.batches, Batches::List(sizes.map(Batch::of).to_vec()));
        assert_eq!((rollout.pause, rollout.partition), (Pause::Manual, Amount::Percent(10)));
        assert_eq!(rollout.max_surge, Amount::Count(1));
        assert_eq!(rollout.max_unavailable, Amount::Percent(50));
        assert_eq!(rollout.keep_previous, Some(Span::from_secs(300)));
    }

    #[test]
    fn a_gray_batch_comes_first() {
        let rule = json!([{ "header": { "name": "x-gray", "value": "a=b" } }]);
        let gray = ["--gray", "X-Gray=a=b"];
        let first = json!({ "instances": "1", "match": rule, "pause": "manual" });
        assert_eq!(batches(json!({}), &gray), json!([first, "100%"]));
        assert_eq!(
            batches(json!({ "batches": 4 }), &gray),
            json!([first, "25%", "50%", "75%", "100%"])
        );
        let listed = json!({ "batches": ["10%", "100%"] });
        let first = json!({ "instances": "10%", "match": rule, "pause": "manual" });
        assert_eq!(batches(listed.clone(), &gray), json!([first, "100%"]));
        let first = json!({ "instances": "10%", "match": rule });
        let line = [&gray[..], &["--pause", "30s"]].concat();
        assert_eq!(batches(listed, &line), json!([first, "100%"]));
        let any = batches(json!({}), &["--gray", "x-gray"]);
        assert_eq!(any[0]["match"], json!([{ "header": { "name": "x-gray" } }]));
        let many = batches(json!({ "batches": 1000 }), &gray);
        assert_eq!(many.as_array().unwrap().len(), 101, "one, and each per cent once");
    }

    #[test]
    fn wrong_flags_are_refused() {
        for line in [
            ["--batches", ""],
            ["--batches", "1,,2"],
            ["--batches", "half"],
            ["--pause", "5"],
            ["--gray", "a b=c"],
            ["--gray", "=c"],
            ["--partition", "101%"],
        ] {
            assert!(Line::try_parse_from([&["deploy"], &line[..]].concat()).is_err(), "{line:?}");
        }
    }
}
