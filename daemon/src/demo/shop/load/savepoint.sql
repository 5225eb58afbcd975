-- Half of a transaction happens: savepoints rolled back to, released, and an id taken by one tenant before and by another after.
\set tenant random(0, :tenants - 1)
\set other random(0, :tenants - 1)
\set number random(1, 100000)
BEGIN;
-- The customer first: a second update of an order in one transaction checks its foreign key again.
SELECT coalesce((
    SELECT id FROM customers
    WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid
      AND id >= (SELECT gen_random_uuid())
    ORDER BY id LIMIT 1 FOR KEY SHARE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS customer \gset
SELECT coalesce((
    SELECT id FROM orders WHERE customer_id = ':customer' LIMIT 1 FOR UPDATE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS order \gset
UPDATE orders SET status = 'held' WHERE id = ':order';
SAVEPOINT a;
DELETE FROM order_item_events WHERE order_item_id IN (SELECT id FROM order_items WHERE order_id = ':order');
DELETE FROM order_items WHERE order_id = ':order';
SELECT gen_random_uuid() AS cart \gset
INSERT INTO shopping_carts (id, storefront_id, note) VALUES (':cart', ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid, 'never');
INSERT INTO cart_items (cart_id, sku, quantity)
SELECT ':cart', 'SKU-' || (:number + i) % 1000, i FROM generate_series(1, 2) i;
ROLLBACK TO SAVEPOINT a;
SAVEPOINT b;
UPDATE orders SET details = details || jsonb_build_object('held', :number) WHERE id = ':order';
SAVEPOINT c;
INSERT INTO shopping_carts (id, storefront_id, note) VALUES (':cart', ('550e8400-e29b-41d4-a716-44665544' || lpad(:other::text, 4, '0'))::uuid, 'saved');
INSERT INTO cart_items (cart_id, sku, quantity)
SELECT ':cart', 'SKU-' || (:number + i) % 1000, i FROM generate_series(1, 3) i;
RELEASE SAVEPOINT c;
SAVEPOINT d;
UPDATE orders SET status = 'lost' WHERE id = ':order';
ROLLBACK TO SAVEPOINT d;
RELEASE SAVEPOINT b;
END;
