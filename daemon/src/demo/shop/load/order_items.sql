-- An order's items: quantities change, one gets an event and loses its oldest.
\set tenant random(0, :tenants - 1)
\set number random(1, 100000)
BEGIN;
SELECT coalesce((
    SELECT id FROM orders
    WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid
      AND id >= (SELECT gen_random_uuid())
    ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS order \gset
UPDATE order_items SET quantity = 1 + (quantity + :number) % 9 WHERE order_id = ':order' AND id % 2 = :number % 2;
INSERT INTO order_item_events (order_item_id, kind, payload)
SELECT id, 'checked', jsonb_build_object('by', 'robot ' || :number % 7)
FROM order_items WHERE order_id = ':order' ORDER BY id LIMIT 1;
DELETE FROM order_item_events
WHERE id = (
    SELECT min(id) FROM order_item_events
    WHERE order_item_id = (SELECT id FROM order_items WHERE order_id = ':order' ORDER BY id LIMIT 1)
    HAVING count(*) > 2);
UPDATE orders SET total = (SELECT sum(quantity * price) FROM order_items WHERE order_id = ':order') WHERE id = ':order';
END;
