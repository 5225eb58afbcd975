//! `make bench`: how fast the targets catch up, and how long the writes pause. `bench catch-up` and `bench pauses` do one of the
//! two. Figures go to stdout; docs/performance.md keeps them and says how to read them.

mod catch_up;
mod pauses;

use std::env;
use std::str::FromStr;

use anyhow::{Context, Result, bail};

#[tokio::main]
async fn main() -> Result<()> {
    match env::args().nth(1).as_deref() {
        None => {
            catch_up::run().await?;
            pauses::run().await
        }
        Some("catch-up") => catch_up::run().await,
        Some("pauses") => pauses::run().await,
        Some(other) => bail!("{other} is no benchmark: catch-up, pauses"),
    }
}

/// A size from the environment.
fn size<T: FromStr>(name: &str, default: T) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    env::var(name).ok().map_or(Ok(default), |text| text.parse().with_context(|| format!("read {name}={text}")))
}
