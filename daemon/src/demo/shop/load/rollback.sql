-- Many changes that never happened.
\set tenant random(0, :tenants - 1)
\set number random(1, 100000)
BEGIN;
SELECT coalesce((
    SELECT id FROM orders
    WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid
      AND id >= (SELECT gen_random_uuid())
    ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS order \gset
DELETE FROM orders WHERE id = ':order';
SELECT gen_random_uuid() AS order, gen_random_uuid() AS customer \gset
INSERT INTO customers (id, storefront_id, email, name, profile)
SELECT id, ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid, id || '@example.com', 'Customer ' || :number,
       jsonb_build_object('number', :number, 'newsletter', true)
           || CASE WHEN id < '10000000-0000-0000-0000-000000000000'::uuid
              THEN jsonb_build_object('portrait', (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 280)))
              ELSE jsonb_build_object() END
FROM (SELECT ':customer'::uuid AS id OFFSET 0) fresh;
INSERT INTO customer_addresses (customer_id, kind, street, city)
SELECT id, (array['billing', 'delivery'])[a], 'Street ' || :number + a, 'City ' || :number % 50
FROM customers, generate_series(1, 2) a
WHERE id = ':customer';
WITH item AS (
    INSERT INTO order_items (order_id, sku, quantity, price)
    SELECT ':order'::uuid, 'SKU-' || (:number + i) % 1000, i, (:number % 20000 + i) / 100.0
    FROM generate_series(1, 3) i
    RETURNING id)
INSERT INTO order_item_events (order_item_id, kind, payload)
SELECT id, (array['picked', 'packed'])[e], jsonb_build_object('step', e, 'by', 'robot ' || :number % 7)
FROM item, generate_series(1, 2) e;
INSERT INTO orders (id, storefront_id, customer_id, status, total, details)
SELECT ':order', ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid, ':customer', 'placed', (:number % 50000) / 100.0,
       jsonb_build_object('channel', 'web', 'revision', 0);
SELECT coalesce((
    SELECT id FROM shopping_carts
    WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid
      AND id >= (SELECT gen_random_uuid())
    ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS cart \gset
DELETE FROM shopping_carts WHERE id = ':cart';
ROLLBACK;
