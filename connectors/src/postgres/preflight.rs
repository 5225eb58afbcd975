//! What `check` looks at on the source and the target. Writes nothing.

use schemas::config::Config;
use schemas::status::{Finding, Severity};
use tokio_postgres::Client;

use super::catalog::{self, Table};
use super::client::connect;
use super::policy::{Owned, Policies};
use super::provision::{needs, report};
use super::version::{self, Version};
use super::{Doing, Result, collisions, grants, policy, prepare};

/// A transaction open for longer than this is worth a warning: slot and snapshots wait for it.
const LONG_TRANSACTION: &str = "5 minutes";

/// The longest look for rows without a tenant in one table.
const LOOK: &str = "SET statement_timeout = '300ms'";

/// Everything that stands in the way, most severe first, and the tables that can move.
pub async fn check(config: &Config) -> Result<(Vec<Finding>, Vec<Owned>)> {
    let client = connect(&config.source.url, "check").await?;
    let mut findings = server(&client).await?;
    findings.extend(long_transactions(&client).await?);
    let Policies { owned, findings: refused } = policy::resolve(catalog::tables(&client).await?, &config.tenancy);
    if owned.iter().all(|owned| owned.key_type().is_none()) {
        let cause = format!("no table has the tenant key \"{}\" and can be moved", config.tenancy.key);
        findings.push(Finding::new(
            Severity::Error,
            "tenancy.key",
            cause,
            "set tenancy.key to the column that names a row's tenant",
        ));
    }
    findings.extend(refused);
    findings.extend(without_tenant(&client, &owned).await?);
    if config.tenant_strategy.migration_config.rollback_enabled {
        findings.extend(collisions::finding(&client, &owned).await?);
    }

    findings.extend(grants::source(&client, config, &owned).await?);
    let tables: Vec<&Table> = owned.iter().map(|owned| &owned.table).collect();
    let needs = needs::read(&client, &tables).await?;
    findings.extend(report::findings(&client, &tables, &needs).await?);
    findings.extend(prepare::wanted(&client, config, &owned).await?);
    let from = (Version::of(&client).await?, version::features(&client, &owned).await?);
    findings.extend(grants::targets(config, &owned, &from, &needs.extensions()).await);
    findings.extend(
        config
            .unused()
            .into_iter()
            .map(|key| Finding::new(Severity::Note, key, "this version accepts the key but does not use it yet", "")),
    );
    findings.sort_by_key(|finding| finding.severity);
    Ok((findings, owned))
}

/// Rows without a tenant that `move` would stop at, as far as a short look finds them.
async fn without_tenant(client: &Client, owned: &[Owned]) -> Result<Vec<Finding>> {
    client.batch_execute(LOOK).await.doing("set statement_timeout")?;
    let mut findings = Vec::new();
    for owned in owned {
        // Where the look takes too long, or may not be, `move` says so.
        if owned.has_null_tenant(client).await.unwrap_or(false) {
            let name = owned.table.name.to_string();
            let cause = format!(
                "it has rows without a tenant (\"{}\" is NULL): every move stops",
                owned.columns().join("\", \"")
            );
            let remedy =
                format!("give them one, or let them stay: under tenancy.tables, null_tenant: not_moving for {name}");
            findings.push(Finding::new(Severity::Warning, name, cause, remedy));
        }
    }
    client.batch_execute("SET statement_timeout = 0").await.doing("set statement_timeout")?;
    Ok(findings)
}

async fn server(client: &Client) -> Result<Vec<Finding>> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int, current_setting('wal_level'), pg_is_in_recovery(),
                    (SELECT pg_encoding_to_char(encoding)::text FROM pg_database WHERE datname = current_database()),
                    current_setting('max_replication_slots')::int - (SELECT count(*) FROM pg_replication_slots)::int,
                    current_setting('max_wal_senders')::int - (SELECT count(*) FROM pg_stat_replication)::int",
            &[],
        )
        .await
        .doing("look at the source's settings")?;
    let mut findings = Vec::new();
    let mut add =
        |object: &str, cause: String, remedy: &str| findings.push(Finding::new(Severity::Error, object, cause, remedy));
    let version = Version(row.get::<_, i32>(0).unsigned_abs());
    let (level, encoding): (String, String) = (row.get(1), row.get(3));
    if level != "logical" {
        add("wal_level", format!("it is {level}"), "ALTER SYSTEM SET wal_level = logical; and restart the server");
    }
    if row.get(2) {
        add("source.url", "the server is a standby".into(), "give the primary's address");
    }
    if encoding != "UTF8" {
        add("encoding", format!("the database is encoded in {encoding}; only UTF8 is supported"), "");
    }
    if row.get::<_, i32>(4) < 0 || row.get::<_, i32>(5) < 1 {
        add(
            "max_wal_senders",
            "no replication connection is free".into(),
            "ALTER SYSTEM SET max_wal_senders = …; and restart the server",
        );
    }
    findings.extend(settings(client).await?);
    findings.extend(version.unsupported("server_version"));
    findings.extend(version.late_additions());
    Ok(findings)
}

/// Settings that only some versions have; those that the role may not see are left out.
async fn settings(client: &Client) -> Result<Vec<Finding>> {
    let rows = client
        .query(
            "SELECT name, setting FROM pg_settings
              WHERE name = 'output_plugin_libraries' AND 'pgoutput' <> ALL (regexp_split_to_array(setting, '[\\s,\"]+'))
                 OR name = 'idle_replication_slot_timeout' AND setting <> '0' ORDER BY 1",
            &[],
        )
        .await
        .doing("look at the source's settings")?;
    let finding = rows.iter().map(|row| match row.get::<_, &str>(0) {
        "output_plugin_libraries" => Finding::new(
            Severity::Error,
            "output_plugin_libraries",
            "pgoutput is not in it: only a superuser can create the slot",
            "ALTER SYSTEM SET output_plugin_libraries = pgoutput, …; and SELECT pg_reload_conf()",
        ),
        name => Finding::new(
            Severity::Warning,
            name,
            format!("a daemon that is stopped for longer than {} s loses the slot", row.get::<_, &str>(1)),
            "ALTER SYSTEM SET idle_replication_slot_timeout = 0; and SELECT pg_reload_conf()",
        ),
    });
    Ok(finding.collect())
}

async fn long_transactions(client: &Client) -> Result<Vec<Finding>> {
    let sql = format!(
        "SELECT pid, coalesce(application_name, ''), date_trunc('second', now() - xact_start)::text FROM pg_stat_activity
          WHERE xact_start < now() - interval '{LONG_TRANSACTION}' AND backend_type = 'client backend' ORDER BY xact_start"
    );
    let rows = client.query(&sql, &[]).await.doing("look for long transactions")?;
    let finding = rows.iter().map(|row| {
        let (pid, name, age): (i32, String, String) = (row.get(0), row.get(1), row.get(2));
        Finding::new(
            Severity::Warning,
            format!("process {pid} ({name})"),
            format!("its transaction is open for {age}; creating the slot waits for it"),
            format!("end it, or SELECT pg_terminate_backend({pid})"),
        )
    });
    Ok(finding.collect())
}
