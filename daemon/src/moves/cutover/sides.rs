//! Both ends of a move, as a cutover sees them.

use connectors::postgres::fence::{End, Fence};
use connectors::postgres::policy::Owned;
use schemas::Phase;
use schemas::record::MoveRecord;
use schemas::status::Route;
use schemas::url::PgUrl;

use super::super::{Context, Moving, StepError, reverse};
use crate::gently::gently;

/// One end of a move, as the cutover sees it.
pub(super) struct Side {
    pub url: PgUrl,
    pub fence: Fence,
    pub tables: Vec<Owned>,
    pub isolation: &'static str,
    pub database: String,
    pub schema: Option<String>,
}

impl Side {
    /// The route of a tenant that lives here.
    pub fn route(&self, record: &MoveRecord, epoch: i64) -> Route {
        Route {
            tenant: record.tenant.clone(),
            isolation: self.isolation.to_owned(),
            database: self.database.clone(),
            schema: self.schema.clone(),
            url: self.url.redacted(),
            state: "open".to_owned(),
            epoch,
        }
    }
}

/// Source and target of a move.
pub(super) async fn sides(context: &Context, moving: &Moving) -> Result<(Side, Side), StepError> {
    let record = moving.record();
    let (source, target) = ends(context, &record)?;
    let tables = gently(context.read_by(&record)).await?;
    let own =
        gently(reverse::own_tables(context, moving, &tables)).await?.into_iter().map(|(_, owned)| owned).collect();
    Ok((Side { tables, ..source }, Side { tables: own, ..target }))
}

/// The same without the tables.
pub(super) fn ends(context: &Context, record: &MoveRecord) -> Result<(Side, Side), StepError> {
    let lives = if record.returning { End::Target } else { End::Source };
    let fence = |end| Fence { id: record.id, owner: context.state.clone(), tenant: record.tenant.clone(), end, lives };
    let (target, url) = (context.target(record)?, context.config.source.url.clone());
    let (isolation, tables) = (if record.schema.is_some() { "schema" } else { "database" }, Vec::new());
    let source = Side {
        database: url.database().unwrap_or_default().to_owned(),
        url,
        fence: fence(End::Source),
        tables: Vec::new(),
        isolation: record.home(),
        schema: record.from.as_ref().map(|stage| stage.schema.clone()),
    };
    let (database, schema) = (target.database, target.schema);
    Ok((source, Side { url: target.url, fence: fence(End::Target), tables, isolation, database, schema }))
}

/// Where the tenant lives, as far as this daemon knows.
pub fn route(context: &Context, moving: &Moving) -> Result<Route, StepError> {
    let record = moving.record();
    let (source, target) = ends(context, &record)?;
    let lives = if record.phase.lives_in_target() { target } else { source };
    let moves = matches!(record.phase, Phase::CuttingOver | Phase::RollingBack);
    Ok(Route { state: if moves { "moving" } else { "open" }.to_owned(), ..lives.route(&record, record.epoch) })
}
