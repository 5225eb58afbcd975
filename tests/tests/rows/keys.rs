//! Keys and unique values that change hands.

use anyhow::{Result, ensure};
use tests::hostile::Table;

use super::{Shop, insert_into, key};

/// R04, R11: every key moves up by one, two keys and two unique values change places, an identity is drawn
/// anew; each in one transaction, for a tenant of its own schema and one of its own database.
#[tokio::test(flavor = "multi_thread")]
async fn keys_that_shift_and_unique_values_that_swap_come_out_right() -> Result<()> {
    let shop = Shop::open().await?;
    let (order, index, generated) =
        (Table::called("order"), Table::called("Index \"id\""), Table::called("gen; DROP TABLE \"order\"; --"));
    let always = Table::called("Always.on");
    // Descending: the server shifts row after row as they lie there, and finds the next number free.
    for table in [&order, &index, &generated] {
        let extra: &[&str] = if table.name == "order" { &["unique", "later"] } else { &[] };
        let values = if extra.is_empty() { "" } else { ", n, n" };
        let rows = format!("{} SELECT n % 3, n{values} FROM generate_series(300, 1, -1) n", insert_into(table, extra));
        shop.sql(&rows).await?;
    }
    let (user, id) = ("\"user\"", "\"id\"");
    shop.sql(&format!(
        "INSERT INTO {} ({}, {user}) SELECT n % 3, n FROM generate_series(1, 90) n",
        always.sql(),
        key()
    ))
    .await?;
    shop.carve("1", "schema").await?;
    shop.carve("2", "database").await?;
    let (o, i, g, a) = (order.sql(), index.sql(), generated.sql(), always.sql());
    let steps = [
        (
            "every key up by one",
            format!(
                "UPDATE {o} SET \"select\" = \"select\" + 1; UPDATE {i} SET \"Id\" = \"Id\" + 1; UPDATE {g} SET \"Id\" = \"Id\" + 1;"
            ),
        ),
        (
            "two keys swapped by way of a third",
            format!(
                "BEGIN; UPDATE {o} SET \"select\" = 9999 WHERE \"select\" = 5; UPDATE {o} SET \"select\" = 5 WHERE \"select\" = 8; \
                 UPDATE {o} SET \"select\" = 8 WHERE \"select\" = 9999; COMMIT;"
            ),
        ),
        (
            "a unique value swapped by way of NULL and of a third value",
            format!(
                "BEGIN; UPDATE {o} SET \"unique\" = NULL WHERE \"unique\" = 10; UPDATE {o} SET \"unique\" = 10 WHERE \"unique\" = 13; \
                 UPDATE {o} SET \"unique\" = 13 WHERE \"unique\" IS NULL; UPDATE {o} SET \"unique\" = -1 WHERE \"unique\" = 11; \
                 UPDATE {o} SET \"unique\" = 11 WHERE \"unique\" = 14; UPDATE {o} SET \"unique\" = 14 WHERE \"unique\" = -1; COMMIT;"
            ),
        ),
        ("every deferrable value up by three", format!("UPDATE {o} SET \"later\" = \"later\" + 3")),
        (
            "deferred to the end of the transaction",
            format!(
                "BEGIN; SET CONSTRAINTS ALL DEFERRED; UPDATE {o} SET \"later\" = 103 WHERE \"select\" = 98; \
                 UPDATE {o} SET \"later\" = 104 WHERE \"select\" = 99; UPDATE {o} SET \"later\" = 100 WHERE \"select\" = 101; \
                 UPDATE {o} SET \"later\" = 101 WHERE \"select\" = 102; COMMIT;"
            ),
        ),
        (
            "identities drawn anew",
            format!("UPDATE {a} SET {id} = DEFAULT WHERE {user}::int % 2 = 0; UPDATE {a} SET {id} = DEFAULT"),
        ),
        (
            "a key freed and taken again in one transaction",
            format!(
                "BEGIN; DELETE FROM {o} WHERE \"select\" = 20; {} VALUES (1, 20); UPDATE {o} SET \"select\" = 21000 WHERE \"select\" = 21; \
                 {} VALUES (2, 21); DELETE FROM {o} WHERE \"select\" = 21; COMMIT;",
                insert_into(&order, &[]),
                insert_into(&order, &[]),
            ),
        ),
    ];
    for (what, sql) in steps {
        shop.sql(&sql).await?;
        for (tenant, to) in [("1", "schema"), ("2", "database")] {
            let rows = shop.assert_equal(tenant, to).await.map_err(|error| error.context(what))?;
            ensure!(rows > 300, "{what}: {rows} rows");
        }
    }
    shop.daemon.assert_no_errors(&[])
}

/// R04: while a deferrable primary key is checked at the end of the statement, two rows have it at once.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_share_a_deferrable_primary_key_for_a_moment_are_told_apart() -> Result<()> {
    let shop = Shop::open().await?;
    let table = Table::called("deferrable pk");
    let (sql, insert) = (table.sql(), insert_into(&table, &["v"]));
    shop.sql(&format!("{insert} SELECT 1, n, 'row ' || n FROM generate_series(1, 50) n")).await?;
    shop.carve("1", "schema").await?;
    // Ascending: number 2 exists twice from the first row's change to the second's.
    shop.sql(&format!("UPDATE {sql} SET \"Id\" = \"Id\" + 1")).await?;
    shop.assert_equal("1", "schema").await.map_err(|error| error.context("after the shift"))?;
    shop.sql(&format!("UPDATE {sql} SET \"Id\" = CASE \"Id\" WHEN 10 THEN 11 ELSE 10 END WHERE \"Id\" IN (10, 11)"))
        .await?;
    shop.assert_equal("1", "schema").await.map_err(|error| error.context("after the swap"))?;
    shop.daemon.assert_no_errors(&[])
}
