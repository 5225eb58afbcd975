//! A condition with a deadline. A test never sleeps for as long as something "should" take: it says what
//! it waits for, and hears what was seen last when that does not come.

use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::time::{Instant, sleep_until, timeout_at};

/// Between two looks at the condition.
const POLL: Duration = Duration::from_millis(20);

/// Asks `condition` every 20 ms until it answers `Ok`. An `Err` is no failure but an observation ("phase is
/// copying"): after `deadline` the last one stands in the error, behind `what`. A condition that hangs is
/// given up at the deadline too.
pub async fn until<T>(what: &str, deadline: Duration, mut condition: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + deadline;
    let mut observed = anyhow!("none: the condition gave no answer");
    loop {
        match timeout_at(end, condition()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(observation)) => observed = observation,
            Err(_) => {}
        }
        if Instant::now() >= end {
            let waited = format!("waited {deadline:?} for: {what}; last observation");
            return Err(observed).context(waited);
        }
        sleep_until(end.min(Instant::now() + POLL)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::ensure;

    #[tokio::test]
    async fn a_condition_that_comes_true_hands_over_its_value() {
        let mut looks = 0;
        let value = until("three looks", Duration::from_secs(5), async || {
            looks += 1;
            ensure!(looks == 3, "{looks} looks");
            Ok(looks)
        });
        assert_eq!(value.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn a_condition_that_stays_false_tells_what_was_seen() {
        let never: Result<()> =
            until("snow in July", Duration::from_millis(60), async || Err(anyhow!("sunshine"))).await;
        let said = format!("{:#}", never.unwrap_err());
        assert!(said.contains("snow in July") && said.contains("sunshine"), "{said}");
    }

    #[tokio::test]
    async fn a_condition_that_hangs_is_given_up() {
        let hangs = until("an answer", Duration::from_millis(60), async || std::future::pending::<Result<()>>().await);
        assert!(format!("{:#}", hangs.await.unwrap_err()).contains("no answer"));
    }
}
