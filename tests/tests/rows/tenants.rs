//! Rows that change their tenant, rows without one, and tenants with hostile names.

use anyhow::{Result, ensure};
use tests::hostile::{self, Table, quoted};
use tests::scene::Configuration;

use super::{Shop, insert_into, key};
use crate::carve::{cli, phase, verify_equal};

/// R01, R05: the row leaves one target and enters the other, its large value with it; moves to and from a
/// tenant that stays, and several in one transaction.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_changes_its_tenant_takes_its_large_value_along() -> Result<()> {
    let shop = Shop::open().await?;
    let (order, bare) = (Table::called("order"), Table::called("no pk Ω"));
    for table in [&order, &bare] {
        let insert = insert_into(table, &["TOAST"]);
        shop.sql(&format!("{insert} SELECT n % 4, n, repeat(md5(n::text), 200) FROM generate_series(0, 79) n")).await?;
    }
    shop.carve("1", "schema").await?;
    shop.carve("2", "database").await?;
    let (o, b, key) = (order.sql(), bare.sql(), key());
    let steps = [
        format!("UPDATE {o} SET {key} = 2 WHERE \"select\" IN (1, 5); UPDATE {b} SET {key} = 2 WHERE \"Id\" IN (1, 5)"),
        format!("UPDATE {o} SET {key} = 3 WHERE \"select\" = 5; UPDATE {o} SET {key} = 1 WHERE \"select\" = 0"),
        format!(
            "BEGIN; UPDATE {o} SET {key} = 2 WHERE \"select\" = 9; UPDATE {o} SET \"f\" = 1 WHERE \"select\" = 9; UPDATE {o} SET {key} = 1, \"d\" = 'infinity' WHERE \"select\" = 9; COMMIT"
        ),
        format!(
            "BEGIN; UPDATE {o} SET {key} = 2, \"select\" = 1000 WHERE \"select\" = 13; DELETE FROM {o} WHERE \"select\" = 1000; UPDATE {o} SET {key} = 1 WHERE \"select\" = 2; COMMIT"
        ),
        // Everybody changes places, the keyless rows too.
        format!("UPDATE {o} SET {key} = 3 - {key} WHERE {key} IN (1, 2); UPDATE {b} SET {key} = ({key} + 1) % 4"),
    ];
    for sql in steps {
        shop.sql(&sql).await?;
        for (tenant, to) in [("1", "schema"), ("2", "database")] {
            let rows = shop.assert_equal(tenant, to).await.map_err(|error| error.context(sql.clone()))?;
            ensure!(rows > 30, "tenant {tenant} has {rows} rows");
        }
    }
    let (target, schema) = shop.target("2", "database").await?;
    let sql = format!("SELECT count(*) FROM {}.\"order\" WHERE length(\"TOAST\") = 6400", quoted(&schema));
    let large: i64 = target.query_one(&sql, &[]).await?.get(0);
    ensure!(large > 15, "{large} rows with their large value");
    shop.daemon.assert_no_errors(&[])
}

/// R01, R05: under an identity by index the unchanged large value is not sent. It is read from the source, also when
/// the row changes again before, and when it is gone by then.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_that_enters_without_its_large_value_gets_it_from_the_source() -> Result<()> {
    let shop = Shop::open().await?;
    let table = Table::called("Index \"id\"");
    let (sql, insert, key) = (table.sql(), insert_into(&table, &["TOAST"]), key());
    shop.sql(&format!("{insert} SELECT n % 3, n, repeat(md5(n::text), 200) FROM generate_series(1, 30) n")).await?;
    shop.carve("1", "schema").await?;
    shop.carve("2", "database").await?;
    // A value that is sent is no obstacle, and a row may always leave.
    shop.sql(&format!("UPDATE {sql} SET {key} = 2, \"TOAST\" = repeat('x', 5000) WHERE \"Id\" = 4; UPDATE {sql} SET {key} = 0 WHERE \"Id\" = 7")).await?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        shop.assert_equal(tenant, to).await?;
    }
    shop.sql(&format!(
        "UPDATE {sql} SET \"num\" = 1 WHERE \"Id\" = 2; UPDATE {sql} SET {key} = 2 WHERE \"Id\" IN (13, 16, 19)"
    ))
    .await?;
    shop.sql(&format!("UPDATE {sql} SET \"num\" = 2 WHERE \"Id\" = 13; DELETE FROM {sql} WHERE \"Id\" = 16")).await?;
    shop.sql(&format!("UPDATE {sql} SET {key} = 1 WHERE \"Id\" = 19; UPDATE {sql} SET {key} = 2 WHERE \"Id\" = 19"))
        .await?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        shop.assert_equal(tenant, to).await?;
    }
    let (target, schema) = shop.target("2", "database").await?;
    let rows = format!(
        "SELECT count(*) FROM {}.{} WHERE length(\"TOAST\") = 6400 AND \"Id\" IN (13, 19)",
        quoted(&schema),
        quoted("Index \"id\"")
    );
    let large: i64 = target.query_one(&rows, &[]).await?.get(0);
    ensure!(large == 2, "{large} of 2 rows came with their large value");
    shop.daemon.assert_no_errors(&[])
}

/// R06: a row without a tenant stops every move that has the table, by name; once the rows have a tenant,
/// cancel and move gets out.
#[tokio::test(flavor = "multi_thread")]
async fn a_row_without_a_tenant_stops_the_moves_with_its_table() -> Result<()> {
    let shop = Shop::open().await?;
    let table = Table::called("no pk Ω");
    let (sql, key) = (table.sql(), key());
    shop.sql(&format!("{} VALUES (1, 1), (2, 2), (NULL, 3)", insert_into(&table, &[]))).await?;
    let warned = cli(&shop.config, &["check"]).await?;
    ensure!(warned.contains("it has rows without a tenant") && warned.contains("warnings: 2"), "{warned}");
    let refused = shop.daemon.cli(&["move", "1", "--to", "schema"]).await?;
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        refused.status.code() == Some(1) && said.contains(&table.shown()) && said.contains("null_tenant"),
        "{said}"
    );
    shop.sql(&format!("DELETE FROM {sql} WHERE {key} IS NULL")).await?;
    shop.carve("1", "schema").await?;
    shop.carve("2", "database").await?;
    shop.sql(&format!("UPDATE {sql} SET {key} = NULL WHERE \"Id\" = 1")).await?;
    for tenant in ["1", "2"] {
        let fault = shop.faulted(tenant).await?["fault"].clone();
        ensure!(fault["code"] == "null_tenant" && fault["object"] == table.shown(), "{fault}");
        let refused = shop.daemon.cli(&["move", tenant]).await?;
        ensure!(refused.status.code() == Some(1), "move went over the fault: {refused:?}");
    }
    let ready = shop.daemon.get("/readyz").await?;
    ensure!(ready.status == 200, "one tenant's fault makes nobody unready: {ready:?}");
    shop.sql(&format!("UPDATE {sql} SET {key} = 1 WHERE {key} IS NULL")).await?;
    for (tenant, to) in [("1", "schema"), ("2", "database")] {
        cli(&shop.config, &["cancel", tenant]).await?;
        shop.carve(tenant, to).await?;
        ensure!(shop.assert_equal(tenant, to).await? == 1);
    }
    shop.daemon.assert_no_errors(&["without a tenant"])
}

/// R06: where the table says `not_moving`, rows without a tenant stay behind; they may lose and get one.
#[tokio::test(flavor = "multi_thread")]
async fn rows_without_a_tenant_stay_behind_where_the_table_says_not_moving() -> Result<()> {
    let table = Table::called("no pk Ω");
    let tables = vec![(table.shown(), "{null_tenant: not_moving}".to_owned())];
    let shop = Shop::open_with("integer", Configuration { tables, ..Configuration::default() }).await?;
    let (sql, key, insert) = (table.sql(), key(), insert_into(&table, &["TOAST"]));
    shop.sql(&format!("{insert} SELECT nullif(n % 3, 0), n, repeat(md5(n::text), 200) FROM generate_series(1, 30) n"))
        .await?;
    shop.carve("1", "schema").await?;
    shop.carve("2", "database").await?;
    for change in [
        format!("{insert} VALUES (NULL, 100, 'nobody')"),
        format!("UPDATE {sql} SET {key} = NULL WHERE \"Id\" IN (1, 2)"),
        format!("UPDATE {sql} SET {key} = 2 WHERE \"Id\" = 3; UPDATE {sql} SET {key} = 1 WHERE \"Id\" = 1"),
        format!("UPDATE {sql} SET \"n\" = 1 WHERE {key} IS NULL; DELETE FROM {sql} WHERE \"Id\" = 6"),
    ] {
        shop.sql(&change).await?;
        for (tenant, to) in [("1", "schema"), ("2", "database")] {
            ensure!(shop.assert_equal(tenant, to).await? >= 9);
        }
    }
    shop.daemon.assert_no_errors(&[])
}

/// N05, R14: tenants whose names are SQL, paths and URLs are moved, verified and cancelled like any other.
#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_may_be_called_anything_that_text_can_hold() -> Result<()> {
    const TENANTS: [(&str, &str); 4] = [
        ("Zoë's \"x\"; DROP SCHEMA y--", "schema"),
        ("../{tenant}?a=%41#$1", "schema"),
        ("C:\\ü' OR 1=1 --", "database"),
        ("-7", "database"),
    ];
    let shop = Shop::open_with("text", Configuration::default()).await?;
    let tables =
        [Table::called("order"), Table::called("Index \"id\""), Table::called("gen; DROP TABLE \"order\"; --")];
    for (n, (tenant, _)) in TENANTS.into_iter().enumerate() {
        for table in tables {
            let rows = format!(
                "SELECT {}, n, repeat('{n}', 3000) FROM generate_series({n}, 99, 4) n",
                hostile::literal(tenant)
            );
            shop.sql(&format!("{} {rows}", insert_into(&table, &["TOAST"]))).await?;
        }
    }
    for (tenant, to) in TENANTS {
        cli(&shop.config, &["move", "--to", to, "--", tenant]).await?;
    }
    for (tenant, _) in TENANTS {
        phase(&shop.daemon, tenant, &["streaming"]).await?;
        // From the next tenant to this one: the large value has to come along.
        shop.sql(&format!(
            "UPDATE {} SET {} = {} WHERE \"select\" IN (40, 41, 42, 43)",
            tables[0].sql(),
            key(),
            hostile::literal(tenant)
        ))
        .await?;
    }
    for (tenant, to) in TENANTS {
        let name = super::NAMES.replace("{tenant}", &tenant.replace('-', "_"));
        ensure!(shop.daemon.tenant(tenant).await?["target"] == name.as_str(), "{name}");
        shop.drained(tenant).await?;
        let (target, schema) = shop.target(tenant, to).await?;
        let rows = hostile::assert_tenant_equal(&shop.source, tenant, &target, &schema).await?;
        ensure!(rows >= 70, "{tenant}: {rows} rows");
        let verified = cli(&shop.config, &["verify", "--", tenant]).await?;
        ensure!(verified.contains("is equal"), "{verified}");
    }
    for (tenant, _) in TENANTS {
        cli(&shop.config, &["cancel", "--", tenant]).await?;
    }
    let sql = "SELECT (SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'Of %') + (SELECT count(*) FROM pg_database WHERE datname LIKE 'Of %')";
    let left: i64 = shop.source.query_one(sql, &[]).await?.get(0);
    ensure!(left == 0, "{left} schemas and databases are left");
    verify_refused(&shop).await?;
    shop.daemon.assert_no_errors(&[])
}

/// After the cancel there is nothing to compare, and it is said so.
async fn verify_refused(shop: &Shop) -> Result<()> {
    ensure!(verify_equal(&shop.daemon, "-7").await.is_err());
    Ok(())
}
