-- A cart goes, items and views by cascade.
\set tenant random(0, :tenants - 1)
BEGIN;
SELECT coalesce((
    SELECT id FROM shopping_carts
    WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid
      AND id >= (SELECT gen_random_uuid())
    ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS cart \gset
DELETE FROM shopping_carts WHERE id = ':cart';
END;
