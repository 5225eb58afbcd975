//! What every request passes, whatever its path: the token for everything that could change something,
//! and the headers of every answer. There is no CORS: no other site's page may read or command.

use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::answer::Problem;
use super::connection::Activity;
use super::token::Token;

/// Lets GET and HEAD through, and everything else only with the token.
pub async fn guard(State(token): State<Arc<Token>>, request: Request, next: Next) -> Response {
    let activity = request.extensions().get::<ConnectInfo<Activity>>().map(|ConnectInfo(activity)| activity.clone());
    let _answering = activity.as_ref().map(Activity::answering);
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    let mut response = if reads || token.opens(request.headers().get(AUTHORIZATION).map(HeaderValue::as_bytes)) {
        next.run(request).await
    } else {
        tracing::warn!(method = %request.method(), path = ?request.uri().path(), "refused a request without a valid token");
        unauthorized()
    };
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

fn unauthorized() -> Response {
    let message = "the request has no valid token";
    let next = "send `Authorization: Bearer <token>` with the token from the file of http.token_file";
    let problem = Problem::new(StatusCode::UNAUTHORIZED, "unauthorized", "token", message, next);
    let mut response = problem.into_response();
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    response
}
