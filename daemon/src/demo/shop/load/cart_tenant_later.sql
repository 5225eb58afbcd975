-- A cart goes in one transaction and comes again with the same ids for another tenant in the next.
\set tenant random(0, :tenants - 1)
\set other random(0, :tenants - 1)
BEGIN;
SELECT coalesce((
    SELECT id FROM shopping_carts
    WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid
      AND id >= (SELECT gen_random_uuid())
    ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS cart \gset
SELECT coalesce(jsonb_agg(i), jsonb_build_array()) AS items FROM cart_items i WHERE cart_id = ':cart' \gset
DELETE FROM shopping_carts WHERE id = ':cart';
END;
BEGIN;
SELECT coalesce((
    SELECT id FROM customers
    WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:other::text, 4, '0'))::uuid
      AND id >= (SELECT gen_random_uuid())
    ORDER BY id LIMIT 1 FOR KEY SHARE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS customer \gset
INSERT INTO shopping_carts (id, storefront_id, customer_id, note)
SELECT ':cart', ('550e8400-e29b-41d4-a716-44665544' || lpad(:other::text, 4, '0'))::uuid, nullif(':customer', '00000000-0000-0000-0000-000000000000')::uuid, 'used again'
WHERE ':cart' <> '00000000-0000-0000-0000-000000000000';
INSERT INTO cart_items SELECT * FROM jsonb_populate_recordset(NULL::cart_items, ':items');
INSERT INTO cart_views (cart_id, seen_at, agent)
SELECT id, clock_timestamp(), 'browser ' || v FROM shopping_carts, generate_series(1, 2) v WHERE id = ':cart';
END;
