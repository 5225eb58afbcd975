//! The answers about moves, and the commands to them. Each hands over to the supervisor and shapes
//! what comes back; a command that has begun is finished even when its client goes away.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Json;
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use schemas::Lsn;
use schemas::config::{Isolation, Span};
use schemas::record::NamedTarget;
use schemas::status::{Route, Status, TenantStatus};
use schemas::url::{BadUrl, PgUrl};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tracing::Instrument;

use super::answer::Problem;
use crate::metrics;
use crate::moves::cutover::Wish;
use crate::supervisor::{Refusal, Supervisor, Wanted};

/// The longest body that is read, in bytes.
const BODY_LIMIT_BYTES: usize = 64 << 10;
/// The longest wait for a body.
const BODY_DEADLINE: Duration = Duration::from_secs(10);
/// Commands that there are.
pub const COMMANDS: [&str; 9] =
    ["move", "verify", "rehearse", "cutover", "rollback", "complete", "pause", "resume", "cancel"];

/// How long the tenant's writers are held at most, where nobody says.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// What may be said.
const PAUSES: RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(60);

/// What a handler gets to the supervisor by.
type Daemon = State<Weak<Supervisor>>;

/// The body of `move`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct MoveRequest {
    /// `schema` or `database`; left out, the configuration or the move that there is decides.
    to: Option<String>,
    /// The URL of a server of its own for this tenant, without a password.
    target: Option<String>,
    /// The file on the daemon's machine that has the password for `target`.
    target_password_file: Option<PathBuf>,
}

/// The body of `resume`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ResumeRequest {
    /// The end of the transaction to leave out.
    skip: Option<Lsn>,
}

/// The body of `rehearse`, `cutover` and `rollback`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CutoverRequest {
    /// How long the tenant's writers may be held at most.
    max_pause: Option<Span>,
}

/// The body of `complete`.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct CompleteRequest {
    /// Leave the tenant's rows at the source.
    #[serde(default)]
    keep_source: bool,
}

/// `GET /readyz`
pub async fn ready(State(daemon): Daemon) -> Result<&'static str, Problem> {
    let not_ready = |why: String| {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "not_ready",
            "daemon",
            why,
            "see `carveout status` and the daemon's log",
        )
    };
    alive(&daemon)?.ready().map(|()| "ready\n").map_err(not_ready)
}

/// `GET /metrics`
pub async fn metrics(State(daemon): Daemon) -> Result<Response, Problem> {
    let text = alive(&daemon)?.metrics();
    let failed = |error: std::fmt::Error| {
        let next = "see the daemon's log";
        Problem::new(StatusCode::INTERNAL_SERVER_ERROR, "metrics", "/metrics", error.to_string(), next)
    };
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text.map_err(failed)?).into_response())
}

/// `GET /v1/status`
pub async fn status(State(daemon): Daemon) -> Result<Json<Status>, Problem> {
    Ok(Json(alive(&daemon)?.status()))
}

/// `GET /v1/tenants`
pub async fn list(State(daemon): Daemon) -> Result<Json<Vec<TenantStatus>>, Problem> {
    Ok(Json(alive(&daemon)?.status().tenants))
}

/// `GET /v1/tenants/{tenant}`
pub async fn one(
    State(daemon): Daemon,
    path: Result<Path<String>, PathRejection>,
) -> Result<Json<TenantStatus>, Problem> {
    let Path(tenant) = path.map_err(bad_path)?;
    let found = alive(&daemon)?.tenant(&tenant);
    found.map(Json).ok_or_else(|| {
        let next =
            "`carveout status` lists the moves there are; `carveout move TENANT --to schema|database` starts one";
        Problem::new(StatusCode::NOT_FOUND, "no_move", &tenant, "this tenant has no move", next)
    })
}

/// `GET /v1/tenants/{tenant}/route`
pub async fn route(State(daemon): Daemon, path: Result<Path<String>, PathRejection>) -> Result<Json<Route>, Problem> {
    let Path(tenant) = path.map_err(bad_path)?;
    Ok(Json(alive(&daemon)?.route(&tenant)?))
}

/// `POST /v1/tenants/{tenant}/{command}`
pub async fn command(
    State(daemon): Daemon,
    path: Result<Path<(String, String)>, PathRejection>,
    body: Body,
) -> Result<Response, Problem> {
    let Path((tenant, command)) = path.map_err(bad_path)?;
    match command.as_str() {
        "move" => {
            let wanted = wanted(&read(body).await?)?;
            let supervisor = alive(&daemon)?;
            finish(async move { supervisor.start_move(&tenant, wanted).await }).await
        }
        "verify" => {
            read(body).await?;
            let supervisor = alive(&daemon)?;
            finish(async move { supervisor.verify(&tenant).await }).await
        }
        "rehearse" | "cutover" | "rollback" => {
            let wish = match command.as_str() {
                "rehearse" => Wish::Rehearse,
                "cutover" => Wish::CutOver,
                _ => Wish::RollBack,
            };
            let next = "send nothing, or {\"max_pause\": \"5s\"}";
            let CutoverRequest { max_pause } = request(&read(body).await?, &command, next)?;
            let max_pause = max_pause.map_or(MAX_PAUSE, |Span(time)| time);
            if !PAUSES.contains(&max_pause) {
                return Err(Problem::bad_request("max_pause", "it is from 50ms to 60s", next));
            }
            let supervisor = alive(&daemon)?;
            finish(async move { supervisor.cut_over(&tenant, wish, max_pause).await }).await
        }
        "complete" => {
            let next = "send nothing, or {\"keep_source\": true}";
            let CompleteRequest { keep_source } = request(&read(body).await?, "complete", next)?;
            let supervisor = alive(&daemon)?;
            finish(async move { supervisor.complete(&tenant, keep_source).await }).await
        }
        "pause" => {
            read(body).await?;
            let supervisor = alive(&daemon)?;
            finish(async move { supervisor.pause(&tenant).await }).await
        }
        "resume" => {
            let ResumeRequest { skip } =
                request(&read(body).await?, "resume", "send nothing, or {\"skip\": \"0/5000060\"}")?;
            let supervisor = alive(&daemon)?;
            finish(async move { supervisor.resume_tenant(&tenant, skip).await }).await
        }
        "cancel" => {
            read(body).await?;
            let supervisor = alive(&daemon)?;
            finish(async move { supervisor.cancel(&tenant).await }).await
        }
        other => {
            let message = "there is no such command";
            Err(Problem::new(
                StatusCode::NOT_FOUND,
                "not_found",
                other,
                message,
                "the commands are move, verify, rehearse, cutover, rollback, complete, pause, resume and cancel",
            ))
        }
    }
}

/// Whether the interface has such a command.
pub fn is_command(name: &str) -> bool {
    COMMANDS.contains(&name)
}

fn alive(daemon: &Weak<Supervisor>) -> Result<Arc<Supervisor>, Problem> {
    daemon.upgrade().ok_or_else(Problem::stopping)
}

/// Runs the command in a task of its own, so that a client that goes away leaves nothing half done.
async fn finish<T: Serialize + Send + 'static>(
    command: impl Future<Output = Result<T, Refusal>> + Send + 'static,
) -> Result<Response, Problem> {
    match tokio::spawn(command.in_current_span()).await {
        Ok(answer) => Ok(Json(answer?).into_response()),
        Err(ended) if ended.is_cancelled() => Err(Problem::stopping()),
        Err(_) => {
            let next = "see the daemon's log, and report it";
            Err(Problem::new(
                StatusCode::INTERNAL_SERVER_ERROR,
                "internal",
                "daemon",
                "the command failed unexpectedly",
                next,
            ))
        }
    }
}

/// The whole body, within its limits.
async fn read(body: Body) -> Result<Bytes, Problem> {
    let next = "send a JSON object, or nothing";
    let late =
        |_| Problem::new(StatusCode::REQUEST_TIMEOUT, "timeout", "body", "the body did not arrive in time", next);
    let large = |_| {
        let message = format!("the body was cut, or is larger than {BODY_LIMIT_BYTES} bytes");
        Problem::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "body", message, next)
    };
    tokio::time::timeout(BODY_DEADLINE, to_bytes(body, BODY_LIMIT_BYTES)).await.map_err(late)?.map_err(large)
}

/// What a command was sent; nothing is the default.
fn request<T: Default + DeserializeOwned>(body: &[u8], command: &str, next: &str) -> Result<T, Problem> {
    match body.trim_ascii() {
        b"" => Ok(T::default()),
        // The position is enough: the parser's message would quote what was sent, a URL's password too.
        json => serde_json::from_slice(json).map_err(|error| {
            let (line, column) = (error.line(), error.column());
            let message = format!("the body is not what {command} takes (line {line}, column {column})");
            Problem::bad_request("body", message, next)
        }),
    }
}

/// Where `move` is asked to bring the tenant.
fn wanted(body: &[u8]) -> Result<Wanted, Problem> {
    let next = "send {\"to\": \"schema\"} or {\"to\": \"database\"}, for a server of its own with \"target\": \"postgresql://…\"";
    let request: MoveRequest = request(body, "move", next)?;
    let to = match request.to.as_deref() {
        None => None,
        Some("schema") => Some(Isolation::Schema),
        Some("database") => Some(Isolation::Database),
        Some("shared") => Some(Isolation::Shared),
        Some(_) => {
            return Err(Problem::bad_request(
                "to",
                "a tenant moves to a schema or to a database, or home to shared",
                next,
            ));
        }
    };
    let target = named_target(request.target.as_deref(), request.target_password_file)
        .map_err(|(object, why)| Problem::bad_request(object, why, next))?;
    Ok(Wanted { to, target, resume: false })
}

/// Reads `--target` and its password file; the error is the part that is wrong, and why. The URL goes into records,
/// so it has no password.
pub fn named_target(
    url: Option<&str>,
    password_file: Option<PathBuf>,
) -> Result<Option<NamedTarget>, (&'static str, String)> {
    let Some(url) = url else {
        let alone = password_file.map(|_| ("target_password_file", "it is for a target, which is missing".to_owned()));
        return alone.map_or(Ok(None), Err);
    };
    let url: PgUrl = url.parse().map_err(|error: BadUrl| ("target", error.to_string()))?;
    if url.password.is_some() {
        let why = "it has a password, which other users of the machine could see: leave it out and name the file that has it \
                   (--target-password-file, target_password_file), or have it in database_config.password_file";
        return Err(("target", why.to_owned()));
    }
    if password_file.as_ref().is_some_and(|file| file.is_relative()) {
        return Err(("target_password_file", "it is not an absolute path".to_owned()));
    }
    Ok(Some(NamedTarget { url: url.to_string(), password_file }))
}

fn bad_path(rejection: PathRejection) -> Problem {
    Problem::bad_request("path", rejection.body_text(), "percent-encode the tenant as UTF-8")
}
