//! The status page and what keeps it live: one file without anything from elsewhere, and a stream of the
//! status, once a second.

use std::convert::Infallible;
use std::sync::Weak;
use std::time::Duration;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::CONTENT_SECURITY_POLICY;
use axum::response::sse::{Event, Sse};
use axum::response::{Html, IntoResponse, Response};
use futures_util::stream;

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

/// `GET /v1/events`: server-sent events called `status`, each what `GET /v1/status` answers.
pub async fn events(State(daemon): State<Weak<Supervisor>>, request: Request) -> Response {
    let activity =
        request.extensions().get::<ConnectInfo<Activity>>().map(|ConnectInfo(activity)| activity.answering());
    let first = (daemon, activity, true);
    let statuses = stream::unfold(first, |(daemon, activity, first)| async move {
        if !first {
            let told = daemon.upgrade()?.stopping();
            tokio::select! {
                () = tokio::time::sleep(EVERY) => {}
                () = stop::told(&told) => return None,
            }
        }
        let event = Event::default().event("status").json_data(daemon.upgrade()?.status()).ok()?;
        // The connection counts as one that is being answered as long as the stream lives.
        Some((Ok::<_, Infallible>(event), (daemon, activity, false)))
    });
    Sse::new(statuses).into_response()
}
