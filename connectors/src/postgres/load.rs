//! What the source says about its own load, for copies to give way to. Reads the server's statistics and no table.

use std::time::Duration;

use tokio_postgres::Client;

use super::quote::ident;
use super::{Doing, Error, Result};

/// Sessions and standbys of the whole server, but our own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Load {
    /// Sessions that run a statement.
    pub active_sessions: u32,
    /// Sessions that wait for a lock.
    pub waiting_sessions: u32,
    /// Of the standby that is furthest behind with replaying; zero without one.
    pub replica_lag: Duration,
}

/// Streams of logical slots and archivers (pg_receivewal), which replay nothing, are no standbys. One that stands shows
/// a lag that grows.
const MEASURE: &str = "\
WITH sessions AS (
  SELECT state, wait_event_type FROM pg_stat_activity
   WHERE backend_type = 'client backend' AND application_name NOT LIKE 'carveout%')
SELECT pg_has_role('pg_read_all_stats', 'USAGE'), current_user::text,
       (SELECT count(*) FROM sessions WHERE state = 'active')::int,
       (SELECT count(*) FROM sessions WHERE state = 'active' AND wait_event_type = 'Lock')::int,
       (SELECT coalesce(extract(epoch FROM max(r.replay_lag)), 0)::float8 FROM pg_stat_replication r
         WHERE r.replay_lsn IS NOT NULL
           AND NOT EXISTS (SELECT FROM pg_replication_slots s WHERE s.active_pid = r.pid AND s.slot_type = 'logical'))";

/// Asks the server once.
pub async fn measure(client: &Client) -> Result<Load> {
    const DOING: &str = "measure the source's load";
    let row = client.query_one(MEASURE, &[]).await.doing(DOING)?;
    if !row.get::<_, bool>(0) {
        let role: String = row.get(1);
        let grant = format!("GRANT pg_read_all_stats TO {}", ident(&role));
        return Err(Error::state(DOING, format!("role {role} may not see other sessions: {grant}")));
    }
    let number = |place: usize| u32::try_from(row.get::<_, i32>(place)).unwrap_or(0);
    Ok(Load {
        active_sessions: number(2),
        waiting_sessions: number(3),
        replica_lag: Duration::try_from_secs_f64(row.get(4)).unwrap_or_default(),
    })
}
