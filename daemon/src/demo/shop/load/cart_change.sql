-- A cart's items change, and two of more than two are removed.
\set tenant random(0, :tenants - 1)
\set number random(1, 100000)
BEGIN;
SELECT coalesce((
    SELECT id FROM shopping_carts
    WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid
      AND id >= (SELECT gen_random_uuid())
    ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS cart \gset
UPDATE cart_items SET quantity = 1 + (quantity + :number) % 9 WHERE cart_id = ':cart';
DELETE FROM cart_items
WHERE id IN (SELECT id FROM cart_items WHERE cart_id = ':cart' ORDER BY id OFFSET 2 LIMIT 2);
UPDATE shopping_carts SET updated_at = clock_timestamp(), note = 'changed ' || :number WHERE id = ':cart';
END;
