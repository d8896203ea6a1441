//! The numbers of the ledger as a page for Prometheus (text exposition format 0.0.4).

use std::convert::Infallible;
use std::fmt::Write;
use std::sync::Arc;

use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use stead_core::routes::{AppReport, LATENCY_BOUNDS_MICROS, Outcomes};
use tokio::net::TcpListener;

use crate::gateway::{Phase, Shared};
use crate::refuse;
use crate::reply::Reply;
use crate::report::report;

/// Serves `/metrics` until the gateway ends or a successor took over.
pub(crate) async fn serve(shared: Arc<Shared>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shared.reached(Phase::HandedOver) => return,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            continue;
        };
        let shared = shared.clone();
        tokio::spawn(async move {
            let service = service_fn(|request| {
                let response = answer(&shared, &request);
                async move { Ok::<_, Infallible>(response) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .keep_alive(false)
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "metrics connection failed");
            }
        });
    }
}

fn answer(shared: &Shared, request: &Request<Incoming>) -> Response<Reply> {
    if request.uri().path() != "/metrics" {
        return refuse::plain(StatusCode::NOT_FOUND, "Metrics are at /metrics.");
    }
    let mut response = Response::new(Reply::text(page(shared)));
    let kind = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// A metric's name, type and help, and then its samples.
struct Metric<'a>(&'a mut String, &'static str);

impl<'a> Metric<'a> {
    fn new(page: &'a mut String, name: &'static str, kind: &str, help: &str) -> Self {
        let _ = writeln!(page, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Self(page, name)
    }

    /// A sample. Label values come from enums, numbers and DNS labels: nothing to escape.
    fn add(&mut self, labels: &str, value: impl std::fmt::Display) {
        let _ = match labels {
            "" => writeln!(self.0, "{} {value}", self.1),
            labels => writeln!(self.0, "{}{{{labels}}} {value}", self.1),
        };
    }
}

fn page(shared: &Shared) -> String {
    let report = report(shared);
    let mut page = String::with_capacity(4 << 10);
    let page = &mut page;

    let generation = report.generation;
    Metric::new(page, "stead_gateway_route_generation", "gauge", "Route generation in force.")
        .add("", generation);
    Metric::new(page, "stead_gateway_connections", "gauge", "Client connections and tunnels.")
        .add("", shared.connections());
    Metric::new(
        page,
        "stead_gateway_draining",
        "gauge",
        "1 when no more connections are accepted.",
    )
    .add("", u8::from(report.draining));
    Metric::new(page, "stead_gateway_access_log_dropped_total", "counter", "Log lines dropped.")
        .add("", shared.log.dropped());

    let mut metric = Metric::new(
        page,
        "stead_gateway_refused_total",
        "counter",
        "Requests refused before they had an App, by status.",
    );
    for (status, count) in shared.refusals() {
        metric.add(&format!("code=\"{status}\""), count);
    }

    let mut metric =
        Metric::new(page, "stead_requests_received_total", "counter", "Requests that arrived.");
    for app in &report.apps {
        metric.add(&labels(app), app.received);
    }
    let mut metric = Metric::new(page, "stead_requests_in_flight", "gauge", "Requests not ended.");
    for app in &report.apps {
        metric.add(&labels(app), app.in_flight);
    }
    let mut metric =
        Metric::new(page, "stead_requests_parked", "gauge", "Requests that wait for a Backend.");
    for app in &report.apps {
        metric.add(&labels(app), app.parked);
    }
    let mut metric = Metric::new(
        page,
        "stead_requests_ended_total",
        "counter",
        "Requests that ended, by Release (empty: never sent to one) and outcome.",
    );
    for app in &report.apps {
        outcomes(&mut metric, &format!("{},release=\"\"", labels(app)), &app.unsent);
        for release in &app.releases {
            let labels = format!("{},release=\"{}\"", labels(app), release.release);
            outcomes(&mut metric, &labels, &release.outcomes);
        }
    }
    let mut metric = Metric::new(
        page,
        "stead_responses_total",
        "counter",
        "Responses of Apps, by Release and class of status.",
    );
    for app in &report.apps {
        for release in &app.releases {
            for (class, count) in release.answered.iter().enumerate() {
                let labels = format!(
                    "{},release=\"{}\",code=\"{}xx\"",
                    labels(app),
                    release.release,
                    class + 1
                );
                metric.add(&labels, count);
            }
        }
    }
    latency(page, &report.apps);
    let mut metric = Metric::new(
        page,
        "stead_backend_connections",
        "gauge",
        "Connections to the App's Backends, idle or in use.",
    );
    for (app, open) in shared.routes.connections() {
        metric.add(&format!("namespace=\"{}\",app=\"{}\"", app.namespace, app.app), open);
    }
    std::mem::take(page)
}

/// The bounds that are shown: each is a series of its own per Release.
const SHOWN_MICROS: [u64; 15] = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000,
    2_500_000, 5_000_000, 10_000_000, 31_500_000,
];

fn latency(page: &mut String, apps: &[AppReport]) {
    const NAME: &str = "stead_response_seconds";
    let help = "From sending a request to the head of the App's response.";
    Metric::new(page, NAME, "histogram", help);
    for app in apps {
        for release in &app.releases {
            let labels = format!("{},release=\"{}\"", labels(app), release.release);
            let mut sum = 0;
            for (index, count) in release.latency.buckets.iter().enumerate() {
                sum += count;
                let bound = match LATENCY_BOUNDS_MICROS.get(index) {
                    None => "+Inf".to_owned(),
                    Some(bound) if SHOWN_MICROS.contains(bound) => {
                        (*bound as f64 / 1e6).to_string()
                    }
                    Some(_) => continue,
                };
                let _ = writeln!(page, "{NAME}_bucket{{{labels},le=\"{bound}\"}} {sum}");
            }
            let seconds = release.latency.sum_micros as f64 / 1e6;
            let _ = writeln!(page, "{NAME}_sum{{{labels}}} {seconds}");
            let _ = writeln!(page, "{NAME}_count{{{labels}}} {sum}");
        }
    }
}

fn labels(app: &AppReport) -> String {
    format!("namespace=\"{}\",app=\"{}\"", app.app.namespace, app.app.app)
}

fn outcomes(metric: &mut Metric<'_>, labels: &str, outcomes: &Outcomes) {
    metric.add(&format!("{labels},outcome=\"completed\",reason=\"\""), outcomes.completed);
    metric
        .add(&format!("{labels},outcome=\"client_aborted\",reason=\"\""), outcomes.client_aborted);
    for (reason, count) in &outcomes.failed {
        let reason = reason.as_str();
        metric.add(&format!("{labels},outcome=\"failed\",reason=\"{reason}\""), count);
    }
}
