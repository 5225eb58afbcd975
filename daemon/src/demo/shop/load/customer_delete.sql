-- A customer goes: its orders first, the rest by cascade; unless the tenant has 5 % fewer than it began with.
\set tenant random(0, :tenants - 1)
BEGIN;
SELECT coalesce((
    SELECT id FROM customers
    WHERE id = (
        SELECT id FROM customers
        WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid
        ORDER BY id
        OFFSET floor(random() * (SELECT count(*) FROM customers WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid)) LIMIT 1)
      AND (SELECT count(*) FROM customers WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid)
          > coalesce((SELECT (settings->>'customers')::numeric FROM storefronts WHERE id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid) * 0.95, 0)
    FOR UPDATE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS customer \gset
DELETE FROM orders WHERE customer_id = ':customer';
DELETE FROM customers WHERE id = ':customer';
END;
