//! `carveout run`: the daemon's life, from its configuration to its orderly end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use schemas::config::Config;
use schemas::status::Status;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::client::Client;
use super::exit::{Exit, Failure};
use super::{Global, block_on, load, log};
use crate::http::token::Token;
use crate::http::{self, BindError};
use crate::supervisor::{Startup, Supervisor};

/// How long requests in hand are answered when everything else has ended.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Runs the command, until a signal.
pub fn run(global: &Global) -> Result<Exit, Failure> {
    let config = load::load(&global.config)?;
    log::start(config.log.format, &config.log.level)?;
    block_on(live(config))?
}

async fn live(config: Config) -> Result<Exit, Failure> {
    let mut signals =
        Signals::new().map_err(|error| refused("process", format!("cannot listen for signals: {error}")))?;
    let token = Token::read_or_make(&config.http.token_file);
    let token =
        token.map_err(|error| Failure::new(Exit::Usage, "token", "http.token_file", format!("{error:#}"), ""))?;
    let listener = listen(&config).await?;
    let address = config.http.listen;
    let started = tokio::select! {
        started = Supervisor::start(config) => started,
        () = signals.next() => return Ok(Exit::Done),
    };
    let supervisor = started.map_err(|error| not_started(&error))?;
    tracing::info!(%address, "answering");
    tell_systemd(&[NotifyState::Ready]);
    watchdog(&supervisor);
    let (end, ended) = oneshot::channel::<()>();
    let shutdown = async { ended.await.unwrap_or_default() };
    let mut server = tokio::spawn(http::serve(Arc::downgrade(&supervisor), listener, token, shutdown));
    let lost = tokio::select! {
        result = &mut server => Some(result),
        () = signals.next() => None,
    };
    stop(&supervisor, &mut signals).await;
    match lost {
        None => {
            end.send(()).ok();
            // A request that takes longer ends with the process; its client is told by the closed connection.
            timeout(LAST_ANSWERS, server).await.ok();
            Ok(Exit::Done)
        }
        Some(Ok(Err(error))) => Err(refused("http", format!("the HTTP server ended: {error:#}"))),
        Some(_) => Err(refused("http", "the HTTP server ended unexpectedly".to_owned())),
    }
}

/// Ends in order; a second signal ends the process at once.
async fn stop(supervisor: &Supervisor, signals: &mut Signals) {
    tracing::info!("stopping; a second signal ends at once");
    tell_systemd(&[NotifyState::Stopping]);
    tokio::select! {
        () = supervisor.stop() => tracing::info!("stopped"),
        () = signals.next() => {
            tracing::warn!("ended by a second signal; the next start repairs what was in hand");
            std::process::exit(Exit::No as i32);
        }
    }
}

/// Where systemd started us (Type=notify), it is told; elsewhere nothing happens.
fn tell_systemd(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd could not be told");
    }
}

/// Where the unit has a WatchdogSec: signs of life, as long as the status can be told.
fn watchdog(supervisor: &Arc<Supervisor>) {
    let Some(every) = sd_notify::watchdog_enabled().map(|limit| limit / 2) else { return };
    let supervisor = Arc::downgrade(supervisor);
    tokio::spawn(async move {
        while let Some(supervisor) = supervisor.upgrade() {
            let status = supervisor.status();
            drop(supervisor);
            let line = format!("{}, {} moves", status.source.state, status.tenants.len());
            tell_systemd(&[NotifyState::Watchdog, NotifyState::Status(&line)]);
            tokio::time::sleep(every).await;
        }
    });
}

/// SIGTERM and SIGINT, from now on.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Signals { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Takes the address. When somebody has it, the exit code says whether that is a daemon for the same slot.
async fn listen(config: &Config) -> Result<TcpListener, Failure> {
    let error = match http::bind(config.http.listen).await {
        Ok(listener) => return Ok(listener),
        Err(error) => error,
    };
    let (address, slot) = (config.http.listen, config.source.slot.clone());
    let held = matches!(error, BindError::InUse(_))
        && tokio::task::spawn_blocking(move || same_slot(address, &slot)).await.unwrap_or(false);
    let (exit, next) = match held {
        true => (Exit::Held, "`carveout status` shows it; stop it before starting another"),
        false => (Exit::Usage, "give another address in http.listen"),
    };
    Err(Failure::new(exit, "listen", "http.listen", error.to_string(), next))
}

/// Whether a daemon answers there that reads this slot.
fn same_slot(address: SocketAddr, slot: &str) -> bool {
    let status: Result<Status, Failure> = Client::at(format!("http://{address}")).get("/v1/status");
    status.is_ok_and(|status| status.source.slot == slot)
}

/// The exit code of a daemon that did not start.
fn not_started(error: &anyhow::Error) -> Failure {
    let (exit, next) = match error.downcast_ref::<Startup>() {
        Some(Startup::Locked(_)) => {
            (Exit::Held, "stop the other instance, or give this one another state_dir and slot")
        }
        Some(Startup::Unreachable(_)) => (Exit::Unreachable, "`carveout check` tries the same"),
        Some(Startup::Refused(_)) | None => (Exit::No, "`carveout check` shows what stands in the way"),
    };
    Failure::new(exit, "start", "daemon", format!("{error:#}"), next)
}

fn refused(object: &str, message: String) -> Failure {
    Failure::new(Exit::No, "daemon", object, message, "")
}
