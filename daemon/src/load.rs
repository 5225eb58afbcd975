//! `limits.source`: copies stand still while the source says that it is busy. What cannot be measured counts as
//! busy. Stream and apply are never held up by it: the source's log would grow.

use std::time::Duration;

use connectors::postgres::load::{Load, measure};
use connectors::postgres::{Client, Result, client};
use schemas::config::{Config, SourceLimits, Span};
use tokio::sync::watch;

/// How often the source is asked while something is copied.
pub const EVERY: Duration = Duration::from_secs(1);
/// A source that takes longer to answer is busy.
const PATIENCE: Duration = Duration::from_secs(5);

/// What every copy waits at.
pub struct Gate {
    limits: SourceLimits,
    /// Why copies stand still; `None` lets them pass.
    reason: watch::Sender<Option<String>>,
}

impl Gate {
    /// Closed until the source was asked, where there is a limit.
    pub fn new(limits: SourceLimits) -> Self {
        let gate = Gate { limits, reason: watch::Sender::new(None) };
        gate.forget();
        gate
    }

    /// Why copies stand still.
    pub fn reason(&self) -> Option<String> {
        self.reason.borrow().clone()
    }

    /// Waits until a copy may begin: what an earlier copy was told says nothing about now.
    pub async fn passed_anew(&self) {
        self.forget();
        self.passed().await;
    }

    /// Waits until a copy may read on.
    pub async fn passed(&self) {
        // Only a daemon that ends has no gate any more.
        drop(self.reason.subscribe().wait_for(Option::is_none).await);
    }

    /// Whether there is a limit at all.
    pub fn is_limited(&self) -> bool {
        self.limits.any()
    }

    /// Nothing was measured lately.
    pub fn forget(&self) {
        self.reason
            .send_replace(self.is_limited().then(|| "the source has not been asked for its load yet".to_owned()));
    }

    /// Asks the source, and opens or closes.
    pub async fn measure(&self, connection: &mut Option<Client>, config: &Config) {
        let asked = tokio::time::timeout(PATIENCE, ask(connection, config)).await;
        let reason = match &asked {
            Ok(Ok(load)) => beyond(load, &self.limits),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some(format!("the source did not say its load within {} s", PATIENCE.as_secs())),
        };
        if !matches!(asked, Ok(Ok(_))) {
            *connection = None;
        }
        let was = self.reason.send_replace(reason.clone());
        match (was, reason) {
            (None, Some(reason)) => tracing::info!(reason, "copies stand still"),
            (Some(_), None) => tracing::info!("copies go on"),
            _ => {}
        }
    }
}

async fn ask(connection: &mut Option<Client>, config: &Config) -> Result<Load> {
    let source = match connection {
        Some(source) => source,
        None => connection.insert(client::connect(&config.source.url, "load").await?),
    };
    measure(source).await
}

/// The first limit that is exceeded.
fn beyond(load: &Load, limits: &SourceLimits) -> Option<String> {
    let counted = [
        ("active_sessions", load.active_sessions, limits.active_sessions),
        ("waiting_sessions", load.waiting_sessions, limits.waiting_sessions),
    ];
    let session = counted.into_iter().find(|(_, now, most)| *most > 0 && now > most);
    let Span(lag) = limits.replica_lag;
    let behind = || {
        let now = load.replica_lag;
        (!lag.is_zero() && now > lag).then(|| format!("replica_lag {:.1} s (limit {})", now.as_secs_f64(), Span(lag)))
    };
    session.map(|(name, now, most)| format!("{name} {now} (limit {most})")).or_else(behind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_exceeded_above_it_and_none_is_none() {
        let load = Load { active_sessions: 9, waiting_sessions: 2, replica_lag: Duration::from_millis(10_100) };
        let limits = |active_sessions, waiting_sessions, lag| SourceLimits {
            active_sessions,
            waiting_sessions,
            replica_lag: Span(Duration::from_secs(lag)),
        };
        assert_eq!(beyond(&load, &limits(0, 0, 0)), None);
        assert_eq!(beyond(&load, &limits(9, 2, 11)), None);
        assert_eq!(beyond(&load, &limits(8, 0, 0)).as_deref(), Some("active_sessions 9 (limit 8)"));
        assert_eq!(beyond(&load, &limits(9, 1, 0)).as_deref(), Some("waiting_sessions 2 (limit 1)"));
        assert_eq!(beyond(&load, &limits(9, 2, 10)).as_deref(), Some("replica_lag 10.1 s (limit 10s)"));
    }

    #[tokio::test]
    async fn a_gate_without_limits_is_open_and_one_with_them_waits_for_the_first_answer() {
        Gate::new(SourceLimits::default()).passed().await;
        let gate = Gate::new(SourceLimits { active_sessions: 1, ..SourceLimits::default() });
        assert!(gate.reason().is_some());
        assert!(tokio::time::timeout(Duration::from_millis(20), gate.passed()).await.is_err());
        gate.reason.send_replace(None);
        gate.passed().await;
        assert!(tokio::time::timeout(Duration::from_millis(20), gate.passed_anew()).await.is_err());
    }
}
