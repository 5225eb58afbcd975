//! What is said before a purge, and what is looked for after a move.

use anyhow::{Result, ensure};
use connectors::postgres::{client, purge};
use schemas::status::Severity;
use schemas::url::PgUrl;
use schemas::{TableName, TenantId};

use super::Rig;

/// Each is named, with what it would do and what mends it; what does not refer to the tenant's rows is none.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_deletion_would_reach_is_named() -> Result<()> {
    let rig = Rig::open().await?;
    let tenant = TenantId("2".to_owned());
    let found = purge::obstacles(&rig.client, &rig.owned, &tenant).await?;
    ensure!(found.is_empty(), "{found:#?}");
    let tables = "
        CREATE TABLE a_restrict (id bigint REFERENCES item ON DELETE RESTRICT);
        CREATE TABLE a_cascade (id bigint REFERENCES piece ON DELETE CASCADE);
        CREATE TABLE a_null (id bigint REFERENCES team ON DELETE SET NULL);
        CREATE TABLE a_part (event bigint, at integer, FOREIGN KEY (event, at) REFERENCES event);
        CREATE TABLE \"a big\" (id bigint REFERENCES link ON DELETE CASCADE, filler text);
        INSERT INTO \"a big\" SELECT NULL, repeat('x', 1000) FROM generate_series(1, 3000);
        INSERT INTO a_restrict VALUES (2); INSERT INTO a_cascade VALUES (2);";
    rig.client.batch_execute(tables).await?;
    let found = purge::obstacles(&rig.client, &rig.owned, &tenant).await?;
    ensure!(found.len() == 1 && found[0].severity == Severity::Warning, "{found:#?}");
    ensure!(found[0].remedy == "CREATE INDEX CONCURRENTLY ON \"public\".\"a big\" (\"id\")", "{found:#?}");
    let code = "
        INSERT INTO a_restrict VALUES (1); INSERT INTO a_cascade VALUES (1); INSERT INTO a_null VALUES (1);
        INSERT INTO a_part VALUES (4, 4);
        INSERT INTO link VALUES (1, 500000, 1);
        CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END';
        CREATE TRIGGER plain AFTER DELETE ON event FOR EACH ROW EXECUTE FUNCTION f();
        CREATE TRIGGER always BEFORE DELETE ON log FOR EACH ROW EXECUTE FUNCTION f();
        ALTER TABLE log ENABLE ALWAYS TRIGGER always;
        CREATE TRIGGER off BEFORE DELETE ON log FOR EACH ROW EXECUTE FUNCTION f();
        ALTER TABLE log DISABLE TRIGGER off;
        CREATE TRIGGER insert BEFORE INSERT ON log FOR EACH ROW EXECUTE FUNCTION f();
        CREATE TRIGGER leaf AFTER DELETE ON event_1 FOR EACH ROW EXECUTE FUNCTION f();
        CREATE RULE keep AS ON DELETE TO note DO INSTEAD NOTHING;
        REVOKE UPDATE ON event_2a FROM app";
    rig.client.batch_execute(code).await?;
    let said = async |role: &str| -> Result<Vec<String>> {
        let url = PgUrl { user: Some(role.to_owned()), ..rig.url.clone() };
        let client = client::connect(&url, "test").await?;
        rig.client.batch_execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO app").await?;
        let found = purge::obstacles(&client, &rig.owned, &tenant).await?;
        let errors = found.into_iter().filter(|finding| finding.severity != Severity::Warning);
        let mut said: Vec<String> =
            errors.map(|finding| format!("{:?} {}: {}", finding.severity, finding.object, finding.cause)).collect();
        said.sort();
        Ok(said)
    };
    let rows = [
        "Error a_cascade_id_fkey of public.a_cascade: rows that stay here refer to rows of public.piece that are the tenant's; by ON DELETE CASCADE",
        "Error a_null_id_fkey of public.a_null: rows that stay here refer to rows of public.team that are the tenant's; by its ON DELETE",
        "Error a_part_event_at_fkey of public.a_part: rows that stay here refer to rows of public.event",
        "Error a_restrict_id_fkey of public.a_restrict: rows that stay here refer to rows of public.item",
        "Error link_next_fkey of public.link: rows of other tenants refer to rows of public.link",
    ];
    let silent = [
        "Error trigger always of public.log: it fires even",
        "Note rule keep of public.note: it does not fire",
        "Note trigger leaf of public.event_1: it does not fire",
        "Note trigger plain of public.event: it does not fire",
    ];
    let loud = [
        "Error public.event_2a: role app may not delete its rows",
        "Error rule keep of public.note: it would fire",
        "Error trigger always of public.log: it fires even",
        "Error trigger leaf of public.event_1: it would fire",
        "Error trigger plain of public.event: it would fire",
    ];
    for (role, code) in [("postgres", &silent[..]), ("app", &loud)] {
        let said = said(role).await?;
        let wanted: Vec<&&str> = rows.iter().chain(code).collect();
        let each = said.len() == wanted.len() && said.iter().zip(wanted).all(|(line, start)| line.starts_with(start));
        ensure!(each, "as {role}: {said:#?}");
    }
    // They are not only said: what is referred to stays, and what refers to it is as it was.
    rig.client.batch_execute("DROP TRIGGER always ON log").await?;
    let covered = rig.covered("2").await?;
    rig.purge_all("postgres", rig.work("2", &covered, 100)).await?;
    let residue = rig.residue("2").await?;
    ensure!(
        residue.get("piece") == Some(&1) && residue.get("event") == Some(&1) && !residue.contains_key("log"),
        "{residue:?}"
    );
    let null = rig.client.query_one("SELECT count(*) FROM a_null WHERE id = 1", &[]).await?.get::<_, i64>(0);
    ensure!(null == 1, "a row outside was changed");
    rig.assert_foreign_keys().await
}

/// In the target: rows with another key, and rows that refer to none there.
#[tokio::test(flavor = "multi_thread")]
async fn rows_that_are_not_the_tenants_are_found_in_its_target() -> Result<()> {
    let rig = Rig::open().await?;
    let mut setup = "CREATE SCHEMA shop_2;".to_owned();
    for owned in &rig.owned {
        let (own, home) = (owned.table.name.name.replace('"', "\"\""), super::name(&owned.table.name));
        let filter = owned.filter(&TenantId("2".to_owned()));
        setup.push_str(&format!("CREATE TABLE shop_2.\"{own}\" AS SELECT * FROM {home} WHERE {filter};"));
    }
    rig.client.batch_execute(&setup).await?;
    let there = |owned: &connectors::postgres::policy::Owned| TableName::new("shop_2", &owned.table.name.name);
    let tables: Vec<_> = rig.owned.iter().map(|owned| (owned.clone(), there(owned))).collect();
    let tenant = TenantId("2".to_owned());
    ensure!(purge::foreign_rows(&rig.client, &tables, &tenant).await?.is_empty(), "something is found");
    let spoil = "INSERT INTO shop_2.log VALUES (1, 'x'), (NULL, 'y'); INSERT INTO shop_2.item VALUES (2, 2);
                 INSERT INTO shop_2.piece VALUES (2, 2), (500000, NULL), (500001, 77777)";
    rig.client.batch_execute(spoil).await?;
    let mut found = purge::foreign_rows(&rig.client, &tables, &tenant).await?;
    found.sort();
    let wanted = [("item", 1), ("log", 2), ("piece", 2)].map(|(name, rows)| (TableName::new("shop_2", name), rows));
    ensure!(found == wanted, "{found:?}");
    Ok(())
}
