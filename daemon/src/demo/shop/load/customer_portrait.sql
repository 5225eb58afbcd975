-- The large, out-of-line value of a profile is replaced.
\set tenant random(0, :tenants - 1)
BEGIN;
SELECT coalesce((
    SELECT id FROM customers
    WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid
      AND id >= (SELECT overlay(gen_random_uuid()::text PLACING '0' FROM 1 FOR 1)::uuid)
      AND id < '10000000-0000-0000-0000-000000000000'
    ORDER BY id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS customer \gset
UPDATE customers
SET updated_at = clock_timestamp(),
    profile = profile || jsonb_build_object('portrait', (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 280)))
WHERE id = ':customer';
END;
