//! The shop: a database that many storefronts share. Its rows find their tenant by a key, or by one to three
//! foreign keys. The scripts are its application; the tests use the same.

/// Its tables, empty.
pub const SCHEMA: &str = include_str!("shop/schema.sql");
/// The column that names the tenant in most tables.
pub const KEY: &str = "storefront_id";
/// The other tables' policies.
pub const POLICIES: [(&str, &str); 6] = [
    ("storefronts", "{key: id}"),
    ("customer_addresses", "{via: customer_id}"),
    ("order_items", "{via: order_id}"),
    ("order_item_events", "{via: order_item_id}"),
    ("cart_items", "{via: cart_id}"),
    ("cart_views", "{via: cart_id}"),
];

/// Every table, with the condition that selects a tenant's rows; `{tenant}` stands for it.
pub const TABLES: [(&str, &str); 9] = [
    ("storefronts", "id = '{tenant}'"),
    ("customers", "storefront_id = '{tenant}'"),
    ("customer_addresses", "customer_id IN (SELECT id FROM customers WHERE storefront_id = '{tenant}')"),
    ("orders", "storefront_id = '{tenant}'"),
    ("order_items", "order_id IN (SELECT id FROM orders WHERE storefront_id = '{tenant}')"),
    (
        "order_item_events",
        "order_item_id IN (SELECT i.id FROM order_items i JOIN orders o ON o.id = i.order_id WHERE o.storefront_id = '{tenant}')",
    ),
    ("shopping_carts", "storefront_id = '{tenant}'"),
    ("cart_items", "cart_id IN (SELECT id FROM shopping_carts WHERE storefront_id = '{tenant}')"),
    ("cart_views", "cart_id IN (SELECT id FROM shopping_carts WHERE storefront_id = '{tenant}')"),
];

/// The application's transactions for pgbench, with their weights.
const LOAD: [(&str, u32); 22] = [
    (include_str!("shop/load/customer_new.sql"), 4),
    (include_str!("shop/load/customer_delete.sql"), 4),
    (include_str!("shop/load/customer_again.sql"), 3),
    (include_str!("shop/load/customer_portrait.sql"), 1),
    (include_str!("shop/load/customer_touch.sql"), 3),
    (include_str!("shop/load/address_change.sql"), 7),
    (include_str!("shop/load/address_move.sql"), 5),
    (include_str!("shop/load/order_new.sql"), 13),
    (include_str!("shop/load/order_passing.sql"), 2),
    (include_str!("shop/load/order_update.sql"), 15),
    (include_str!("shop/load/order_delete.sql"), 2),
    (include_str!("shop/load/order_items.sql"), 6),
    (include_str!("shop/load/cart_fill.sql"), 9),
    (include_str!("shop/load/cart_change.sql"), 7),
    (include_str!("shop/load/cart_delete.sql"), 2),
    (include_str!("shop/load/cart_views.sql"), 6),
    (include_str!("shop/load/cart_views_equal.sql"), 2),
    (include_str!("shop/load/cart_tenant_once.sql"), 3),
    (include_str!("shop/load/cart_tenant_later.sql"), 2),
    (include_str!("shop/load/rollback.sql"), 2),
    (include_str!("shop/load/savepoint.sql"), 1),
    (include_str!("shop/load/storefront_settings.sql"), 1),
];

/// The SQL that fills the tables.
pub fn data(tenants: u32, customers: u32) -> String {
    let text = include_str!("shop/data.sql");
    text.replace("{tenants}", &tenants.to_string()).replace("{customers}", &customers.to_string())
}

/// The name of a tenant, counted from 0.
pub fn tenant(number: u32) -> String {
    format!("550e8400-e29b-41d4-a716-44665544{number:04}")
}

/// The scripts of pgbench for so many tenants, with their weights.
pub fn load(tenants: u32) -> Vec<(String, u32)> {
    LOAD.iter().map(|(script, weight)| (format!("\\set tenants {tenants}\n{script}"), *weight)).collect()
}
