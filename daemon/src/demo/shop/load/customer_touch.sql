-- Other columns of a customer with a large profile change: the large value stays as it is.
\set tenant random(0, :tenants - 1)
\set number random(1, 100000)
BEGIN;
SELECT coalesce((
    SELECT id FROM customers
    WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid
      AND id >= (SELECT overlay(gen_random_uuid()::text PLACING '0' FROM 1 FOR 1)::uuid)
      AND id < '10000000-0000-0000-0000-000000000000'
    ORDER BY id LIMIT 1 FOR NO KEY UPDATE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS customer \gset
UPDATE customers SET name = 'Customer ' || :number, updated_at = clock_timestamp() WHERE id = ':customer';
END;
