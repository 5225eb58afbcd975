//! The status page and what keeps it live: one file without anything from elsewhere, and a stream of the
//! status, once a second, and of what happens.

use std::convert::Infallible;
use std::sync::Weak;
use std::time::Duration;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_SECURITY_POLICY;
use axum::response::sse::{Event, Sse};
use axum::response::{Html, IntoResponse, Response};
use futures_util::stream;
use serde_json::json;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{MissedTickBehavior, interval};

use super::connection::Activity;
use crate::stop;
use crate::supervisor::Supervisor;

const PAGE: &str = include_str!("page.html");
/// Nothing is loaded from anywhere, and nobody may put the page into a frame.
const POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; \
                      img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
/// Between two looks at the status.
const EVERY: Duration = Duration::from_secs(1);

/// `GET /`
pub async fn page() -> Response {
    ([(CONTENT_SECURITY_POLICY, POLICY)], Html(PAGE)).into_response()
}

/// `GET /v1/events`: server-sent events called `status`, once a second what `GET /v1/status` answers; and what happens to
/// moves, when it does, by its own name.
pub async fn events(State(daemon): State<Weak<Supervisor>>, request: Request) -> Response {
    let activity =
        request.extensions().get::<ConnectInfo<Activity>>().map(|ConnectInfo(activity)| activity.answering());
    let Some(happening) = daemon.upgrade().map(|daemon| daemon.follow()) else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The connection counts as one that is being answered as long as the stream lives.
    let first = (daemon, activity, happening, tick);
    let events = stream::unfold(first, |(daemon, activity, mut happening, mut tick)| async move {
        let told = daemon.upgrade()?.stopping();
        let event = tokio::select! {
            biased;
            () = stop::told(&told) => return None,
            happened = happening.recv() => match happened {
                Ok(event) => Event::default().event(event.event).json_data(&event),
                Err(RecvError::Lagged(events)) => Event::default().event("lost").json_data(json!({"events": events})),
                Err(RecvError::Closed) => return None,
            },
            _ = tick.tick() => Event::default().event("status").json_data(daemon.upgrade()?.status()),
        };
        Some((Ok::<_, Infallible>(event.ok()?), (daemon, activity, happening, tick)))
    });
    Sse::new(events).into_response()
}
