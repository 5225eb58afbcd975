//! The daemon's only door: who lives, how far the moves are, and the commands.
//!
//! Reading is open to whoever reaches the address, which is loopback only; everything but GET and HEAD
//! needs the bearer token. It must never decide anything itself: the supervisor does, and it must never
//! keep the supervisor alive, so it holds it weakly.

mod answer;
mod connection;
mod guard;
mod page;
pub mod tenants;
pub mod token;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};

use anyhow::{Context, Result};
use axum::Router;
use axum::http::{StatusCode, Uri};
use axum::middleware::from_fn_with_state;
use axum::routing::{get, post};
use tokio::net::TcpListener;

use crate::supervisor::Supervisor;
use answer::Problem;
use connection::{Activity, Bounded};
use token::Token;

/// Why the address could not be had.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// Somebody listens there already, perhaps another instance.
    #[error("http.listen: {0} is in use by another program, or by a carveout that runs already")]
    InUse(SocketAddr),
    /// It could be reached from other machines, which takes TLS.
    #[error("http.listen: {0} is not a loopback address; another one needs TLS, which this version does not have")]
    NotLoopback(SocketAddr),
    /// The system refuses for another reason.
    #[error("http.listen: cannot listen on {0}: {1}")]
    Refused(SocketAddr, std::io::Error),
}

/// Takes the address, before anything else is started; requests wait until [`serve`].
pub async fn bind(listen: SocketAddr) -> Result<TcpListener, BindError> {
    if !listen.ip().to_canonical().is_loopback() {
        return Err(BindError::NotLoopback(listen));
    }
    TcpListener::bind(listen).await.map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => BindError::InUse(listen),
        _ => BindError::Refused(listen, error),
    })
}

/// Answers until `shutdown` resolves and the requests in hand are answered.
pub async fn serve(
    supervisor: Weak<Supervisor>,
    listener: TcpListener,
    token: Token,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    serve_router(router(supervisor, token), listener, shutdown).await
}

async fn serve_router(
    router: Router,
    listener: TcpListener,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<()> {
    let service = router.into_make_service_with_connect_info::<Activity>();
    let server = axum::serve(Bounded::new(listener), service).with_graceful_shutdown(shutdown);
    server.await.context("serve HTTP")?;
    Ok(())
}

/// Every route there is. The commands share one, so that none can be added without the guard.
fn router(supervisor: Weak<Supervisor>, token: Token) -> Router {
    Router::new()
        .route("/", get(page::page))
        .route("/v1/events", get(page::events))
        .route("/livez", get(alive))
        .route("/healthz", get(alive))
        .route("/readyz", get(tenants::ready))
        .route("/metrics", get(tenants::metrics))
        .route("/v1/status", get(tenants::status))
        .route("/v1/tenants", get(tenants::list))
        .route("/v1/tenants/{tenant}", get(tenants::one))
        .route("/v1/tenants/{tenant}/route", get(tenants::route))
        .route("/v1/tenants/{tenant}/{command}", post(tenants::command))
        .fallback(unknown)
        .method_not_allowed_fallback(wrong_method)
        .with_state(supervisor)
        .layer(from_fn_with_state(Arc::new(token), guard::guard))
}

/// Alive means that a request is answered; nothing else is asked.
async fn alive() -> &'static str {
    "ok\n"
}

async fn unknown(uri: Uri) -> Problem {
    let next = "GET /v1/status shows everything; docs describe the other paths";
    Problem::new(StatusCode::NOT_FOUND, "not_found", uri.path(), "there is nothing at this path", next)
}

async fn wrong_method(uri: Uri) -> Problem {
    // All commands share a route, which also takes in what is none.
    let below_tenant = uri.path().strip_prefix("/v1/tenants/").and_then(|rest| rest.split_once('/'));
    if below_tenant.is_some_and(|(_, command)| !tenants::is_command(command)) {
        return unknown(uri).await;
    }
    let next = "commands are sent with POST, everything else is read with GET";
    Problem::new(StatusCode::METHOD_NOT_ALLOWED, "method", uri.path(), "this path does not take that method", next)
}

#[cfg(test)]
mod tests;
