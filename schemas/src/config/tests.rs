//! What a person who writes a configuration is promised.

mod mistakes;

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::url::Secret;

const MINIMAL: &str = "source: {url: postgresql://carveout@db/shop}\ntenancy: {key: storefront_id}\n";

/// The example of INTERFACE.md, with hosts in place of its dots.
const EXAMPLE: &str = r#"source:
  url: postgresql://carveout@shared.internal:5432/smartseller?sslmode=verify-full
  password_file: /run/secrets/source
  slot: carveout                 # default
  publication: carveout          # default
tenancy:
  key: storefront_id             # the usual tenant key
  tables:                        # only what differs
    customer_addresses: {via: customer_id}
    orders: {null_tenant: stop}
    countries: {reference: true}
    schema_migrations: {exclude: true}
tenant_strategy:
  default_type: shared
  migration_thresholds: {customers: 100000, orders: 500000, avg_query_time: 200ms}
  tenant_overrides:
    "550e8400-e29b-41d4-a716-446655440000": database
    "550e8400-e29b-41d4-a716-446655440001": schema
    "550e8400-e29b-41d4-a716-446655440002": {type: database, database_url: "postgresql://eu.internal/storefront_{storefront_id}"}
  database_config:
    shared_database_url: postgresql://carveout@shared.internal/smartseller
    tenant_database_pattern: "postgresql://carveout@tenants.internal/storefront_{storefront_id}"
    tenant_schema_pattern: "storefront_{storefront_id}"
    password_file: /run/secrets/target
    admin_url: postgresql://admin@tenants.internal/postgres
    max_connections_per_tenant: 20
  migration_config:
    batch_size: 1000
    validation_enabled: true
    rollback_enabled: true
    dual_write_duration: 24h
auto_start: false
state_dir: ./carveout-state
limits: {memory: 256MiB, spool_per_tenant: 10GiB, spool_total: 50GiB, copy_parallel: 4, copy_rows_per_second: 0, target_connections: 64, reverse_slots: 20}
http: {listen: 127.0.0.1:8377, token_file: ./token}
metrics: {per_tenant: true}
hooks: {before_cutover: ["./drain.sh", "{tenant}"], after_cutover: ["./announce.sh", "{tenant}"]}
kafka:
  brokers: localhost:9092
  topic: "carveout.{schema}.{table}"
  relay: false
log: {format: text, level: info}
"#;

fn parse_with(text: &str, variables: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let environment =
        |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
    Config::parse(text, &environment)
}

fn parse(text: &str) -> Result<Config, ConfigError> {
    parse_with(text, &[])
}

#[test]
fn the_documented_example_is_read_and_says_the_defaults() {
    let config = parse(EXAMPLE).unwrap();
    assert_eq!(config.tenancy.tables["customer_addresses"].via, Some(vec!["customer_id".to_owned()]));
    assert!(config.tenancy.tables["countries"].reference && config.tenancy.tables["schema_migrations"].exclude);
    assert_eq!(config.tenant_strategy.migration_thresholds.rows["customers"], 100_000);
    assert_eq!(config.tenant_strategy.migration_thresholds.avg_query_time, Some(Span(Duration::from_millis(200))));
    let declared: Vec<(Isolation, bool)> = config.overrides().map(|(_, isolation, own)| (isolation, own)).collect();
    assert_eq!(declared, [(Isolation::Database, false), (Isolation::Schema, false), (Isolation::Database, true)]);

    let defaults = parse(MINIMAL).unwrap();
    assert_eq!((&defaults.limits, &defaults.http, &defaults.log), (&config.limits, &config.http, &config.log));
    assert_eq!(defaults.tenant_strategy.migration_config, config.tenant_strategy.migration_config);
    assert_eq!((&defaults.state_dir, defaults.auto_start), (&config.state_dir, config.auto_start));
    assert_eq!(
        (&defaults.source.slot, &defaults.source.publication),
        (&config.source.slot, &config.source.publication)
    );
}

#[test]
fn only_the_unused_keys_of_the_file_are_listed() {
    assert!(parse(MINIMAL).unwrap().unused().is_empty());
    let expected = [
        "tenant_strategy.default_type",
        "tenant_strategy.migration_thresholds",
        "kafka.brokers",
        "kafka.topic",
        "kafka.relay",
    ];
    assert_eq!(parse(EXAMPLE).unwrap().unused(), expected);
}

#[test]
fn comments_of_any_number_are_no_obstacle() {
    let text = format!("{MINIMAL}limits:\n{}  copy_parallel: 7\n", "  # a word\n".repeat(5_000));
    assert_eq!(parse(&text).unwrap().limits.copy_parallel, 7);
}

#[test]
fn variables_serve_values_of_every_kind() {
    let text = format!(
        "{MINIMAL}auto_start: ${{AUTO:-true}}\nlimits: {{copy_parallel: \"${{N}}\", memory: \"${{N}}MiB\"}}\n\
         log: {{format: \"${{FORMAT}}\"}}\nhttp: {{listen: \"127.0.0.1:${{PORT:-99}}\"}}\n\
         tenant_strategy:\n  database_config:\n    password_file: ${{FILE:-}}\n    tenant_schema_pattern: ${{NONE:-s_{{tenant}}}}\n"
    );
    let config = parse_with(&text, &[("N", "7"), ("FORMAT", "json")]).unwrap();
    assert!(config.auto_start && config.log.format == LogFormat::Json);
    assert_eq!((config.limits.copy_parallel, config.limits.memory), (7, ByteSize::mebibytes(7)));
    assert_eq!((config.http.listen.port(), &config.tenant_strategy.database_config.password_file), (99, &None));
    assert_eq!(config.target("x-1", Isolation::Schema).unwrap().schema.as_deref(), Some("s_x_1"));
}

#[test]
fn scalars_keep_their_spelling() {
    let text = format!(
        "{MINIMAL}tenant_strategy:\n  tenant_overrides: {{007: schema, 1_0: schema, 0x10: shared, 1.50: schema, yes: schema}}\nlog: {{level: 1e3}}\nstate_dir: 007\n"
    );
    let config = parse(&text).unwrap();
    let tenants: Vec<&str> = config.overrides().map(|(tenant, ..)| tenant).collect();
    assert_eq!(tenants, ["007", "0x10", "1.50", "1_0", "yes"]);
    assert_eq!((config.log.level.as_str(), config.state_dir.to_str()), ("1e3", Some("007")));
}

#[test]
fn no_secret_is_shown() {
    let text = "source: {url: \"${URL}\"}\ntenancy: {key: k}\nlimits: {copy_parallel: \"${N:-1}\"}\nhooks: {before_cutover: [\"${URL}\"]}\n";
    let url = ("URL", "postgresql://me:S3CR3T@db/shop");
    let config = parse_with(text, &[url]).unwrap();
    assert_eq!(config.source.url.password, Some(Secret::new("S3CR3T")));
    assert!(!format!("{config:?} {:?}", config.target("7", Isolation::Database)).contains("S3CR3T"));
    for variables in [
        [("URL", "postgresql://me:S3CR3T@db:x/shop"), ("N", "1")],
        [("URL", "S3CR3T"), ("N", "1")],
        [url, ("N", "S3CR3T")],
    ] {
        let error = parse_with(text, &variables).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("S3CR3T"), "{error}");
        assert!(error.place().is_some() && !error.key().is_empty(), "{error}");
    }
    assert!(
        parse_with(text, &[url, ("N", "S3CR3T")])
            .unwrap_err()
            .to_string()
            .contains("\"${N:-1}\" is not a whole number")
    );
}

#[test]
fn a_server_of_its_own_has_a_password_file_of_its_own() {
    let text = format!(
        "{MINIMAL}tenant_strategy:\n  tenant_overrides:\n    a: {{type: database, database_url: postgresql://u@eu/a, password_file: /eu}}\n    \
         b: {{type: database, database_url: postgresql://u@us/b}}\n    c: {{type: database, database_url: \"postgresql://u:x@us/c\"}}\n  \
         database_config: {{password_file: /common}}\n"
    );
    let config = parse(&text).unwrap();
    let file = |tenant: &str| {
        let target = config.target(tenant, Isolation::Database).unwrap();
        assert_eq!(target.url.password_file, target.admin_url.unwrap().password_file);
        target.url.password_file
    };
    assert_eq!([file("a"), file("b"), file("c")], [Some("/eu".into()), Some("/common".into()), None]);
}

#[test]
fn overrides_are_spelled_like_the_key() {
    let text = format!(
        "{MINIMAL}tenant_strategy: {{tenant_overrides: {{007: {{type: schema, database_url: postgresql://u@eu/x}}}}}}\n"
    );
    let mut config = parse(&text).unwrap();
    assert!(config.clone().canonical_overrides(KeyType::Uuid).is_err());
    config.canonical_overrides(KeyType::Int8).unwrap();
    assert_eq!(config.target("7", Isolation::Schema).unwrap().url.host.as_deref(), Some("eu"));
    let mut twice =
        parse(&format!("{MINIMAL}tenant_strategy: {{tenant_overrides: {{007: schema, 7: schema}}}}\n")).unwrap();
    assert_eq!(twice.canonical_overrides(KeyType::Int4), Err(BadOverride::Twice("7".to_owned())));
}

proptest! {
    #[test]
    fn nothing_from_the_environment_becomes_structure(value in "\\PC{0,20}|[\\n\\t \"'#:,{}\\[\\]&*!|>%@`-]{0,12}|x\\nauto_start: true\\n", quote in "[\"]?") {
        let text = format!("log: {{level: \"${{X}}\"}}\nstate_dir: {quote}${{X}}{quote}\n{MINIMAL}tenant_strategy:\n  bad: 1\n");
        let right = text.replace("  bad: 1\n", "");
        prop_assume!(!value.is_empty());
        let config = parse_with(&right, &[("X", &value)]).unwrap();
        prop_assert_eq!((&config.log.level, config.state_dir.to_str()), (&value, Some(value.as_str())));
        let expected = Config { log: Log { level: value.clone(), ..Log::default() }, state_dir: PathBuf::from(&value), ..parse(MINIMAL).unwrap() };
        prop_assert_eq!(config, expected);
        let error = parse_with(&text, &[("X", &value)]).unwrap_err();
        prop_assert_eq!(error.place(), Some(Place { line: 6, column: 3 }));
    }

    #[test]
    fn no_text_makes_it_panic(text in "[a-z{}\\[\\]:, \\n\"$&*!~-]{0,40}", more in "\\PC{0,30}") {
        parse(&text).ok();
        parse(&format!("{MINIMAL}{more}")).ok();
    }
}
