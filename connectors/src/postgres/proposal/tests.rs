//! What a proposal promises, on tables that are written down here and not in a database.

use schemas::tenant::KeyType;

use super::*;
use crate::postgres::catalog::{Column, ForeignKey, UniqueKey};

/// A table from `name type` pairs (`!` for NOT NULL) and `columns>table` foreign keys to its first column.
fn table(name: &str, columns: &str, foreign_keys: &[&str]) -> Table {
    let column = |(number, text): (usize, &str)| {
        let (name, kind) = text.trim().split_once(' ').unwrap();
        let (kind, not_null) = kind.strip_suffix('!').map_or((kind, false), |kind| (kind, true));
        let type_oid = match kind {
            "int" => 23,
            "uuid" => 2950,
            "text" => 25,
            "numeric" => 1700,
            _ => 99_999,
        };
        Column {
            name: name.to_owned(),
            number: i16::try_from(number).unwrap() + 1,
            type_oid,
            typmod: -1,
            array_oid: 0,
            type_sql: kind.to_owned(),
            type_name: format!("\"pg_catalog\".\"{kind}\""),
            base_name: format!("\"pg_catalog\".\"{kind}\""),
            key: KeyType::from_oid(type_oid),
            category: "N".to_owned(),
            built_in: type_oid != 99_999,
            text_only: false,
            delimiter: b',',
            not_null,
            default: None,
            identity: String::new(),
            generated: String::new(),
            collation: None,
            owned_sequence: None,
            sequence_options: None,
        }
    };
    let columns: Vec<Column> = columns.split(',').enumerate().map(column).collect();
    let foreign_key = |text: &&str| {
        let (columns, parent) = text.split_once('>').unwrap();
        ForeignKey {
            name: format!("{name}_{columns}_{parent}"),
            columns: vec![columns.to_owned()],
            parent: TableName::new("public", parent),
            referenced: vec!["id".to_owned()],
            validated: true,
            may_outlive: false,
        }
    };
    let primary = UniqueKey {
        name: format!("{name}_pkey"),
        columns: vec![columns[0].name.clone()],
        primary: true,
        identifies: true,
        replica_identity: false,
    };
    Table {
        oid: 0,
        name: TableName::new("public", name),
        kind: "r".to_owned(),
        persistence: "p".to_owned(),
        identity: "d".to_owned(),
        row_security: false,
        inherits: false,
        partitioned_by: None,
        outdated: false,
        partitions: Vec::new(),
        estimated_rows: -1,
        columns,
        keys: vec![primary],
        foreign_keys: foreign_keys.iter().map(foreign_key).collect(),
    }
}

/// Two keyed tables and their root.
fn base() -> Vec<Table> {
    vec![
        table("shops", "id int!", &[]),
        table("customers", "id int!,shop_id int!", &["shop_id>shops"]),
        table("orders", "id int!,shop_id int!,customer_id int", &["customer_id>customers"]),
    ]
}

fn with(more: Vec<Table>) -> Proposal {
    let mut tables = base();
    tables.extend(more);
    let proposal = propose(&tables, None).unwrap();
    let open: BTreeSet<String> = proposal.open().map(|entry| entry.table.to_string()).collect();
    let refused: BTreeSet<String> = refused(&tables, &proposal.tenancy()).into_keys().collect();
    assert_eq!(open, refused, "what is open and what check refuses");
    proposal
}

fn entry<'a>(proposal: &'a Proposal, name: &str) -> &'a Entry {
    proposal.entries.iter().find(|entry| entry.table.name == name).unwrap()
}

/// The written line, as `key=` or `via=`.
fn chosen(proposal: &Proposal, name: &str) -> String {
    match &entry(proposal, name).chosen {
        Chosen::Usual => "usual".to_owned(),
        Chosen::Open => "open".to_owned(),
        Chosen::Line(Choice { policy, .. }) => match (&policy.key, &policy.via) {
            (Some(key), _) => format!("key={key}"),
            (_, Some(via)) => format!("via={}", via.join("+")),
            _ => "other".to_owned(),
        },
    }
}

#[test]
fn the_key_is_the_column_of_most_tables_and_its_root_has_its_id() {
    let proposal = with(Vec::new());
    assert_eq!((proposal.key.column.as_str(), proposal.key.kind), ("shop_id", KeyType::Int4));
    assert_eq!(["shops", "customers", "orders"].map(|name| chosen(&proposal, name)), ["key=id", "usual", "usual"]);
    let asked = propose(&base(), Some("customer_id")).unwrap();
    assert_eq!(asked.key.column, "customer_id");
    assert_eq!(chosen(&asked, "customers"), "key=id");
    for (tables, wanted) in [(base(), Some("nothing")), (vec![table("a", "id int!,n numeric", &[])], None)] {
        assert!(propose(&tables, wanted).is_err());
    }
}

#[test]
fn another_spelling_of_the_key_gets_a_line_and_another_type_does_not() {
    let proposal = with(vec![
        table("camel", "id int!,shopId int!", &[]),
        table("other", "id int!,shopID text!", &[]),
        table("owned", "id int!,owner int!", &["owner>shops"]),
    ]);
    assert_eq!(["camel", "other", "owned"].map(|name| chosen(&proposal, name)), ["key=shopId", "open", "key=owner"]);
}

#[test]
fn the_shortest_way_that_every_row_has_is_taken_and_the_others_are_named() {
    let proposal = with(vec![
        table("items", "id int!,order_id int!", &["order_id>orders"]),
        table("events", "id int!,item_id int!", &["item_id>items"]),
        table("notes", "id int!,order_id int,event_id int!", &["order_id>orders", "event_id>events"]),
        table("marks", "id int!,item_id int!,event_id int!", &["item_id>items", "event_id>events"]),
    ]);
    let lines = ["items", "events", "notes", "marks"].map(|name| chosen(&proposal, name));
    assert_eq!(lines, ["via=order_id", "via=item_id", "via=event_id", "via=item_id"]);
    let others = &entry(&proposal, "notes").others;
    assert!(others.len() == 1 && others[0].note == "order_id -> public.orders (shop_id); order_id can be NULL");
    assert_eq!(entry(&proposal, "marks").others.len(), 1);
}

#[test]
fn what_has_two_answers_or_none_is_left_open_with_its_possible_lines() {
    let mut moods = table("moods", "id int!,shop_id int!", &[]);
    moods.persistence = "u".to_owned();
    let proposal = with(vec![
        moods,
        table("pairs", "id int!,a int!,b int!", &["a>orders", "b>customers"]),
        table("below", "id int!,pair_id int!", &["pair_id>pairs"]),
        table("loose", "id int!,order_id int", &["order_id>orders"]),
        table("countries", "id int!", &[]),
        table("cities", "id int!,country_id int!", &["country_id>countries"]),
        table("schema_migrations", "version text!", &[]),
        table("traps", "id int!,order_id int!", &[]),
        table("of_moods", "id int!,mood_id int,order_id int", &["mood_id>moods", "order_id>orders"]),
        table("rivals", "id int!,mood_id int!,order_id int!", &["mood_id>moods", "order_id>orders"]),
    ]);
    assert_eq!(proposal.open().count(), 10);
    let says = |name: &str, part: &str| {
        let entry = entry(&proposal, name);
        assert!(entry.why.join("; ").contains(part), "{name}: {:?}", entry.why);
        assert_eq!(entry.others.last(), Some(&Choice::exclude()), "{name}");
        entry.others.len()
    };
    assert_eq!(says("pairs", "2 foreign keys"), 3);
    assert_eq!(says("below", "whose own tenants are not known"), 2);
    assert_eq!(says("loose", "can be NULL"), 3);
    assert_eq!(says("countries", "nothing in it"), 2);
    assert_eq!(says("schema_migrations", "bookkeeping"), 1);
    assert_eq!(says("traps", "\"order_id\" may"), 1);
    assert_eq!(says("moods", "unlogged"), 1);
    assert_eq!(says("of_moods", "can be NULL"), 4);
    assert_eq!(says("rivals", "cannot be followed as it is"), 3);
}

#[test]
fn tables_that_tenants_refer_to_and_cycles_come_to_an_end() {
    let proposal = with(vec![
        table("people", "id int!", &[]),
        table("members", "id int!,shop_id int!,person_id int!", &["person_id>people"]),
        table("left_side", "id int!,right_id int!,order_id int!", &["right_id>right_side", "order_id>orders"]),
        table("right_side", "id int!,left_id int!,parent_id int", &["left_id>left_side", "parent_id>right_side"]),
    ]);
    let people = entry(&proposal, "people");
    assert_eq!(people.chosen, Chosen::Open, "whose rows they are only a person knows");
    assert!(people.others[0].policy.reference && people.why[0].contains("rows of public.members refer to it"));
    assert_eq!(["left_side", "right_side"].map(|name| chosen(&proposal, name)), ["via=order_id", "via=left_id"]);
    assert!(entry(&proposal, "left_side").others.is_empty());
}

#[test]
fn names_are_spelled_so_that_the_configuration_finds_the_table() {
    let mut elsewhere = table("orders", "id int!,shop_id int!", &[]);
    elsewhere.name = TableName::new("billing", "orders");
    let mut dotted = table("billing.orders", "id int!,ShopId int!", &[]);
    dotted.name = TableName::new("x", "billing.orders");
    let proposal = with(vec![elsewhere, dotted, table("a.b", "id int!,ShopId int!", &[])]);
    let spelled = |schema: &str, name: &str| {
        let table = TableName::new(schema, name);
        proposal.entries.iter().find(|entry| entry.table == table).unwrap().spelled.clone()
    };
    assert_eq!(spelled("public", "customers"), "customers");
    assert_eq!(spelled("public", "orders"), "public.orders");
    assert_eq!(spelled("billing", "orders"), "billing.orders");
    assert_eq!(spelled("public", "a.b"), "public.a.b");
}

#[test]
fn a_table_that_no_line_can_name_is_left_open_without_one() {
    let proposal = with(vec![
        table("${HOME}", "id int!,order_id int!", &["order_id>orders"]),
        table("usual ${HOME}", "id int!,shop_id int!", &[]),
    ]);
    let open = entry(&proposal, "${HOME}");
    assert!(open.chosen == Chosen::Open && open.others.is_empty() && open.why[0].contains("rename it"));
    assert_eq!(chosen(&proposal, "usual ${HOME}"), "usual");
}

#[test]
fn a_key_that_may_be_null_is_named_with_its_other_line() {
    let proposal = with(vec![table("drafts", "id int!,shop_id int", &[])]);
    let drafts = entry(&proposal, "drafts");
    assert_eq!((&drafts.chosen, drafts.nullable.as_slice()), (&Chosen::Usual, &["shop_id".to_owned()][..]));
    assert_eq!(drafts.others[0].policy.null_tenant, NullTenant::NotMoving);
}
