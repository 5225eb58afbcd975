//! The patterns of `database_config` and the names made from them.
//!
//! A tenant's text goes into single parts of a URL that has been taken apart before, never into the
//! URL's text, so that it cannot change server, role or options. A name that does not fit is
//! refused, never cut: two tenants must never silently get one name.

use super::units::is_name;
use crate::url::PgUrl;

/// No target can be made for this tenant or from this pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Only `schema` and `database` are targets.
    #[error("a tenant that stays shared has no target (expected schema or database)")]
    Shared,
    /// No key's text form is like that.
    #[error("a tenant's id is not empty and has no NUL byte")]
    Tenant,
    /// Braces with something else in them.
    #[error("a pattern has {found}, which is not known (expected {{tenant}} or {{{key}}})")]
    Placeholder {
        /// What was found.
        found: String,
        /// The tenant key.
        key: String,
    },
    /// The pattern is the same for every tenant.
    #[error("the pattern has no {{tenant}} in the name: all tenants would get the same one")]
    NoTenant,
    /// A placeholder where it would not be replaced.
    #[error("{{tenant}} may stand in the pattern's host, user and database, not in its {0}")]
    Misplaced(&'static str),
    /// The URL leaves the database to the server's defaults.
    #[error("the URL names no database")]
    NoDatabase,
    /// PostgreSQL would cut it.
    #[error("the name \"{name}\" is {} bytes long (allowed is 1 to 63)", name.len())]
    Length {
        /// The name.
        name: String,
    },
    /// It belongs to PostgreSQL or to Carveout.
    #[error("the name \"{name}\" is reserved")]
    Reserved {
        /// The name.
        name: String,
    },
    /// The target would be the source's own database.
    #[error("the database \"{name}\" is the source itself")]
    IsSource {
        /// The name.
        name: String,
    },
    /// A host's name has fewer signs than a tenant's id.
    #[error("the tenant's id cannot be part of a host's name (allowed are letters, digits, - and _)")]
    Host,
}

/// What a pattern's braces stand for.
pub(super) struct Pattern<'a> {
    pub(super) key: &'a str,
    pub(super) tenant: &'a str,
}

impl Pattern<'_> {
    /// A database's, schema's or role's name. `-` becomes `_`, so that it needs no quotes in psql.
    pub(super) fn fill(&self, pattern: &str) -> Result<String, NameError> {
        let name = replace(pattern, self.key, &self.tenant.replace('-', "_"))?;
        if is_name(&name) { Ok(name) } else { Err(NameError::Length { name }) }
    }

    /// A URL's host, role and database; the rest is as it was.
    pub(super) fn fill_url(&self, pattern: &PgUrl) -> Result<PgUrl, NameError> {
        let name = |part: &Option<String>| part.as_deref().map(|part| self.fill(part)).transpose();
        let (user, dbname) = (name(&pattern.user)?, name(&pattern.dbname)?);
        let host = pattern.host.as_deref().map(|host| self.fill_host(host)).transpose()?;
        Ok(PgUrl { host, user, dbname, ..pattern.clone() })
    }

    fn fill_host(&self, pattern: &str) -> Result<String, NameError> {
        let plain = self.tenant.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        if pattern_has_tenant(pattern, self.key) && !plain {
            return Err(NameError::Host);
        }
        replace(pattern, self.key, self.tenant)
    }
}

/// Whether the pattern differs from tenant to tenant.
pub(super) fn pattern_has_tenant(pattern: &str, key: &str) -> bool {
    pattern.contains("{tenant}") || pattern.contains(&format!("{{{key}}}"))
}

/// Refuses braces that stand for nothing.
pub(super) fn check_pattern(pattern: &str, key: &str) -> Result<(), NameError> {
    replace(pattern, key, "").map(drop)
}

/// Refuses a URL pattern with braces that stand for nothing or where nothing is replaced.
pub(super) fn check_url_pattern(pattern: &PgUrl, key: &str) -> Result<(), NameError> {
    for part in [&pattern.host, &pattern.user, &pattern.dbname].into_iter().flatten() {
        check_pattern(part, key)?;
    }
    for (part, name) in [
        (&pattern.sslrootcert, "sslrootcert"),
        (&pattern.sslcert, "sslcert"),
        (&pattern.sslkey, "sslkey"),
        (&pattern.application_name, "application_name"),
        (&pattern.options, "options"),
    ] {
        if part.as_ref().is_some_and(|part| pattern_has_tenant(part, key)) {
            return Err(NameError::Misplaced(name));
        }
    }
    Ok(())
}

/// The pattern with `tenant` in place of `{tenant}` and `{key}`; what came in is not looked at again.
fn replace(pattern: &str, key: &str, tenant: &str) -> Result<String, NameError> {
    let mut name = String::with_capacity(pattern.len() + tenant.len());
    let mut rest = pattern;
    while let Some((before, after)) = rest.split_once('{') {
        let (inside, after) = after.split_once('}').unwrap_or((after, ""));
        if inside != "tenant" && inside != key {
            return Err(NameError::Placeholder { found: format!("{{{inside}}}"), key: key.to_owned() });
        }
        name.push_str(before);
        name.push_str(tenant);
        rest = after;
    }
    name.push_str(rest);
    Ok(name)
}
