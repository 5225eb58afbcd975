-- Fills {tenants} storefronts with {customers} customers each; a program puts the numbers in.

BEGIN;

-- A superuser loads without foreign key checks, which are half of the time; the rows are right by construction.
SELECT set_config('session_replication_role', 'replica', true) FROM pg_roles WHERE rolname = current_user AND rolsuper;

INSERT INTO storefronts (id, name, settings, created_at)
SELECT ('550e8400-e29b-41d4-a716-44665544' || lpad(t::text, 4, '0'))::uuid,
       'Storefront ' || t,
       jsonb_build_object('currency', (array['EUR', 'USD', 'GBP'])[1 + t % 3], 'customers', {customers}),
       timestamptz '2024-01-01 00:00:00+00' + t * interval '1 day'
FROM generate_series(0, {tenants} - 1) t;

-- One customer in sixteen (the ids that begin with 0) has a large profile, out of line.
INSERT INTO customers (id, storefront_id, email, name, profile, created_at, updated_at)
SELECT id,
       ('550e8400-e29b-41d4-a716-44665544' || lpad(t::text, 4, '0'))::uuid,
       'customer' || c || '@example.com',
       'Customer ' || c,
       jsonb_build_object('number', c, 'newsletter', c % 2 = 0)
           || CASE WHEN id < '10000000-0000-0000-0000-000000000000'::uuid
              THEN jsonb_build_object('portrait',
                  (SELECT string_agg(md5(c || ' ' || n), '') FROM generate_series(1, 280) n))
              ELSE jsonb_build_object() END,
       timestamptz '2024-01-01 00:00:00+00' + c * interval '1 hour',
       timestamptz '2024-01-01 00:00:00+00' + c * interval '1 hour'
FROM (SELECT t, c, md5('customer ' || t || ' ' || c)::uuid AS id
      FROM generate_series(0, {tenants} - 1) t, generate_series(1, {customers}) c OFFSET 0) customer;

INSERT INTO customer_addresses (id, customer_id, kind, street, city, updated_at)
SELECT md5('address ' || t || ' ' || c || ' ' || a)::uuid,
       md5('customer ' || t || ' ' || c)::uuid,
       (array['billing', 'delivery'])[a],
       'Street ' || (c * 7 + a) % 500,
       'City ' || (c * 3 + a) % 50,
       timestamptz '2024-01-01 00:00:00+00' + c * interval '1 hour'
FROM generate_series(0, {tenants} - 1) t, generate_series(1, {customers}) c, generate_series(1, 2) a;

-- One order in twelve is a guest's: no customer.
INSERT INTO orders (id, storefront_id, customer_id, status, total, details, placed_at)
SELECT md5('order ' || t || ' ' || c || ' ' || o)::uuid,
       ('550e8400-e29b-41d4-a716-44665544' || lpad(t::text, 4, '0'))::uuid,
       CASE WHEN (c * 3 + o) % 12 > 0 THEN md5('customer ' || t || ' ' || c)::uuid END,
       (array['placed', 'paid', 'shipped', 'closed'])[1 + (c + o) % 4],
       ((c * 37 + o * 11) % 50000) / 100.0,
       jsonb_build_object('channel', (array['web', 'app'])[1 + o % 2], 'gift', c % 10 = 0, 'revision', 0),
       timestamptz '2024-06-01 00:00:00+00' + (c * 3 + o) * interval '1 minute'
FROM generate_series(0, {tenants} - 1) t, generate_series(1, {customers}) c, generate_series(1, 3) o;

INSERT INTO order_items (order_id, sku, quantity, price)
SELECT md5('order ' || t || ' ' || c || ' ' || o)::uuid,
       'SKU-' || (c * 9 + o * 3 + i) % 1000,
       1 + i % 3,
       ((c * 13 + i * 7) % 20000) / 100.0
FROM generate_series(0, {tenants} - 1) t, generate_series(1, {customers}) c, generate_series(1, 3) o, generate_series(1, 3) i;

INSERT INTO order_item_events (order_item_id, kind, payload, at)
SELECT item.id, step.kind, step.payload, step.at
FROM order_items item,
     (SELECT (array['picked', 'packed'])[e] AS kind,
             jsonb_build_object('step', e, 'by', 'robot ' || e) AS payload,
             timestamptz '2024-06-02 00:00:00+00' + e * interval '1 minute' AS at
      FROM generate_series(1, 2) e OFFSET 0) step;

INSERT INTO shopping_carts (id, storefront_id, customer_id, updated_at, note)
SELECT md5('cart ' || t || ' ' || c)::uuid,
       ('550e8400-e29b-41d4-a716-44665544' || lpad(t::text, 4, '0'))::uuid,
       CASE WHEN c % 10 > 0 THEN md5('customer ' || t || ' ' || c)::uuid END,
       timestamptz '2024-07-01 00:00:00+00' + c * interval '1 minute',
       CASE WHEN c % 4 = 0 THEN 'call before delivery' END
FROM generate_series(0, {tenants} - 1) t, generate_series(1, {customers}) c;

INSERT INTO cart_items (id, cart_id, sku, quantity, added_at)
SELECT md5('cart item ' || t || ' ' || c || ' ' || i)::uuid,
       md5('cart ' || t || ' ' || c)::uuid,
       'SKU-' || (c * 5 + i) % 1000,
       i,
       timestamptz '2024-07-01 00:00:00+00' + c * interval '1 minute'
FROM generate_series(0, {tenants} - 1) t, generate_series(1, {customers}) c, generate_series(1, 3) i;

-- In every fifth cart the two views are equal rows.
INSERT INTO cart_views (cart_id, seen_at, agent)
SELECT md5('cart ' || t || ' ' || c)::uuid,
       timestamptz '2024-07-02 00:00:00+00' + CASE WHEN c % 5 = 0 THEN 0 ELSE v END * interval '1 minute',
       'browser ' || c % 3
FROM generate_series(0, {tenants} - 1) t, generate_series(1, {customers}) c, generate_series(1, 2) v;

SET LOCAL default_statistics_target = 10;
ANALYZE storefronts, customers, customer_addresses, orders, order_items, order_item_events,
        shopping_carts, cart_items, cart_views;
COMMIT;
