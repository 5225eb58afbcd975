//! What stops a lane: changes that name no tenant, or cannot be told.

use connectors::postgres::pgoutput::Tuple;
use schemas::record::Fault;
use schemas::{MoveId, TableName};

use super::Router;
use super::relation::Routed;
use super::row::shown;

impl Router {
    /// TRUNCATE names no tenant: it empties every one.
    pub(super) fn truncate(&mut self, relation: u32) {
        let Some(routed) = self.relations.get(&relation).cloned() else { return };
        self.stop_faulty(&routed);
        let fault = Fault::new(
            "truncate",
            routed.name.to_string(),
            "the table was truncated on the source, for every tenant",
            "`carveout cancel` the move, then `carveout move` it again",
        );
        for id in &routed.members {
            self.stop(*id, Some(&routed.name), fault.clone());
        }
    }

    /// A change of the relation may be one of a lane that cannot be told its rows: that lane stops, whatever
    /// its copy holds.
    pub(super) fn stop_faulty(&mut self, routed: &Routed) {
        routed.faulty.iter().for_each(|(id, fault)| self.tell(*id, fault));
    }

    /// A row without a tenant stops every move that has the table.
    pub(super) fn stop_members(&mut self, routed: &Routed) {
        let next = format!(
            "give the rows a tenant, or set tenancy.tables.{}.null_tenant: not_moving; then cancel and move again",
            routed.name.name
        );
        let cause = "a row without a tenant was written on the source";
        let fault = Fault::new("null_tenant", routed.name.to_string(), cause, next);
        for id in &routed.members {
            self.stop(*id, Some(&routed.name), fault.clone());
        }
    }

    /// A change does not say whose the row is: whoever has the table stops, and nobody else.
    pub(super) fn stop_untold(&mut self, routed: &Routed) {
        let cause = "a change does not carry its tenant: its replica identity was changed";
        let next = "`carveout prepare`, then `carveout cancel` and `carveout move`";
        let fault = Fault::new("schema_changed", routed.name.to_string(), cause, next);
        routed.members.iter().for_each(|id| self.tell(*id, &fault));
    }

    /// Stops a lane, whatever its copy holds; once in a transaction.
    fn tell(&mut self, id: MoveId, fault: &Fault) {
        let told = self.lanes.get_mut(&id).is_none_or(|lane| std::mem::replace(&mut lane.told, true));
        if !told {
            self.stop(id, None, fault.clone());
        }
    }
}

/// What hangs on the row would have to change hands with it, and is not in the stream.
pub(super) fn changed_hands(table: &TableName) -> Fault {
    Fault::new(
        "tenant_changed",
        table.to_string(),
        "a row that other rows belong to went to another tenant; this version cannot take those along",
        "`carveout cancel` the moves of both tenants, then `carveout move` them again",
    )
}

pub(super) fn incomplete(routed: &Routed, new: Tuple<'_>) -> Fault {
    let key = routed.relation.columns.iter().zip(new.iter()).filter(|(column, _)| column.key);
    let key: Vec<String> =
        key.map(|(column, value)| format!("{}={}", column.name, shown(column.type_oid, value))).collect();
    Fault::new(
        "toast",
        routed.name.to_string(),
        format!(
            "a row entered the tenant ({}), but the value of a large unchanged column was not sent with it",
            key.join(", ")
        ),
        format!("ALTER TABLE {} REPLICA IDENTITY FULL, then `carveout cancel` and `carveout move`", routed.name),
    )
}
