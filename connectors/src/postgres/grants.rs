//! Which privileges the roles need and do not have, each with the SQL that grants it. Writes nothing.
//! PostgreSQL itself is asked, which knows groups, NOINHERIT and superusers.

use schemas::TableName;
use schemas::config::{Config, Isolation, Target};
use schemas::status::{Finding, Severity};
use schemas::url::PgUrl;
use tokio_postgres::Client;

use super::client::connect;
use super::policy::Owned;
use super::provision::{database_exists, report};
use super::quote::{ident, table as qualified};
use super::version::{self, Feature, Version};
use super::{Doing, Error, Result, control, reverse};

/// Who a session is, and what comes with the role itself.
struct Session {
    client: Client,
    role: String,
    database: String,
    may_create: bool,
    may_create_databases: bool,
    encoding: String,
    version: Version,
}

impl Session {
    async fn open(url: &PgUrl) -> Result<Session> {
        let client = connect(url, "check").await?;
        let row = client
            .query_one(
                "SELECT rolname::text, current_database()::text, has_database_privilege(current_database(), 'CREATE'),
                        rolcreatedb OR rolsuper,
                        (SELECT pg_encoding_to_char(encoding)::text FROM pg_database WHERE datname = current_database())
                   FROM pg_roles WHERE rolname = current_user",
                &[],
            )
            .await
            .doing("look at the role")?;
        let version = Version::of(&client).await?;
        Ok(Session {
            version,
            client,
            role: row.get(0),
            database: row.get(1),
            may_create: row.get(2),
            may_create_databases: row.get(3),
            encoding: row.get(4),
        })
    }

    /// What stands in the way of moves from this source because of the two versions.
    fn versions(&self, (source, features): &Source) -> Vec<Finding> {
        let refused = self.version.unsupported("").map(|finding| {
            let object = format!("the server of database {}", self.database);
            Finding { object, ..finding }
        });
        refused.into_iter().chain(version::left_behind(*source, self.version, features)).collect()
    }

    async fn ask(&self, question: &str, about: &[&(dyn tokio_postgres::types::ToSql + Sync)]) -> Result<bool> {
        Ok(self.client.query_one(question, about).await.doing("ask for a privilege")?.get(0))
    }
}

/// The source's version, and what its tables have that not every version can make.
pub type Source = (Version, Vec<Feature>);

/// What the role of `source.url` lacks to stream, to read the tables and to be warned.
pub async fn source(client: &Client, config: &Config, owned: &[Owned]) -> Result<Vec<Finding>> {
    let row = client
        .query_one(
            "SELECT rolname::text, rolreplication OR rolsuper, pg_has_role('pg_read_all_stats', 'USAGE')
               FROM pg_roles WHERE rolname = current_user",
            &[],
        )
        .await
        .doing("look at the role")?;
    let role: String = row.get(0);
    let object = format!("role {role}");
    let mut findings = Vec::new();
    if !row.get::<_, bool>(1) {
        let remedy = format!("ALTER ROLE {} REPLICATION", ident(&role));
        findings.push(Finding::new(Severity::Error, &object, "it may not stream from a slot", remedy));
    }
    if !row.get::<_, bool>(2) {
        let (severity, cause) = match config.limits.source.any() {
            true => {
                (Severity::Error, "it does not see the sessions of other roles: limits.source would stop every copy")
            }
            false => (
                Severity::Note,
                "it does not see the transactions of other roles: check cannot warn of those that are long",
            ),
        };
        let remedy = format!("GRANT pg_read_all_stats TO {}", ident(&role));
        findings.push(Finding::new(severity, &object, cause, remedy));
    }
    findings.extend(tables(client, &role, owned).await?);
    Ok(findings)
}

async fn tables(client: &Client, role: &str, owned: &[Owned]) -> Result<Vec<Finding>> {
    let oids: Vec<u32> = owned.iter().map(|owned| owned.table.oid).collect();
    let mut others = Vec::new();
    let rows = client
        .query(
            "SELECT n.nspname::text, c.relname::text, has_schema_privilege(n.oid, 'USAGE'), has_table_privilege(c.oid, 'SELECT'),
                    pg_has_role(c.relowner, 'USAGE'), pg_get_userbyid(c.relowner)::text

               FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = ANY ($1) ORDER BY 1, 2",
            &[&oids],
        )
        .await
        .doing("look at the tables' privileges")?;
    let (mut findings, role) = (Vec::new(), ident(role));
    for row in &rows {
        let table = TableName::new(row.get::<_, String>(0), row.get::<_, String>(1));
        if !row.get::<_, bool>(4) {
            others.push((table.to_string(), row.get::<_, String>(5)));
        }
        if !row.get::<_, bool>(2) {
            let sql = format!("GRANT USAGE ON SCHEMA {} TO {role}", ident(&table.schema));
            let object = format!("schema {}", table.schema);
            let finding = Finding::new(Severity::Error, object, "the role may not use what is in it", sql);
            if !findings.contains(&finding) {
                findings.push(finding);
            }
        }
        if !row.get::<_, bool>(3) {
            let sql = format!("GRANT SELECT ON TABLE {} TO {role}", qualified(&table));
            findings.push(Finding::new(Severity::Error, table.to_string(), "the role may not read it", sql));
        }
    }
    if let Some((_, owner)) = others.first() {
        let names: Vec<&str> = others.iter().map(|(table, _)| table.as_str()).collect();
        let cause = format!(
            "the role does not own {}: rehearse and cutover, whose triggers only an owner makes, would be refused",
            names.join(", ")
        );
        let sql = format!("to move their writes: GRANT {} TO {role}", ident(owner));
        findings.push(Finding::new(Severity::Note, "cutover", cause, sql));
    }
    Ok(findings)
}

/// What the roles of the targets lack, for every place that the configuration names. A place that cannot be
/// reached is a warning: only moves to it would fail.
pub async fn targets(config: &Config, owned: &[Owned], source: &Source, extensions: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (object, tenant, isolation) in places(config) {
        let found = match config.target(&tenant, isolation) {
            Err(error) => Err(Error::state("read the configuration", error)),
            Ok(target) => target_findings(config, &target, &tenant, owned, source, extensions).await,
        };
        match found {
            Ok(found) => findings.extend(found.into_iter().map(|finding| weigh(config, isolation, finding, &object))),
            Err(error) => {
                let remedy = "mend it before a tenant moves there";
                findings.push(Finding::new(Severity::Warning, object, error.to_string(), remedy));
            }
        }
    }
    findings.sort();
    findings.dedup();
    findings
}

/// The patterns, asked with any tenant, and the tenants that have a server of their own.
fn places(config: &Config) -> Vec<(String, String, Isolation)> {
    let patterns = [("tenant_schema_pattern", Isolation::Schema), ("tenant_database_pattern", Isolation::Database)];
    let patterns = patterns.map(|(key, isolation)| (format!("database_config.{key}"), "0".to_owned(), isolation));
    let own = config.overrides().filter(|(_, isolation, own)| *own && *isolation != Isolation::Shared);
    let own = own.map(|(tenant, isolation, _)| (format!("tenant_overrides.{tenant}"), tenant.to_owned(), isolation));
    patterns.into_iter().chain(own).collect()
}

/// A place that no declared tenant goes to is no obstacle for those who are.
fn weigh(config: &Config, isolation: Isolation, finding: Finding, object: &str) -> Finding {
    let declared = |wanted| config.overrides().any(|(_, isolation, _)| isolation == wanted);
    let elsewhere = match isolation {
        Isolation::Schema => declared(Isolation::Database),
        _ => declared(Isolation::Schema),
    };
    let severity = match finding.severity {
        Severity::Error if elsewhere && !declared(isolation) => Severity::Warning,
        severity => severity,
    };
    let object = if finding.object.is_empty() { object.to_owned() } else { finding.object };
    Finding { severity, object, ..finding }
}

async fn target_findings(
    config: &Config,
    target: &Target,
    tenant: &str,
    owned: &[Owned],
    source: &Source,
    extensions: &[String],
) -> Result<Vec<Finding>> {
    match &target.admin_url {
        None => schema_findings(config, target, source).await,
        Some(admin) => {
            if config.tenant_strategy.tenant_overrides.contains_key(tenant)
                && database_exists(admin, &target.database).await?
            {
                return inside_findings(target, owned, source).await;
            }
            // A pattern may name a role of each tenant's own, which is not there before the tenant moves.
            let strategy = &config.tenant_strategy;
            let own = strategy.tenant_overrides.get(tenant).and_then(|declared| declared.database_url.as_ref());
            let pattern = own.or(strategy.database_config.tenant_database_pattern.as_ref());
            let common = pattern.is_none_or(|pattern| pattern.user == target.url.user);
            let mut findings = database_findings(admin, target.url.role(), common, source, extensions).await?;
            if strategy.migration_config.rollback_enabled {
                findings.extend(way_back(admin, target.url.role()).await?);
            }
            Ok(findings)
        }
    }
}

async fn schema_findings(config: &Config, target: &Target, source: &Source) -> Result<Vec<Finding>> {
    let session = Session::open(&target.url).await?;
    let mut findings = Vec::from_iter(wrong_encoding(&session));
    findings.extend(session.versions(source));
    if !session.may_create {
        findings.push(may_not_create(&session));
    }
    // Of the source's own role in its own database `prepare` takes care.
    let source = &config.source.url;
    let prepared = target.url.same_server(source) && target.url.role() == source.role();
    if !(prepared && Some(target.database.as_str()) == source.database()) {
        findings.extend(control_findings(&session).await?);
    }
    findings.extend(replica_role(&session, &session.role, &target.url).await?);
    Ok(findings)
}

/// Text that another encoding has no sign for would stop the move.
fn wrong_encoding(session: &Session) -> Option<Finding> {
    let Session { database, encoding, .. } = session;
    let cause = format!("database {database} is encoded in {encoding}; only UTF8 is supported");
    let remedy = "name another database, or let Carveout make one";
    (encoding != "UTF8").then(|| Finding::new(Severity::Error, "", cause, remedy))
}

fn may_not_create(session: &Session) -> Finding {
    let (role, database) = (&session.role, &session.database);
    let cause = format!("role {role} may not create schemas in database {database}");
    let sql = format!("GRANT CREATE ON DATABASE {} TO {}", ident(database), ident(role));
    Finding::new(Severity::Error, "", cause, sql)
}

async fn control_findings(session: &Session) -> Result<Option<Finding>> {
    let cause = format!("role {} may not use it in database {}", session.role, session.database);
    Ok(match control::access(&session.client).await? {
        control::Access::Denied => {
            Some(Finding::new(Severity::Error, "schema carveout", cause, control::grants(&session.role)))
        }
        control::Access::Absent | control::Access::Older | control::Access::Granted => None,
    })
}

/// Nothing of it keeps a tenant from moving; a cutover is refused then.
async fn way_back(admin: &PgUrl, role: &str) -> Result<Vec<Finding>> {
    let client = connect(admin, "check").await?;
    let finding = |(cause, remedy)| {
        let cause = format!("after a cutover nothing could flow back from there, so it would be refused: {cause}");
        let remedy = format!("for the way back: {remedy}; or migration_config.rollback_enabled: false");
        Finding::new(Severity::Warning, "", cause, remedy)
    };
    Ok(reverse::wanting(&client, role).await?.into_iter().map(finding).collect())
}

/// For databases that are not there yet: `admin` makes them, for `role`.
async fn database_findings(
    admin_url: &PgUrl,
    role: &str,
    common: bool,
    source: &Source,
    extensions: &[String],
) -> Result<Vec<Finding>> {
    let admin = Session::open(admin_url).await?;
    let mut findings = admin.versions(source);
    if !admin.may_create_databases {
        let cause = format!("role {} may not create databases", admin.role);
        let sql = format!("ALTER ROLE {} CREATEDB", ident(&admin.role));
        findings.push(Finding::new(Severity::Error, "", cause, sql));
    }
    findings.extend(report::extensions(&admin.client, role, extensions).await?);
    if !common {
        return Ok(findings);
    }
    if !admin.ask("SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)", &[&role]).await? {
        let sql = format!("CREATE ROLE {} LOGIN", ident(role));
        findings.push(Finding::new(Severity::Error, "", format!("role {role} does not exist"), sql));
        return Ok(findings);
    }
    // Since 16 a member may be without the option SET, which CREATE DATABASE … OWNER asks for.
    let option = if admin.version.major() >= 16 { "SET" } else { "MEMBER" };
    let member = format!("SELECT pg_has_role($1::text::name, 'USAGE') AND pg_has_role($1::text::name, '{option}')");
    if !admin.ask(&member, &[&role]).await? {
        let cause = format!("role {} may not create databases for role {role}", admin.role);
        let sql = format!("GRANT {} TO {}", ident(role), ident(&admin.role));
        findings.push(Finding::new(Severity::Error, "", cause, sql));
    }
    findings.extend(replica_role(&admin, role, admin_url).await?);
    Ok(findings)
}

/// A database that is there already: its schemas must let the tables in.
async fn inside_findings(target: &Target, owned: &[Owned], source: &Source) -> Result<Vec<Finding>> {
    let session = Session::open(&target.url).await?;
    let mut findings = Vec::from_iter(wrong_encoding(&session));
    findings.extend(session.versions(source));
    if !session.may_create {
        findings.push(may_not_create(&session));
    }
    let schemas: Vec<&str> = owned.iter().map(|owned| owned.table.name.schema.as_str()).collect();
    let closed = session
        .client
        .query(
            "SELECT nspname::text FROM pg_namespace WHERE nspname = ANY ($1)
                AND NOT (has_schema_privilege(oid, 'CREATE') AND has_schema_privilege(oid, 'USAGE')) ORDER BY 1",
            &[&schemas],
        )
        .await
        .doing("look at the target's schemas")?;
    for row in &closed {
        let schema: String = row.get(0);
        let cause = format!("role {} may not create tables in it, in database {}", session.role, session.database);
        let sql = format!("GRANT CREATE, USAGE ON SCHEMA {} TO {}", ident(&schema), ident(&session.role));
        findings.push(Finding::new(Severity::Error, format!("schema {schema}"), cause, sql));
    }
    findings.extend(control_findings(&session).await?);
    findings.extend(replica_role(&session, &session.role, &target.url).await?);
    Ok(findings)
}

/// Since PostgreSQL 15 a role can be allowed what before took a superuser. Lanes work without it, too.
async fn replica_role(session: &Session, role: &str, at: &PgUrl) -> Result<Option<Finding>> {
    let grantable = session.version.major() >= 15;
    let question = match grantable {
        true => "SELECT has_parameter_privilege($1::text::name, 'session_replication_role', 'SET')",
        false => "SELECT rolsuper FROM pg_roles WHERE rolname = $1",
    };
    if session.ask(question, &[&role]).await? {
        return Ok(None);
    }
    let cause = format!(
        "on {}:{} it may not set session_replication_role: triggers and foreign keys that somebody adds to a target \
         would fire while changes are applied",
        at.host.as_deref().unwrap_or("localhost"),
        at.port
    );
    let remedy = match grantable {
        true => format!("GRANT SET ON PARAMETER session_replication_role TO {}", ident(role)),
        false => "add none before the tenant lives there: on PostgreSQL 14 only a superuser may set it".to_owned(),
    };
    Ok(Some(Finding::new(Severity::Warning, format!("role {role}"), cause, remedy)))
}
