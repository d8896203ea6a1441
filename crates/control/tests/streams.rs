//! What flows: events, logs, commands, images on their way in, metrics.

mod support;

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use stead_core::api::exec::{Frame, PROTOCOL};
use stead_core::api::{EventPage, EventRecord};
use stead_core::engine::LogLine;
use stead_core::error::Code;
use stead_testkit::sim::SimMachine;
use support::{PATIENCE, Platform, app_path};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

async fn with_web() -> (tempfile::TempDir, Platform) {
    let dir = tempfile::tempdir().expect("a folder for temporary files");
    let platform = Platform::start(dir.path(), &SimMachine::new()).await;
    let client = platform.client();
    client.ended(client.deploy("web", json!({"source": "sim/ready:1"})).await).await;
    (dir, platform)
}

#[tokio::test]
async fn events_are_paged_and_followed() {
    let (_dir, platform) = with_web().await;
    let client = platform.client();
    let path = format!("{}/events", app_path("web"));
    let mut all = Vec::new();
    let mut cursor = 0;
    loop {
        let page: EventPage = client.get(&format!("{path}?after={cursor}&limit=3")).await;
        assert!(page.events.len() <= 3);
        if page.events.is_empty() {
            assert_eq!(page.next, cursor);
            break;
        }
        cursor = page.next;
        all.extend(page.events.into_iter().map(|record| record.id));
    }
    assert!(all.len() > 3 && all.is_sorted());

    let response = client.send(Method::GET, &format!("{path}?follow=true&tail=1"), None, &[]).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    client.change(&format!("{}/stop", app_path("web")), json!({})).await;
    let mut body = response.into_body();
    let mut text = String::new();
    let heard = async {
        while !text.contains("\"stopped\"") {
            let frame = body.frame().await.expect("it goes on").unwrap();
            text.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
        }
    };
    tokio::time::timeout(PATIENCE, heard).await.expect("the change is told");
    let records: Vec<EventRecord> = text
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .map(|data| serde_json::from_str(data).unwrap())
        .collect();
    assert_eq!(records[0].id, cursor, "one of the past");
    assert!(records.is_sorted_by_key(|record| record.id));

    // The stream ends with serve, and serve does not wait for it.
    let ends = async { while body.frame().await.is_some() {} };
    let stopped = tokio::time::timeout(Duration::from_secs(1), platform.stop());
    let (stopped, ()) = tokio::join!(stopped, ends);
    stopped.expect("serve ends at once");
}

#[tokio::test]
async fn logs_are_read() {
    let (_dir, platform) = with_web().await;
    let client = platform.client();
    let _: Vec<LogLine> = client.get(&format!("{}/logs?tail=5&instance=0", app_path("web"))).await;
    let path = format!("{}/logs?tail=x", app_path("web"));
    assert_eq!(client.refused(Method::GET, &path, json!(null)).await.error.code, Code::BadRequest);
    platform.stop().await;
}

#[tokio::test]
async fn commands_run_over_an_upgraded_connection() {
    let (_dir, platform) = with_web().await;
    let client = platform.client();
    let request = json!({"argv": ["echo", "hello"], "instance": null, "tty": null, "stdin": true});
    let escaped: String = request.to_string().bytes().map(|b| format!("%{b:02x}")).collect();
    let path = format!("{}/exec?request={escaped}", app_path("web"));
    let plain = client.refused(Method::POST, &path, json!(null)).await;
    assert_eq!(plain.error.code, Code::BadRequest, "an upgrade is needed");

    let headers = [("connection", "upgrade"), ("upgrade", PROTOCOL)];
    let response = client.send(Method::POST, &path, None, &headers).await;
    assert_eq!(response.status(), StatusCode::SWITCHING_PROTOCOLS);
    let mut connection = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let mut bytes = Vec::new();
    Frame::Stdin(b"some input".to_vec()).encode(&mut bytes);
    Frame::StdinEnd.encode(&mut bytes);
    connection.write_all(&bytes).await.unwrap();
    let mut answer = Vec::new();
    let read = tokio::time::timeout(PATIENCE, connection.read_to_end(&mut answer)).await;
    read.expect("the command ends").unwrap();
    let mut frames = Vec::new();
    while let Some(frame) = Frame::decode(&mut answer).unwrap() {
        frames.push(frame);
    }
    assert!(matches!(frames.last(), Some(Frame::Exit(0))), "{frames:?}");
    platform.stop().await;
}

#[tokio::test]
async fn the_platform_tells_about_itself() {
    let (_dir, platform) = with_web().await;
    let client = platform.client();
    let (status, metrics) = client.request(Method::GET, "/api/v1/metrics", None).await;
    let Value::String(metrics) = metrics else { panic!("{metrics}") };
    assert_eq!(status, StatusCode::OK);
    for line in [
        "stead_apps 1",
        "stead_rollouts{phase=\"done\"} 1",
        "stead_instances_ready{namespace=\"default\",app=\"web\"} 1",
        "stead_invariant_violations_total 0",
    ] {
        assert!(metrics.lines().any(|have| have == line), "{line} is missing in\n{metrics}");
    }
    let version: Value = client.get("/api/v1/version").await;
    assert_eq!(version["gateways"], json!([]));
    let document: Value = client.get("/api/openapi.json").await;
    assert!(document["paths"]["/api/v1/namespaces/{ns}/apps/{app}/deploy"]["post"].is_object());
    assert_eq!(client.get::<Vec<String>>("/api/v1/doctor").await, Vec::<String>::new());
    platform.stop().await;
}
