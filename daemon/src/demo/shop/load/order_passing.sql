-- An order with items is made and deleted within one transaction.
\set tenant random(0, :tenants - 1)
\set number random(1, 100000)
BEGIN;
SELECT gen_random_uuid() AS order \gset
INSERT INTO orders (id, storefront_id, customer_id, status, total, details)
SELECT ':order', ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid, NULL, 'placed', (:number % 50000) / 100.0,
       jsonb_build_object('channel', 'web', 'revision', 0);
WITH item AS (
    INSERT INTO order_items (order_id, sku, quantity, price)
    SELECT ':order'::uuid, 'SKU-' || (:number + i) % 1000, i, (:number % 20000 + i) / 100.0
    FROM generate_series(1, 2) i
    RETURNING id)
INSERT INTO order_item_events (order_item_id, kind, payload)
SELECT id, (array['picked', 'packed'])[e], jsonb_build_object('step', e, 'by', 'robot ' || :number % 7)
FROM item, generate_series(1, 2) e;
UPDATE orders SET status = 'cancelled' WHERE id = ':order';
DELETE FROM orders WHERE id = ':order';
END;
