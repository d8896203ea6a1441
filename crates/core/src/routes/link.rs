//! What the control plane and a gateway say to each other: one JSON document per line over a
//! Unix socket, to which **the gateway connects**, so that an old gateway that is draining
//! and its successor are both heard.
//!
//! Order: the gateway says [`ToServe::Hello`]; the control plane answers with the whole table
//! and then with changes. Every change is answered by an `Ack` of the generation then
//! applied, also one that was refused: a control plane that lost its state sees there that it
//! must go on above that generation. After the first `Ack` of a connection the gateway says
//! again what still holds: what is drained and which Apps have parked requests.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::{AppRoutes, RouteChange, RouteTable};
use crate::ids::{ContainerId, Generation, ReleaseNo};
use crate::name::AppKey;

/// From the control plane to a gateway.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "one is made per change, and almost all are `Put`")]
pub enum ToGateway {
    /// The whole table. Always the answer to `Hello`.
    Table(RouteTable),
    /// A change of one App.
    Put {
        /// Generation of the table after this change.
        generation: Generation,
        /// The App that changes.
        app: AppKey,
        /// Its new routes; `None` takes the App away.
        routes: Option<AppRoutes>,
    },
    /// Report now. Answered by a `Report` and a `Told`; no `Ack` follows.
    Tell {
        /// Which question it is, for the answer.
        asked: u64,
    },
}

impl ToGateway {
    /// The change of the table that it is, if it is one.
    pub fn into_change(self) -> Option<RouteChange> {
        match self {
            Self::Table(table) => Some(RouteChange::Table(table)),
            Self::Put { generation, app, routes } => {
                Some(RouteChange::Put { generation, app, routes })
            }
            Self::Tell { .. } => None,
        }
    }
}

/// From a gateway to the control plane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ToServe {
    /// First message of a connection.
    Hello {
        /// The gateway's process, which tells gateways apart.
        pid: u32,
        /// Its version.
        version: String,
        /// The generation it has applied, from an earlier connection or from its disk.
        generation: Generation,
    },
    /// This generation is applied: no request chosen from now on uses an older one, and no
    /// Backend that it drains takes another request.
    Ack {
        /// The generation.
        generation: Generation,
    },
    /// A draining Container has no claim left in this gateway: every request and tunnel it
    /// had here has ended.
    Drained {
        /// The Container.
        container: ContainerId,
        /// The generation applied when that was seen. A `Drained` older than the change that
        /// last began to drain the Container says nothing about it.
        generation: Generation,
    },
    /// The first request of a gap found no Backend: the App should be given one.
    Parked {
        /// The App.
        app: AppKey,
    },
    /// Counters and gauges, each second, for some Apps more often, and when `Tell` asks.
    Report(Report),
    /// The `Report` before this was made after the question came.
    Told {
        /// Which question.
        asked: u64,
    },
}

/// What a gateway has seen. Counters are cumulative since `started`, so that a lost report
/// loses nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// When the gateway's process started counting, in microseconds since the Unix epoch.
    /// With the pid it tells one set of counters from the next.
    pub started: crate::time::Time,
    /// The generation that is applied.
    pub generation: Generation,
    /// The gateway accepts no more connections and ends when those it has are done.
    pub draining: bool,
    /// It says nothing of the Apps that are not in it: a report out of turn, for those with
    /// [`AppRoutes::report_ms`].
    #[serde(default)]
    pub partial: bool,
    /// Per App; an App without traffic since the gateway started is left out.
    pub apps: Vec<AppReport>,
}

/// One App's part of a report.
///
/// At rest `received = in_flight + unsent.total() + Σ releases (outcomes.total())`. The
/// numbers are read one after the other while requests go on, so under load the sum may be
/// off by the requests of that moment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AppReport {
    /// The App.
    pub app: AppKey,
    /// Requests that were routed to the App.
    pub received: u64,
    /// Requests that have not ended, parked ones and tunnels included.
    pub in_flight: u64,
    /// Requests that wait for a Backend now.
    pub parked: u64,
    /// How those ended that were never sent to a Backend.
    pub unsent: Outcomes,
    /// Per Release.
    pub releases: Vec<ReleaseReport>,
}

/// One Release's part of a report.
///
/// At rest `received = in_flight + moved + outcomes.total()`: the zero-drop ledger.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleaseReport {
    /// The Release.
    pub release: ReleaseNo,
    /// Requests given to a Backend of the Release.
    pub received: u64,
    /// Of these, how many had waited for a Backend.
    #[serde(default)]
    pub parked: u64,
    /// Requests whose Backend had closed the connection before a byte was sent, or had refused
    /// them unread, and which went elsewhere: another Backend counts them again.
    pub moved: u64,
    /// Requests that have not ended, tunnels included.
    pub in_flight: u64,
    /// How the rest ended.
    pub outcomes: Outcomes,
    /// Responses of the App by class: 1xx (tunnels), 2xx, 3xx, 4xx, 5xx.
    pub answered: [u64; 5],
    /// From sending a request to the head of its response.
    pub latency: Latency,
}

impl ReleaseReport {
    /// Requests that the App has answered, or failed to: what its errors are a share of.
    pub fn judged(&self) -> u64 {
        let answered: u64 = self.answered.iter().sum();
        // A broken response had a status.
        answered + self.failed_by_app(|reason| reason != FailReason::BrokenResponse)
    }

    /// Of these, answers 5xx and failures that are the App's fault. A 5xx that breaks off
    /// counts twice.
    pub fn errors(&self) -> u64 {
        self.answered[4] + self.failed_by_app(|_| true)
    }

    fn failed_by_app(&self, wanted: impl Fn(FailReason) -> bool) -> u64 {
        let failed = self.outcomes.failed.iter();
        let blamed = failed.filter(|(reason, _)| reason.blame() == Blame::App && wanted(**reason));
        blamed.map(|(_, count)| count).sum()
    }
}

/// How requests ended.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Outcomes {
    /// The whole response was passed on. Its status is the App's affair.
    pub completed: u64,
    /// The client went away first.
    pub client_aborted: u64,
    /// The rest, by reason.
    #[serde(default)]
    pub failed: BTreeMap<FailReason, u64>,
}

impl Outcomes {
    /// Requests that ended, however they did.
    pub fn total(&self) -> u64 {
        self.completed + self.client_aborted + self.failed.values().sum::<u64>()
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $blame:ident;)*) => {
        /// Why a request failed.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[derive(Serialize, Deserialize)]
        #[serde(rename_all = "snake_case")]
        pub enum FailReason { $($(#[$doc])* $name,)* }

        impl FailReason {
            /// Every reason, in declaration order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The reason as it appears in logs, metrics and JSON.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Who failed.
            pub fn blame(self) -> Blame {
                match self { $(Self::$name => Blame::$blame,)* }
            }
        }
    };
}

reasons! {
    /// The App closed the connection before it answered.
    ClosedEarly = "closed_early", App;
    /// The App's answer is not HTTP.
    BadResponse = "bad_response", App;
    /// The App did not answer within the gateway's limit.
    ResponseTimeout = "response_timeout", App;
    /// The App ended its answer before it was complete.
    BrokenResponse = "broken_response", App;
    /// The client sent more than the gateway's limit.
    BodyTooLarge = "body_too_large", Client;
    /// No Backend took the request within the parking time.
    ParkTimeout = "park_timeout", Stead;
    /// As many requests are parked as may be.
    ParkFull = "park_full", Stead;
    /// The expected wait for a Backend is longer than the parking time.
    WaitTooLong = "wait_too_long", Stead;
    /// The App is stopped.
    Stopped = "stopped", Stead;
    /// The App was deleted while the request waited.
    Gone = "gone", Stead;
    /// The files of the App, which is a site, are damaged on the machine.
    SiteBroken = "site_broken", Stead;
    /// The gateway ended before the request did.
    Cut = "cut", Stead;
}

/// Who failed when a request did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Blame {
    /// The client.
    Client,
    /// The App.
    App,
    /// stead itself: the gateway, or the control plane that gave it no Backend.
    Stead,
}

impl Blame {
    /// The party as it appears in logs, headers and JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::App => "app",
            Self::Stead => "stead",
        }
    }
}

/// Upper bounds of the buckets of [`Latency`], in microseconds; one more bucket takes the rest.
///
/// Renard's series R10 (ISO 3), ten steps of a quarter each per decade, from 100 µs to 31.5 s. A
/// comparison of two Releases must see a service of 2 ms become one of 3 ms; with the three
/// steps per decade of a dashboard both may lie in one bucket.
pub const LATENCY_BOUNDS_MICROS: [u64; 56] = [
    100, 125, 160, 200, 250, 315, 400, 500, 630, 800, 1_000, 1_250, 1_600, 2_000, 2_500, 3_150,
    4_000, 5_000, 6_300, 8_000, 10_000, 12_500, 16_000, 20_000, 25_000, 31_500, 40_000, 50_000,
    63_000, 80_000, 100_000, 125_000, 160_000, 200_000, 250_000, 315_000, 400_000, 500_000,
    630_000, 800_000, 1_000_000, 1_250_000, 1_600_000, 2_000_000, 2_500_000, 3_150_000, 4_000_000,
    5_000_000, 6_300_000, 8_000_000, 10_000_000, 12_500_000, 16_000_000, 20_000_000, 25_000_000,
    31_500_000,
];

/// A histogram of times.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
pub struct Latency {
    /// Requests per bucket, not cumulative; one longer than [`LATENCY_BOUNDS_MICROS`]. A gateway
    /// of another version may have other bounds, and then another number of buckets.
    pub buckets: Vec<u64>,
    /// Sum of all times, in microseconds.
    pub sum_micros: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_travel_as_their_text() {
        for reason in FailReason::ALL {
            let json = serde_json::to_string(reason).unwrap();
            assert_eq!(json, format!("\"{}\"", reason.as_str()));
        }
    }

    #[test]
    fn bounds_rise_by_a_quarter() {
        for pair in LATENCY_BOUNDS_MICROS.windows(2) {
            let step = pair[1] as f64 / pair[0] as f64;
            assert!((1.23..1.29).contains(&step), "{pair:?}");
        }
    }

    #[test]
    fn errors_are_the_apps_own() {
        let failed = [
            (FailReason::ClosedEarly, 2),
            (FailReason::BrokenResponse, 1),
            (FailReason::BodyTooLarge, 5),
            (FailReason::Cut, 7),
        ];
        let report = ReleaseReport {
            release: ReleaseNo(1),
            received: 100,
            parked: 0,
            moved: 0,
            in_flight: 0,
            outcomes: Outcomes { completed: 85, client_aborted: 0, failed: failed.into() },
            answered: [1, 80, 2, 2, 3],
            latency: Latency::default(),
        };
        assert_eq!((report.judged(), report.errors()), (90, 6));
    }

    #[test]
    fn messages_are_one_line_and_survive_it() {
        let outcomes = Outcomes {
            completed: 2,
            client_aborted: 1,
            failed: BTreeMap::from([(FailReason::ParkFull, 4)]),
        };
        assert_eq!(outcomes.total(), 7);
        let report = ToServe::Report(Report {
            started: crate::time::Time(1),
            generation: Generation(3),
            draining: true,
            partial: false,
            apps: vec![AppReport {
                app: "d/web".parse().unwrap(),
                received: 7,
                in_flight: 0,
                parked: 0,
                unsent: outcomes,
                releases: vec![],
            }],
        });
        let line = serde_json::to_string(&report).unwrap();
        assert!(!line.contains('\n'));
        assert_eq!(serde_json::from_str::<ToServe>(&line).unwrap(), report);
    }

    #[test]
    fn a_table_of_an_older_control_plane_is_understood() {
        let line = r#"{"table":{"generation":1,"apps":{"d/web":{"hosts":[{"host":"h"}],"backends":[],"new_field":1}}}}"#;
        let ToGateway::Table(table) = serde_json::from_str(line).unwrap() else { panic!() };
        let routes = table.apps.values().next().unwrap();
        assert_eq!(routes.hosts[0].path_prefix, "/");
        assert_eq!(routes.park.max_requests, 1_000);
    }
}
