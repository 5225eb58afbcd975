//! Where a tenant goes: server, database, schema.
//!
//! It never decides by looking at a server; whether a name is free is asked elsewhere.

use super::Config;
use super::pattern::{NameError, Pattern, check_url_pattern};
use super::strategy::Isolation;
use crate::url::PgUrl;

/// The schema of a tenant where no pattern is given.
const DEFAULT_SCHEMA_PATTERN: &str = "tenant_{tenant}";
/// The database of a tenant where no pattern is given.
const DEFAULT_DATABASE_PATTERN: &str = "{tenant}";
/// What every server has: the first for connections that create others, none for tenants.
const SYSTEM_DATABASES: [&str; 3] = ["postgres", "template0", "template1"];
/// Schemas that are not a tenant's, beside everything that begins with `pg_`.
const RESERVED_SCHEMAS: [&str; 3] = ["carveout", "public", "information_schema"];

/// A tenant's future place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// Server, role and database to connect to.
    pub url: PgUrl,
    /// The database; the same as in `url`.
    pub database: String,
    /// The tenant's schema; `None` where the database is the tenant's own.
    pub schema: Option<String>,
    /// For a database of its own: the role that may create it, connected to another database.
    pub admin_url: Option<PgUrl>,
}

impl Config {
    /// Where `tenant` goes. Its override's `database_url` wins over the patterns; the tenant must be
    /// spelled as the override is, see [`Config::canonical_overrides`].
    pub fn target(&self, tenant: &str, isolation: Isolation) -> Result<Target, NameError> {
        let declared = self.tenant_strategy.tenant_overrides.get(tenant);
        self.target_at(tenant, isolation, declared.and_then(|declared| declared.database_url.as_ref()))
    }

    /// Where `tenant` goes when `own` (an override's URL, `move --target`) names its server.
    pub fn target_at(&self, tenant: &str, isolation: Isolation, own: Option<&PgUrl>) -> Result<Target, NameError> {
        if tenant.is_empty() || tenant.contains('\0') {
            return Err(NameError::Tenant);
        }
        if let Some(own) = own {
            check_url_pattern(own, &self.tenancy.key)?;
        }
        let file = &self.tenant_strategy.database_config.password_file;
        let own = own.map(|own| own.or_password_file(file.as_ref()));
        let own = own.as_ref();
        match isolation {
            Isolation::Shared => Err(NameError::Shared),
            Isolation::Schema => self.schema_target(tenant, own),
            Isolation::Database => self.database_target(tenant, own),
        }
    }

    fn schema_target(&self, tenant: &str, own: Option<&PgUrl>) -> Result<Target, NameError> {
        let places = &self.tenant_strategy.database_config;
        let pattern = Pattern { key: &self.tenancy.key, tenant };
        let url = match own {
            Some(own) => pattern.fill_url(own)?,
            None => places.shared_database_url.as_ref().unwrap_or(&self.source.url).clone(),
        };
        let database = url.database().ok_or(NameError::NoDatabase)?.to_owned();
        let schema = pattern.fill(places.tenant_schema_pattern.as_deref().unwrap_or(DEFAULT_SCHEMA_PATTERN))?;
        if schema.starts_with("pg_") || RESERVED_SCHEMAS.contains(&schema.as_str()) {
            return Err(NameError::Reserved { name: schema });
        }
        Ok(Target { url: url.with_dbname(&database), database, schema: Some(schema), admin_url: None })
    }

    fn database_target(&self, tenant: &str, own: Option<&PgUrl>) -> Result<Target, NameError> {
        let places = &self.tenant_strategy.database_config;
        let pattern = Pattern { key: &self.tenancy.key, tenant };
        let written = own.or(places.tenant_database_pattern.as_ref());
        let server = written.map_or_else(|| Ok(self.source.url.clone()), |written| pattern.fill_url(written))?;
        let database = match written.and_then(|written| written.dbname.as_ref()) {
            Some(_) => server.dbname.clone().ok_or(NameError::NoDatabase)?,
            None => {
                let common = places.tenant_database_pattern.as_ref().and_then(|common| common.dbname.as_deref());
                pattern.fill(common.unwrap_or(DEFAULT_DATABASE_PATTERN))?
            }
        };
        if SYSTEM_DATABASES.contains(&database.as_str()) {
            return Err(NameError::Reserved { name: database });
        }
        if server.same_server(&self.source.url) && self.source.url.database() == Some(&database) {
            return Err(NameError::IsSource { name: database });
        }
        // An administrator of the common server is none of a tenant's own server.
        let configured = places.admin_url.as_ref().filter(|admin| own.is_none() || admin.same_server(&server));
        Ok(Target {
            url: server.with_dbname(&database),
            database,
            schema: None,
            admin_url: Some(configured.cloned().unwrap_or_else(|| server.with_dbname(SYSTEM_DATABASES[0]))),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A configuration with these lines in `database_config`.
    fn config(places: &str) -> Config {
        let text = format!(
            "source: {{url: \"postgresql://me:S3CR3T@db:1/shop?sslmode=require\", password_file: /source}}\n\
             tenancy: {{key: bid}}\ntenant_strategy: {{database_config: {{password_file: /target, {places}}}}}\n"
        );
        Config::parse(&text, &|_| None).unwrap()
    }

    fn shown(target: &Target) -> (String, Option<String>, Option<&str>) {
        (target.url.redacted(), target.admin_url.as_ref().map(PgUrl::redacted), target.schema.as_deref())
    }

    #[test]
    fn without_patterns_the_source_is_the_server() {
        let plain = config("");
        let database = plain.target("a-b", Isolation::Database).unwrap();
        let at = |name: &str| format!("postgresql://me@db:1/{name}?sslmode=require");
        assert_eq!(shown(&database), (at("a_b"), Some(at("postgres")), None));
        assert_eq!((&database.url.password, &database.url.password_file), (&plain.source.url.password, &None));
        let schema = plain.target("a-b", Isolation::Schema).unwrap();
        assert_eq!((shown(&schema), schema.database.as_str()), ((at("shop"), None, Some("tenant_a_b")), "shop"));
        assert_eq!(plain.target("a", Isolation::Shared), Err(NameError::Shared));
    }

    #[test]
    fn patterns_own_servers_and_administrators_are_followed() {
        let places = "tenant_database_pattern: \"postgresql://r_{bid}@h-{tenant}/s_{bid}_{tenant}\", admin_url: postgresql://adm@h/x";
        let config = config(places);
        let target = config.target("a-b", Isolation::Database).unwrap();
        let expected = ("postgresql://r_a_b@h-a-b/s_a_b_a_b".to_owned(), Some("postgresql://adm@h/x".to_owned()), None);
        assert_eq!(shown(&target), expected);
        let files =
            [Some(&target.url), target.admin_url.as_ref()].map(|url| url.and_then(|url| url.password_file.clone()));
        assert_eq!(files, [Some("/target".into()), Some("/target".into())]);

        let own = |url: &str| config.target_at("7", Isolation::Database, Some(&url.parse().unwrap())).unwrap();
        let elsewhere = ("postgresql://u@eu/s_7_7".to_owned(), Some("postgresql://u@eu/postgres".to_owned()), None);
        assert_eq!(shown(&own("postgresql://u@eu")), elsewhere);
        assert_eq!(shown(&own("postgresql://u@h/x_{tenant}")).1, Some("postgresql://adm@h/x".to_owned()));
        let schema = config.target_at("7", Isolation::Schema, Some(&"postgresql://u@eu/x".parse().unwrap())).unwrap();
        assert_eq!(shown(&schema), ("postgresql://u@eu/x".to_owned(), None, Some("tenant_7")));
    }

    #[test]
    fn names_that_cannot_be_are_refused() {
        let bare = config("tenant_schema_pattern: \"{tenant}\"");
        for tenant in ["", "a\0b", "pg_x", "carveout", "public", "information-schema", &"é".repeat(32), &"x".repeat(64)]
        {
            assert!(bare.target(tenant, Isolation::Schema).is_err(), "{tenant}");
        }
        for tenant in ["", "a\0b", "postgres", "template0", "template1", "shop", &"x".repeat(64)] {
            assert!(bare.target(tenant, Isolation::Database).is_err(), "{tenant}");
        }
        assert_eq!(bare.target(&"x".repeat(63), Isolation::Database).unwrap().database, "x".repeat(63));
        let hosts = config("tenant_database_pattern: \"postgresql://u@{tenant}/x\"");
        for tenant in ["/tmp", "evil.com", "a,b", "a@b", "é", ""] {
            assert!(hosts.target(tenant, Isolation::Database).is_err(), "{tenant}");
        }
    }

    proptest! {
        #[test]
        fn no_tenant_changes_anything_but_the_names(tenant in "\\PC{1,20}|[@:/?&=#%{}\\[\\], a-]{1,12}|\\{tenant\\}|x@evil:9/y\\?host=z") {
            let config = config("tenant_database_pattern: \"postgresql://me:S3CR3T@h:5/d_{tenant}?sslmode=require\"");
            let name = format!("d_{}", tenant.replace('-', "_"));
            let target = config.target(&tenant, Isolation::Database);
            prop_assume!(name.len() <= 63);
            let target = target.unwrap();
            let expected: PgUrl = "postgresql://me:S3CR3T@h:5/d?sslmode=require".parse().unwrap();
            prop_assert_eq!(&target.url, &expected.with_dbname(&name));
            prop_assert_eq!(target.url.redacted().parse::<PgUrl>().unwrap().dbname, Some(name.clone()));
            prop_assert_eq!((target.database, target.admin_url), (name, Some(expected.with_dbname("postgres"))));
        }
    }
}
