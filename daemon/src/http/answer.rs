//! What is answered when the answer is no: always JSON, always with the next step.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use schemas::record::Fault;

use crate::supervisor::{Refusal, RefusalKind};

/// An answer other than 200.
#[derive(Debug)]
pub struct Problem {
    status: StatusCode,
    fault: Fault,
}

impl Problem {
    /// A problem from its parts; see [`Fault`].
    pub fn new(
        status: StatusCode,
        code: &str,
        object: &str,
        message: impl Into<String>,
        next: impl Into<String>,
    ) -> Self {
        Problem { status, fault: Fault::new(code, object, message, next) }
    }

    /// The daemon is going down.
    pub fn stopping() -> Self {
        Problem::new(
            StatusCode::SERVICE_UNAVAILABLE,
            "stopping",
            "daemon",
            "the daemon is stopping",
            "start it again: carveout run",
        )
    }

    /// The request cannot be understood.
    pub fn bad_request(object: &str, message: impl Into<String>, next: &str) -> Self {
        Problem::new(StatusCode::BAD_REQUEST, "bad_request", object, message, next)
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let status = match refusal.kind {
            RefusalKind::NotFound => StatusCode::NOT_FOUND,
            RefusalKind::Conflict => StatusCode::CONFLICT,
            RefusalKind::Invalid => StatusCode::BAD_REQUEST,
            RefusalKind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        };
        Problem { status, fault: refusal.fault }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        (self.status, Json(self.fault)).into_response()
    }
}
