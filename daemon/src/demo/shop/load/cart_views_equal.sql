-- Equal rows without a key: three come, one of them goes in the same transaction, another in the next.
\set tenant random(0, :tenants - 1)
\set number random(1, 100000)
BEGIN;
SELECT coalesce((
    SELECT id FROM shopping_carts
    WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid
      AND id >= (SELECT gen_random_uuid())
    ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS cart \gset
INSERT INTO cart_views (cart_id, seen_at, agent)
SELECT id, now(), 'robot' FROM shopping_carts, generate_series(1, 3) WHERE id = ':cart';
DELETE FROM cart_views
WHERE ctid = (SELECT ctid FROM cart_views WHERE cart_id = ':cart' AND agent = 'robot' LIMIT 1);
END;
BEGIN;
SELECT coalesce((SELECT id FROM shopping_carts WHERE id = ':cart' FOR UPDATE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS cart \gset
DELETE FROM cart_views
WHERE ctid = (SELECT ctid FROM cart_views WHERE cart_id = ':cart' AND agent = 'robot' LIMIT 1);
DELETE FROM cart_views
WHERE ctid IN (SELECT ctid FROM cart_views WHERE cart_id = ':cart' ORDER BY seen_at DESC OFFSET 4);
END;
