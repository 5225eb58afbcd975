//! Opens the spools of the lanes that there were, before anything is read.

use std::collections::BTreeMap;
use std::sync::Arc;

use schemas::config::Config;
use schemas::record::{AckRecord, MoveRecord};
use schemas::{Lsn, MoveId, TableName};

use crate::moves::SpoolLink;
use crate::router::{Budget, LaneEnd, Router, TableRoute};
use crate::spool::SpoolWriter;

/// A router with a lane for each record.
pub fn open(
    config: &Config,
    records: &[MoveRecord],
    routes: Vec<(TableName, TableRoute)>,
    ack: &AckRecord,
) -> anyhow::Result<(Router, BTreeMap<MoveId, SpoolLink>)> {
    let budget = Budget { per_tenant: config.limits.spool_per_tenant.0, total: config.limits.spool_total.0 };
    let mut router = Router::new(routes.into_iter().collect(), budget, config.state_dir.join("spool"));
    let mut links = BTreeMap::new();
    for record in records {
        let dir = config.state_dir.join("spool").join(record.id.to_string());
        let of_lane =
            |list: &[(MoveId, Lsn)]| list.iter().find(|(id, _)| *id == record.id).map_or(Lsn::ZERO, |(_, lsn)| *lsn);
        let (must_hold, known_applied) = (of_lane(&ack.held), of_lane(&ack.applied));
        let (spool, prev_end) = SpoolWriter::open_holding(&dir, must_hold.max(known_applied))?;
        links.insert(record.id, SpoolLink { state: Arc::clone(spool.state()), prev_end, must_hold });
        spool.state().set_known_applied(known_applied);
        router.open(LaneEnd::new(record.id, record.tenant.clone(), &record.published, spool), []);
    }
    Ok((router, links))
}
