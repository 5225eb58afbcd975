//! How mistakes are answered: line, column, key, and what is allowed.

use super::super::*;
use super::{MINIMAL, parse};

/// The mistake in a file that is right but for what follows.
fn mistake(more: &str) -> String {
    parse(&format!("{MINIMAL}{more}")).unwrap_err().to_string()
}

/// Lines that make a right file wrong, and a part of the answer.
const MISTAKES: &[(&str, &str)] = &[
    ("limits:\n  memry: 1GiB\n", "line 4, column 3: limits.memry: unknown key (known here: memory, "),
    ("limits: {memory: 12xx}\n", "line 3, column 18: limits.memory: \"12xx\" is not a size"),
    ("limits: {memory: 1KiB}\n", "line 3, column 18: limits.memory: \"1KiB\" is too small"),
    (
        "limits: {copy_parallel: 65}\n",
        "line 3, column 25: limits.copy_parallel: \"65\" is out of range (allowed is 1 to 64)",
    ),
    ("limits: {copy_parallel: -1}\n", "column 25: limits.copy_parallel: \"-1\" is not a whole number"),
    ("limits: {copy_parallel: 99999999999}\n", "limits.copy_parallel: \"99999999999\" is out of range"),
    (
        "tenant_strategy:\n  migration_config:\n    batch_size: 0\n",
        "line 5, column 17: tenant_strategy.migration_config.batch_size: \"0\" is out",
    ),
    ("auto_start: yes\n", "line 3, column 13: auto_start: \"yes\" is neither true nor false"),
    ("auto_start:\n", "line 3, column 11: auto_start: has no value"),
    (
        "http: {listen: localhost}\n",
        "http.listen: \"localhost\" is not an address (expected a form like 127.0.0.1:8377)",
    ),
    ("log: {format: xml}\n", "line 3, column 15: log.format: \"xml\" is not known (expected one of: text, json)"),
    ("kafka: {topic: x}\n", "line 3, column 8: kafka.brokers: is missing"),
    ("hooks: {before_cutover: x}\n", "hooks.before_cutover: expected a list"),
    (
        "hooks: {before_cutover: [a, [b]]}\n",
        "line 3, column 29: hooks.before_cutover.1: expected one value, found a list",
    ),
    ("log: []\n", "line 3, column 6: log: expected a block of keys"),
    (
        "tenant_strategy: {tenant_overrides: {7: schem}}\n",
        "column 41: tenant_strategy.tenant_overrides.7: \"schem\" is not known",
    ),
    (
        "tenant_strategy: {tenant_overrides: {7: {type: shared, database_url: postgresql://u@h}}}\n",
        "7: a shared tenant has no",
    ),
    (
        "tenant_strategy: {tenant_overrides: {7: schema, \"7\": schema}}\n",
        "column 49: tenant_strategy.tenant_overrides.7: stands twice",
    ),
    (
        "tenant_strategy: {migration_thresholds: {orders: 5s}}\n",
        "migration_thresholds.orders: \"5s\" is not a whole number",
    ),
    ("auto_start: true\nauto_start: true\n", "line 4, column 1: auto_start: stands twice"),
    (
        "log: {level: ${LEVEL}}\n",
        "line 3, column 15: while parsing a flow mapping, did not find expected ',' or '}' (between { }",
    ),
    ("log: {level: \"${LEVEL}\"}\n", "line 3, column 14: log.level: the environment variable LEVEL is not set"),
    ("\"${A}\": 1\n", "line 3, column 1: ${A}: variables are replaced in values, not in keys"),
    ("log: !include x\n", "line 3, column "),
];

#[test]
fn every_mistake_has_its_line_column_and_key() {
    for (more, expected) in MISTAKES {
        let found = mistake(more);
        assert!(found.starts_with("line ") && found.contains(expected), "{more}{found}");
    }
    assert_eq!(parse("").unwrap_err().to_string(), "line 1, column 1: source: is missing");
    assert!(
        parse(&MINIMAL.replace("url:", "slot: Big, url:"))
            .unwrap_err()
            .to_string()
            .contains("source.slot: \"Big\" is not a slot's name")
    );
}

#[test]
fn a_policy_that_contradicts_itself_is_refused() {
    let table = |policy: &str| {
        parse(&format!(
            "{}  tables: {{t: {policy}}}\n",
            MINIMAL.replace("tenancy: {key: storefront_id}", "tenancy:\n  key: k")
        ))
        .map_err(|error| error.to_string())
    };
    assert!(
        table("{key: a, via: b}").unwrap_err().contains("line 4, column 15: tenancy.tables.t: key and via contradict")
    );
    assert!(table("{via: []}").unwrap_err().contains("via names no column"));
    assert!(
        table("{via: {a: b}}")
            .unwrap_err()
            .contains("tenancy.tables.t.via: expected a column or a list of columns, found a block of keys")
    );
    assert_eq!(
        table("{via: [a, b], null_tenant: not_moving}").unwrap().tenancy.tables["t"].via.as_ref().unwrap().len(),
        2
    );
    assert!(table("").unwrap().tenancy.tables["t"] == TablePolicy::default());
}

#[test]
fn patterns_must_make_a_name_of_their_own_for_every_tenant() {
    let place = |line: &str| mistake(&format!("tenant_strategy:\n  database_config:\n    {line}\n"));
    for (line, expected) in [
        (
            "tenant_schema_pattern: shop",
            "line 5, column 28: tenant_strategy.database_config.tenant_schema_pattern: the pattern has no {tenant}",
        ),
        (
            "tenant_schema_pattern: \"a_{tenat}_{tenant}\"",
            "has {tenat}, which is not known (expected {tenant} or {storefront_id})",
        ),
        ("tenant_database_pattern: postgresql://u@h/shop", "tenant_database_pattern: the pattern has no {tenant}"),
        ("tenant_database_pattern: \"postgresql://{tenant}@h/shop\"", "the pattern has no {tenant}"),
        ("tenant_database_pattern: \"postgresql://{tenant}@h\"", "names no database"),
        ("tenant_database_pattern: \"postgresql://h/x_{tenant}?options={tenant}\"", "not in its options"),
        ("admin_url: \"postgresql://u@h/{tenant}\"", "admin_url: is one for all tenants"),
        ("shared_database_url: postgresql://h", "shared_database_url: the URL names no database"),
    ] {
        assert!(place(line).contains(expected), "{line}: {}", place(line));
    }
    let overrides = |entries: &str| mistake(&format!("tenant_strategy: {{tenant_overrides: {{{entries}}}}}\n"));
    assert!(
        overrides("a-b: schema, a_b: schema")
            .contains("tenant_overrides.a_b: gets the same name \"tenant_a_b\" as tenant \"a-b\"")
    );
    assert!(overrides("postgres: database").contains("tenant_overrides.postgres: the name \"postgres\" is reserved"));
    assert!(overrides("shop: database").contains("tenant_overrides.shop: the database \"shop\" is the source itself"));
    assert!(
        overrides("a: {type: database, password_file: /f}")
            .contains("tenant_overrides.a: password_file is for a database_url, which is missing")
    );
    assert!(
        overrides("a: {type: database, database_url: \"postgresql://u:S3CR3T@h/a\", password_file: /f}")
            .contains("tenant_overrides.a: database_url has a password and password_file names one too")
    );
    let own = "{type: database, database_url: postgresql://u@h/one}";
    assert!(overrides(&format!("a: {own}, b: {own}")).contains("gets the same name \"one\""));
}
