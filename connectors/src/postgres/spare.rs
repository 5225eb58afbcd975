//! Connections for short work, kept for a while for whoever asks the same database next. A session reads the catalogs anew that it
//! has not met yet: what takes 20 ms of a processor the first time takes one the next time, and to begin and to end a session takes
//! some more.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use schemas::url::PgUrl;
use tokio_postgres::Client;

use super::quote::literal;
use super::{Doing, Result, client};

/// For so long nobody may have asked.
const KEPT: Duration = Duration::from_secs(3);
/// More of a database are not kept.
const MOST: usize = 4;
/// Nor of all together.
const MOST_OF_ALL: usize = 32;
/// A session that does not answer within that time is left.
const ANSWERS: Duration = Duration::from_secs(1);

/// Each with when it was given back.
static SPARES: Mutex<Vec<(Instant, Spare)>> = Mutex::new(Vec::new());

/// Who is done with it, and has no transaction open, gives it back by [`Spare::keep`]; one that is dropped is closed: nobody knows in
/// what state it is. What was set in it does not reach the next one.
pub struct Spare {
    client: Client,
    url: PgUrl,
}

/// A session of that database, one that was kept or a new one; both begin with the settings of [`client::connect`]. Its `purpose` shows
/// in `application_name`.
pub async fn take(url: &PgUrl, purpose: &str) -> Result<Spare> {
    let kept = {
        let mut spares = spares();
        // The last one: of those that are not needed any more none is used again.
        let place = spares.iter().rposition(|(_, spare)| spare.url == *url);
        place.map(|place| spares.remove(place).1)
    };
    if let Some(spare) = kept
        && let Ok(Ok(())) = tokio::time::timeout(ANSWERS, spare.begin(purpose)).await
    {
        return Ok(spare);
    }
    // Between two purposes it shows the name that it was connected by.
    let spare = Spare { client: client::connect(url, "session").await?, url: url.clone() };
    spare.begin(purpose).await?;
    Ok(spare)
}

impl Spare {
    async fn begin(&self, purpose: &str) -> Result<()> {
        let name = literal(&format!("carveout {purpose}"));
        let anew = format!("RESET ALL; {}; SET application_name = {name}", client::NO_TRANSACTION_TIMEOUT);
        self.batch_execute(&anew).await.doing("begin a session anew")
    }

    /// For whoever is next, unless there are enough.
    pub fn keep(self) {
        let mut spares = spares();
        if spares.iter().filter(|(_, spare)| spare.url == self.url).count() >= MOST {
            return;
        }
        if spares.len() >= MOST_OF_ALL {
            spares.remove(0);
        }
        spares.push((Instant::now(), self));
        tokio::spawn(async {
            tokio::time::sleep(KEPT).await;
            self::spares().retain(|(since, _)| since.elapsed() < KEPT);
        });
    }

    /// The same of one that holds a snapshot, which is let go.
    pub async fn let_go(self) {
        if self.batch_execute("COMMIT").await.is_ok() {
            self.keep();
        }
    }

    /// The same of one by whose name others know what is being done.
    pub async fn end(self) {
        if self.batch_execute("SET application_name = 'carveout'").await.is_ok() {
            self.keep();
        }
    }
}

fn spares() -> MutexGuard<'static, Vec<(Instant, Spare)>> {
    SPARES.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Deref for Spare {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for Spare {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}
