-- A customer's cart gets two items, up to six; a customer without a cart gets one with three.
\set tenant random(0, :tenants - 1)
\set number random(1, 100000)
BEGIN;
SELECT coalesce((
    SELECT id FROM customers
    WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid
      AND id >= (SELECT gen_random_uuid())
    ORDER BY id LIMIT 1 FOR KEY SHARE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS customer \gset
INSERT INTO shopping_carts (storefront_id, customer_id, note)
SELECT ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid, ':customer', 'new'
WHERE ':customer' <> '00000000-0000-0000-0000-000000000000'
  AND NOT EXISTS (SELECT FROM shopping_carts WHERE customer_id = ':customer');
SELECT coalesce((
    SELECT id FROM shopping_carts WHERE customer_id = ':customer' LIMIT 1 FOR UPDATE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS cart \gset
INSERT INTO cart_items (cart_id, sku, quantity)
SELECT id, 'SKU-' || (:number + i) % 1000, i
FROM shopping_carts, generate_series(1, CASE note WHEN 'new' THEN 3 ELSE 2 END) i
WHERE id = ':cart' AND (SELECT count(*) FROM cart_items WHERE cart_id = ':cart') < 5;
UPDATE shopping_carts SET updated_at = clock_timestamp(), note = NULL WHERE id = ':cart';
END;
