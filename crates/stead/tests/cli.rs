//! The command line without a platform: grammar, exit codes, and what errors look like.

#![allow(clippy::unwrap_used, reason = "a test fails where it stands")]

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Runs `stead` in a folder where no platform is.
fn stead(dir: &Path, args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_stead"))
        .args(args)
        .current_dir(dir)
        .env("STEAD_RUN_DIR", dir)
        .env_remove("STEAD_SERVER")
        .env_remove("STEAD_TOKEN")
        .env_remove("STEAD_NAMESPACE")
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// Checks the exit code and gives standard error.
#[track_caller]
fn fails(dir: &Path, args: &[&str], code: i32) -> String {
    let output = stead(dir, args);
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}", stderr(&output));
    assert_eq!(stdout(&output), "", "an error is no answer");
    stderr(&output)
}

const COMMANDS: [&str; 29] = [
    "up",
    "down",
    "deploy",
    "apps",
    "status",
    "ps",
    "releases",
    "waterfall",
    "ledger",
    "events",
    "logs",
    "top",
    "rollout",
    "rollback",
    "restart",
    "scale",
    "stop",
    "start",
    "delete",
    "env",
    "secrets",
    "exec",
    "port-forward",
    "image",
    "namespace",
    "token",
    "doctor",
    "version",
    "completion",
];

#[test]
fn every_command_explains_itself() {
    let dir = tempfile::tempdir().unwrap();
    let help = stdout(&stead(dir.path(), &["--help"]));
    for command in COMMANDS {
        assert!(help.contains(&format!("\n  {command} ")), "{command} is not in:\n{help}");
        let output = stead(dir.path(), &[command, "--help"]);
        assert!(output.status.success(), "{command}");
        assert!(stdout(&output).contains("Usage: stead"), "{command}");
    }
    for hidden in ["serve", "gateway", "supervise"] {
        assert!(!help.contains(&format!("\n  {hidden} ")), "{hidden} is an inner matter");
    }
}

#[test]
fn every_shell_gets_a_completion_script() {
    let dir = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = stead(dir.path(), &["completion", shell]);
        assert!(output.status.success(), "{shell}");
        let script = stdout(&output);
        assert!(script.contains("port-forward") && script.contains("rollback"), "{shell}");
    }
}

#[test]
fn manual_pages_are_written() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("man");
    let output = stead(dir.path(), &["man", folder.to_str().unwrap()]);
    assert!(output.status.success(), "{}", stderr(&output));
    let page = std::fs::read_to_string(folder.join("stead-deploy.1")).unwrap();
    assert!(page.contains("OCI archive"), "{page}");
}

#[test]
fn bad_usage_ends_with_2() {
    let dir = tempfile::tempdir().unwrap();
    for args in [
        &["no-such-command"][..],
        &[],
        &["scale", "web"],
        &["scale", "web", "many"],
        &["scale", "web", "1001"],
        &["status", "Not_A_Name"],
        &["deploy", "--strategy", "sideways"],
        &["deploy", "img", "--env", "=x"],
        &["deploy", "img", "--no-wait", "--timeout", "1s"],
        &["exec", "web"],
        &["--server", "nonsense", "apps"],
        &["up", "--listen", "somewhere"],
        &["up", "--https", "127.0.0.1:0"],
    ] {
        let text = fails(dir.path(), args, 2);
        assert!(!text.is_empty(), "{args:?}");
    }
}

#[test]
fn without_a_platform_every_command_says_how_to_start_it() {
    let dir = tempfile::tempdir().unwrap();
    for args in [&["apps"][..], &["deploy", "nginx:1"], &["logs", "web", "-f"], &["image", "ls"]] {
        let text = fails(dir.path(), args, 1);
        assert!(text.starts_with("error[STEAD-P001]: no platform answers at unix:"), "{text}");
        assert!(text.contains("help: start it with `stead up --detach`"), "{text}");
    }
    let json = fails(dir.path(), &["apps", "-o", "json"], 1);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json["error"]["code"], "STEAD-P001");
    let version = stead(dir.path(), &["version"]);
    assert!(version.status.success(), "the client has a version of its own");
    assert!(stdout(&version).contains("not running"));
}

#[test]
fn three_mistakes_in_a_manifest_are_three_errors_with_lines() {
    let dir = tempfile::tempdir().unwrap();
    let text =
        "app: web\nsource: web:1\nreplicas: 2\nresources: {memory: lots}\nhttp:\n  port: 0\n";
    std::fs::write(dir.path().join("app.yaml"), text).unwrap();
    let text = fails(dir.path(), &["deploy"], 2);
    let errors: Vec<&str> = text.lines().filter(|line| line.contains(": error STEAD-M")).collect();
    assert_eq!(errors.len(), 3, "{text}");
    for (error, place) in errors.iter().zip(["app.yaml:3:1:", "app.yaml:4:", "app.yaml:6:"]) {
        assert!(error.starts_with(place), "{error}");
    }
    assert!(text.contains("did you mean \"instances\"?"), "{text}");
}

#[test]
fn what_cannot_be_deployed_says_why_and_what_can() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("app.jar"), b"PK\x03\x04").unwrap();
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    let text = fails(dir.path(), &["deploy", "app.jar"], 2);
    assert!(text.starts_with("error[STEAD-I009]: app.jar is refused: "), "{text}");
    assert!(text.contains("help: "), "{text}");
    let text = fails(dir.path(), &["deploy", "./empty"], 2);
    assert!(text.contains("./empty is a folder of which stead can make no app"), "{text}");
    assert!(text.contains("an image reference") && text.contains("a jar"), "{text}");
    let text = fails(dir.path(), &["deploy", "--file", "gone.yaml"], 2);
    assert!(text.contains("gone.yaml cannot be read"), "{text}");
}

#[test]
fn a_secret_s_value_is_not_taken_from_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let text = fails(dir.path(), &["secrets", "set", "web", "DB_PASSWORD=hunter2"], 2);
    assert!(text.contains("standard input"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
    // The tests' standard input is empty.
    let text = fails(dir.path(), &["secrets", "set", "web", "DB_PASSWORD"], 2);
    assert!(text.contains("expected a text of 1 to 65536 bytes"), "{text}");
}

#[test]
fn deleting_asks_and_without_a_terminal_needs_a_flag() {
    let dir = tempfile::tempdir().unwrap();
    let text = fails(dir.path(), &["delete", "web"], 2);
    assert!(text.contains("--yes"), "{text}");
}

/// Answers one request on the platform's socket with `status` and `error`.
fn answering(dir: &Path, status: u16, error: serde_json::Value) -> std::thread::JoinHandle<String> {
    let listener = UnixListener::bind(dir.join("stead.sock")).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = vec![0; 4096];
        let length = stream.read(&mut head).unwrap();
        let body = serde_json::json!({
            "type": "about:blank", "status": status, "title": "t", "detail": "d", "error": error,
        })
        .to_string();
        write!(
            stream,
            "HTTP/1.1 {status} X\r\ncontent-type: application/problem+json\r\n\
             content-length: {}\r\n\r\n{body}",
            body.len()
        )
        .unwrap();
        String::from_utf8_lossy(&head[..length]).into_owned()
    })
}

#[test]
fn the_exit_code_is_the_kind_of_the_platform_s_error() {
    for (code, status, exit) in [
        ("STEAD-R002", 404, 3),
        ("STEAD-R004", 403, 6),
        ("STEAD-R003", 409, 1),
        ("STEAD-R001", 400, 2),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let error = serde_json::json!({"code": code, "message": "it is so", "hint": "do this"});
        let request = answering(dir.path(), status, error);
        let text = fails(dir.path(), &["-n", "team", "status", "web", "--token", "t0"], exit);
        assert_eq!(text, format!("error[{code}]: it is so\n  help: do this\n"));
        let request = request.join().unwrap();
        assert!(request.starts_with("GET /api/v1/namespaces/team/apps/web HTTP/1.1"), "{request}");
        assert!(request.contains("authorization: Bearer t0"), "{request}");
    }
}

/// A process, killed when dropped.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_gateway_opens_as_many_files_as_it_may() {
    let dir = tempfile::tempdir().unwrap();
    let mut limited = Command::new("prlimit");
    limited.args(["--nofile=256:4096", env!("CARGO_BIN_EXE_stead"), "gateway"]);
    for folder in ["data", "run"] {
        std::fs::create_dir(dir.path().join(folder)).unwrap();
        limited.arg(format!("--{folder}-dir")).arg(dir.path().join(folder));
    }
    limited.args(["--http", "127.0.0.1:0"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut gateway = Running(limited.spawn().unwrap());
    let path = format!("/proc/{}/limits", gateway.0.id());
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let limits = std::fs::read_to_string(&path).unwrap_or_default();
        let open = limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        let values: Vec<&str> = open.unwrap_or_default().split_whitespace().take(2).collect();
        if values == ["4096", "4096"] {
            return;
        }
        assert!(gateway.0.try_wait().unwrap().is_none(), "it goes on");
        assert!(Instant::now() < deadline, "{values:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
