//! What one key alone does not show: patterns, and names that two tenants would share.

use std::collections::HashMap;

use super::Config;
use super::error::ConfigError;
use super::pattern::{self, NameError};
use super::strategy::Isolation;
use super::yaml::Node;
use crate::url::PgUrl;

/// Refuses what was read but cannot work.
pub(super) fn check(config: &Config, file: &Node) -> Result<(), ConfigError> {
    let refuse = |path: &[&str], error: NameError| ConfigError::new(file.place_of(path), path, error);
    let places = &config.tenant_strategy.database_config;
    let key = &config.tenancy.key;
    let at = |name| ["tenant_strategy", "database_config", name];
    names_database(&config.source.url).map_err(|error| refuse(&["source", "url"], error))?;
    if let Some(pattern) = &places.tenant_database_pattern {
        check_database_pattern(pattern, key).map_err(|error| refuse(&at("tenant_database_pattern"), error))?;
    }
    if let Some(pattern) = &places.tenant_schema_pattern {
        let known = pattern::check_pattern(pattern, key);
        let differs = pattern::pattern_has_tenant(pattern, key).then_some(()).ok_or(NameError::NoTenant);
        known.and(differs).map_err(|error| refuse(&at("tenant_schema_pattern"), error))?;
    }
    for (url, name) in [(&places.shared_database_url, "shared_database_url"), (&places.admin_url, "admin_url")] {
        let Some(url) = url else { continue };
        names_database(url).map_err(|error| refuse(&at(name), error))?;
        let parts = [&url.host, &url.user, &url.dbname];
        if parts.into_iter().flatten().any(|part| pattern::pattern_has_tenant(part, key)) {
            return Err(ConfigError::new(
                file.place_of(&at(name)),
                &at(name),
                "is one for all tenants and takes no {tenant}",
            ));
        }
    }
    check_overrides(config, file)
}

/// Every declared target can be named, and no two are the same.
fn check_overrides(config: &Config, file: &Node) -> Result<(), ConfigError> {
    let mut taken = HashMap::new();
    for (tenant, declared) in &config.tenant_strategy.tenant_overrides {
        let path = ["tenant_strategy", "tenant_overrides", tenant];
        let refuse = |message: String| ConfigError::new(file.place_of(&path), &path, message);
        if declared.isolation == Isolation::Shared {
            continue;
        }
        let place = config.target(tenant, declared.isolation).map_err(|error| refuse(error.to_string()))?;
        let name = place.schema.clone().unwrap_or_else(|| place.database.clone());
        let server = (place.url.host, place.url.port, place.database, place.schema);
        if let Some(other) = taken.insert(server, tenant) {
            return Err(refuse(format!("gets the same name \"{name}\" as tenant \"{other}\"")));
        }
    }
    Ok(())
}

fn check_database_pattern(pattern: &PgUrl, key: &str) -> Result<(), NameError> {
    pattern::check_url_pattern(pattern, key)?;
    let differs = |part: &Option<String>| part.as_ref().is_some_and(|part| pattern::pattern_has_tenant(part, key));
    match &pattern.dbname {
        None => Err(NameError::NoDatabase),
        Some(_) if differs(&pattern.dbname) || differs(&pattern.host) => Ok(()),
        Some(_) => Err(NameError::NoTenant),
    }
}

fn names_database(url: &PgUrl) -> Result<(), NameError> {
    url.database().map(drop).ok_or(NameError::NoDatabase)
}
