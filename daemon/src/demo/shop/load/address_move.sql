-- An address moves to another customer of the same tenant.
\set tenant random(0, :tenants - 1)
BEGIN;
SELECT coalesce((
    SELECT id FROM customer_addresses
    WHERE customer_id = (
        SELECT id FROM customers
        WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid
          AND id >= (SELECT gen_random_uuid())
        ORDER BY id LIMIT 1)
    LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS address \gset
SELECT coalesce((
    SELECT id FROM customers
    WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid
      AND id >= (SELECT gen_random_uuid())
    ORDER BY id LIMIT 1 FOR KEY SHARE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS customer \gset
UPDATE customer_addresses
SET customer_id = ':customer', updated_at = clock_timestamp()
WHERE id = ':address' AND ':customer' <> '00000000-0000-0000-0000-000000000000';
END;
