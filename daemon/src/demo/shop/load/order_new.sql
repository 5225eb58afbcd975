-- A new order whose items and events are there before the order itself (deferred foreign key); one in fifty is a guest's.
\set tenant random(0, :tenants - 1)
\set number random(1, 100000)
BEGIN;
SELECT coalesce((
    SELECT id FROM customers
    WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid
      AND id >= (SELECT gen_random_uuid())
    ORDER BY id LIMIT 1 FOR KEY SHARE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS customer \gset
SELECT gen_random_uuid() AS order \gset
WITH item AS (
    INSERT INTO order_items (order_id, sku, quantity, price)
    SELECT ':order'::uuid, 'SKU-' || (:number + i) % 1000, i, (:number % 20000 + i) / 100.0
    FROM generate_series(1, 3) i
    WHERE ':customer' <> '00000000-0000-0000-0000-000000000000'
    RETURNING id)
INSERT INTO order_item_events (order_item_id, kind, payload)
SELECT id, (array['picked', 'packed'])[e], jsonb_build_object('step', e, 'by', 'robot ' || :number % 7)
FROM item, generate_series(1, 2) e;
INSERT INTO orders (id, storefront_id, customer_id, status, total, details)
SELECT ':order', ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid, CASE WHEN :number % 50 > 0 THEN ':customer'::uuid END, 'placed', (:number % 50000) / 100.0,
       jsonb_build_object('channel', 'web', 'revision', 0)
WHERE ':customer' <> '00000000-0000-0000-0000-000000000000';
END;
