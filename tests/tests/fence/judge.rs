//! Reads the log in commit order, and says what was written where nothing may be.

use std::collections::HashMap;

use anyhow::{Context, Result};
use tests::scene::Scene;
use tokio_postgres::Client;

use super::TENANT;

const SLOT: &str = "judge";

pub struct Judge;

/// What the log says.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Rows of the tenant.
    pub of_tenant: usize,
    /// Times between two barriers that count.
    pub judged: usize,
    /// Rows of the tenant in such times.
    pub late: Vec<String>,
}

impl Judge {
    pub async fn new(scene: &Scene) -> Result<Judge> {
        let make = format!("SELECT pg_create_logical_replication_slot('{SLOT}', 'test_decoding')");
        scene.source_client().await?.batch_execute(&make).await.context("make the judge's slot")?;
        Ok(Judge)
    }

    /// What came between the two barriers before this counts, or not: somebody else had ended the hold.
    pub async fn mark(&self, client: &Client, counts: bool) -> Result<()> {
        let said = if counts { "test.counts" } else { "test.ended" };
        client.execute("SELECT pg_logical_emit_message(true, $1, '')", &[&said]).await.context("mark")?;
        Ok(())
    }

    pub async fn verdict(&self, scene: &Scene) -> Result<Verdict> {
        let client = scene.source_client().await?;
        // Whatever was committed without waiting for the disk.
        client.batch_execute("SELECT pg_logical_emit_message(true, 'test.end', '')").await?;
        let sql = format!("SELECT data FROM pg_logical_slot_get_changes('{SLOT}', NULL, NULL)");
        let rows = client.query(&sql, &[]).await.context("read the log")?;
        let (mut verdict, mut tree) = (Verdict::default(), Tree::new(&client).await?);
        let (mut between, mut held) = (Vec::new(), false);
        for row in rows {
            let line: String = row.get(0);
            if line.starts_with("table ") {
                if tree.is_of_tenant(&line) {
                    verdict.of_tenant += 1;
                    between.extend(held.then_some(line));
                }
            } else if line.contains("carveout.barrier") {
                held = !held;
            } else if line.contains("test.counts") {
                verdict.judged += 1;
                verdict.late.append(&mut between);
            } else if line.contains("test.ended") {
                between.clear();
            }
        }
        Ok(verdict)
    }
}

/// Whose the rows are that others refer to, as the log has it so far.
struct Tree {
    orders: HashMap<String, String>,
    items: HashMap<String, String>,
}

impl Tree {
    /// As it was before the log began; rows that were made since are in the log.
    async fn new(client: &Client) -> Result<Tree> {
        let own = (1..=200).map(|n: u32| (n.to_string(), (5 + n % 4).to_string())).collect();
        let items = client.query("SELECT id::text, order_id::text FROM item WHERE id <= 200", &[]).await?;
        Ok(Tree { orders: own, items: items.iter().map(|row| (row.get(0), row.get(1))).collect() })
    }

    /// Takes a change in; whether its row was or is the tenant's.
    fn is_of_tenant(&mut self, line: &str) -> bool {
        let value = |part: &str, column: &str| {
            let field = part.split(' ').find(|field| field.starts_with(&format!("{column}[")))?;
            field.rsplit_once(':').map(|(_, value)| value.to_owned())
        };
        let (old, new) = line.split_once("new-tuple:").unwrap_or(("", line));
        let mut owner = |part: &str| -> Option<String> {
            if line.starts_with("table public.\"Or\"\"ders\"") {
                let (id, tenant) = (value(part, "id")?, value(part, "\"Tenant\"")?);
                self.orders.insert(id, tenant.clone());
                Some(tenant)
            } else if line.starts_with("table public.item") {
                let (id, order) = (value(part, "id")?, value(part, "order_id")?);
                self.items.insert(id, order.clone());
                self.orders.get(&order).cloned()
            } else if line.starts_with("table public.piece") {
                self.orders.get(self.items.get(&value(part, "item_id")?)?).cloned()
            } else {
                value(part, "\"Tenant\"")
            }
        };
        [owner(old), owner(new)].contains(&Some(TENANT.to_owned()))
    }
}
