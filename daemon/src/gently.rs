//! Preparation at a pace at which others hardly notice it: a session that is new to a database has its catalogs to read, which keeps a
//! processor busy for tens of milliseconds, and the servers' clients need those.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// What is rested, as a multiple of what answers took.
const RESTS: u32 = 3;
/// Shorter ones are put together. A longer one there is not: who waits for a lock does not rest for that.
const SHORTEST: Duration = Duration::from_millis(3);
const LONGEST: Duration = Duration::from_millis(20);

/// Behind answers that `work` waited for it rests before it goes on. Not for work that somebody waits for: that holds a lock, or what
/// others want to have.
pub async fn gently<F: Future>(work: F) -> F::Output {
    let mut work = pin!(work);
    let mut rest = pin!(None::<Sleep>);
    let (mut asked, mut owed) = (None::<Instant>, Duration::ZERO);
    poll_fn(move |context| {
        owed += asked.take().map_or(Duration::ZERO, |asked| asked.elapsed() * RESTS);
        if owed >= SHORTEST {
            rest.set(Some(sleep(std::mem::take(&mut owed).min(LONGEST))));
        }
        if let Some(resting) = rest.as_mut().as_pin_mut() {
            if resting.poll(context).is_pending() {
                return Poll::Pending;
            }
            rest.set(None);
        }
        let done = work.as_mut().poll(context);
        if done.is_pending() {
            asked = Some(Instant::now());
        }
        done
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_rests_behind_each_answer() {
        let began = Instant::now();
        let answer = gently(async {
            for _ in 0..3 {
                sleep(Duration::from_millis(4)).await;
            }
            7
        });
        assert_eq!(answer.await, 7);
        assert!(began.elapsed() >= Duration::from_millis(3 * (4 + 12)), "it did not rest: {:?}", began.elapsed());
    }
}
