//! `stead up`: runs the supervisor here, or leaves one behind.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use anyhow::{Context as _, Result};
use stead_core::error::{Code, UserError};

use super::layout::{API_SOCKET, DEFAULT_DATA_DIR, default_run_dir};
use super::role::READY;
use super::settings::Settings;
use super::{log_to_stderr, role, supervise};

/// Runs the supervisor in the foreground until it is stopped.
pub(crate) fn attached(settings: Settings) -> Result<()> {
    must_be_root()?;
    log_to_stderr();
    let greeting = greeting(&settings);
    // Nobody may be reading: that is no reason to end.
    block_on(supervise::run(settings, move || drop(writeln!(std::io::stdout(), "{greeting}"))))
}

/// Starts a supervisor in the background; returns once the platform answers.
pub(crate) fn detached(settings: Settings) -> Result<()> {
    must_be_root()?;
    settings.layout.make()?;
    let log = settings.layout.open_log("supervisor")?;
    let from = log.metadata()?.len();
    let flags = ["supervise".into()].into_iter().chain(settings.all_flags());
    let mut child = role::command(flags)
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .context("the supervisor cannot be started")?;
    let output = child.stdout.take().context("its output was piped")?;
    let mut answer = String::new();
    // It ends early only when the supervisor does.
    BufReader::new(output).read_line(&mut answer)?;
    if answer.trim() == READY {
        println!("{}", greeting(&settings));
        return Ok(());
    }
    match serde_json::from_str::<UserError>(&answer) {
        Ok(error) => Err(error.into()),
        Err(_) => Err(UserError::new(
            Code::PlatformDown,
            format!("the supervisor ended: {}", settings.layout.tail_of_log("supervisor", from, 4)),
            format!("its log is {}", settings.layout.log("supervisor").display()),
        )
        .into()),
    }
}

/// What [`detached`] starts: the supervisor with its answer on standard output.
pub(crate) fn background(settings: Settings) -> Result<()> {
    role::leave_session(c"stead-super");
    log_to_stderr();
    let end = block_on(supervise::run(settings, role::say_ready));
    if let Err(error) = &end {
        let error = match error.downcast_ref::<UserError>() {
            Some(error) => error.clone(),
            None => UserError::new(
                Code::PlatformDown,
                format!("the platform cannot be started: {error:#}"),
                "`stead doctor` checks the machine",
            ),
        };
        // Whoever waited for it may be gone.
        let _ = writeln!(std::io::stdout(), "{}", serde_json::to_string(&error)?);
    }
    end
}

fn block_on(future: impl Future<Output = Result<()>>) -> Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

/// Where everything is, and what to do next.
fn greeting(settings: &Settings) -> String {
    let Settings { layout, listen, http, tls, .. } = settings;
    let socket = layout.api_socket();
    let tcp = listen.0.map(|addr| format!(", http://{addr}")).unwrap_or_default();
    let mut lines = vec![
        "stead is up".to_owned(),
        format!("  gateway  http://{http}"),
        format!("  api      unix:{}{tcp}", socket.display()),
        format!("  data     {}", layout.data_dir.display()),
    ];
    if let Some(tls) = tls {
        lines.insert(2, format!("           https://{}", tls.addr));
    }
    if default_run_dir().join(API_SOCKET) != socket {
        lines.push(format!("  use it   export STEAD_SERVER=unix:{}", socket.display()));
    }
    lines.push("next: stead deploy IMAGE --app NAME".to_owned());
    lines.join("\n")
}

/// The engine makes namespaces, mounts and networks.
pub(super) fn must_be_root() -> Result<(), UserError> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(UserError::new(
        Code::MachineUnfit,
        "the platform needs root: it makes namespaces, mounts and networks",
        format!("run it as root; its data goes to {DEFAULT_DATA_DIR}"),
    ))
}
