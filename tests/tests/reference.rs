//! Tables that are every tenant's: copied whole into each target, and followed there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use daemon::demo::cluster::ClusterOptions;
use tests::daemon::Daemon;
use tests::load::Load;
use tests::oracle;
use tests::scene::{Configuration, DATABASE, Scene};

use crate::carve::{cli, drained, phase, start_move, verify_equal};

const TENANTS: [(&str, &str); 2] = [("1", "schema"), ("2", "database")];
/// Table, and its rows of a tenant on the source.
const TABLES: [(&str, &str); 3] = [("orders", "bid = $"), ("kind", "true"), ("word", "true")];
const SETUP: &str = "
    CREATE TABLE kind (id integer PRIMARY KEY, v text);
    CREATE TABLE word (w text, n integer);
    CREATE TABLE orders (bid integer, id bigserial, kind integer NOT NULL REFERENCES kind, PRIMARY KEY (bid, id));
    INSERT INTO kind SELECT n, 'kind' FROM generate_series(1, 50) n;
    INSERT INTO word SELECT 'w', n % 7 FROM generate_series(1, 50) n;
    INSERT INTO orders (bid, kind) SELECT n % 4, 1 + n % 50 FROM generate_series(1, 2000) n";
/// Equal rows come and go in the one without a key.
const CHANGES: &str = "\\set n random(1, 60)
    BEGIN;
    INSERT INTO kind VALUES (:n, 'new') ON CONFLICT (id) DO UPDATE SET v = 'kind ' || random();
    INSERT INTO orders (bid, kind) VALUES (:n % 4, :n);
    INSERT INTO word VALUES ('w', :n % 7);
    UPDATE word SET n = :n % 5 WHERE ctid = (SELECT min(ctid) FROM word WHERE n = :n % 7);
    DELETE FROM word WHERE ctid = (SELECT max(ctid) FROM word WHERE n = :n % 3);
    DELETE FROM kind k WHERE id > 50 AND NOT EXISTS (SELECT FROM orders WHERE kind = k.id);
    END;";

/// DESIGN 3.9: each target has all rows of such a table, whatever happens to them while tenants are copied and after,
/// over a kill; with a key, and without one.
#[tokio::test(flavor = "multi_thread")]
async fn every_target_has_all_rows_of_a_reference_table() -> Result<()> {
    let scene = Scene::empty(ClusterOptions::default(), ClusterOptions::default()).await?;
    let source = scene.source_client().await?;
    source.batch_execute(SETUP).await.context("make the tables")?;
    let tables = ["kind", "word"].map(|table| (table.to_owned(), "{reference: true}".to_owned())).to_vec();
    let config = scene.write_config("carveout", &Configuration { tables, ..Configuration::default() })?;
    cli(&config, &["prepare", "--apply"]).await?;
    let load = Load::scripts(&scene.source, DATABASE, &[(CHANGES, 1)], 1, 3000)?;
    let mut daemon = Daemon::start(&config).await?;
    for (tenant, to) in TENANTS {
        start_move(&daemon, tenant, to).await?;
    }
    for (tenant, _) in TENANTS {
        phase(&daemon, tenant, &["catching_up", "streaming", "ready"]).await?;
    }
    daemon.kill()?;
    daemon = Daemon::start(&config).await?;
    load.finish(Duration::from_secs(300)).await?.assert_fine()?;
    for (tenant, to) in TENANTS {
        phase(&daemon, tenant, &["streaming", "ready"]).await?;
        drained(&scene, &daemon, &[tenant]).await?;
        verify_equal(&daemon, tenant).await?;
        let (target, schema) = match to {
            "database" => (scene.target_client(&format!("bid_{tenant}")).await?, "public".to_owned()),
            _ => (scene.source_client().await?, format!("bid_{tenant}")),
        };
        for (table, filter) in TABLES {
            let (theirs, filter) = (format!("{schema}.{table}"), filter.replace('$', tenant));
            let rows = oracle::assert_equal(&source, table, &filter, &target, &theirs).await?.target_rows;
            ensure!(rows >= 40, "{rows} rows in {theirs}");
        }
    }
    daemon.assert_no_errors(&[])
}
