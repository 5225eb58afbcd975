-- A new customer with two addresses and a cart, unless the tenant has 5 % more than it began with.
\set tenant random(0, :tenants - 1)
\set number random(1, 100000)
BEGIN;
SELECT gen_random_uuid() AS customer \gset
INSERT INTO customers (id, storefront_id, email, name, profile)
SELECT id, ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid, id || '@example.com', 'Customer ' || :number,
       jsonb_build_object('number', :number, 'newsletter', true)
           || CASE WHEN id < '10000000-0000-0000-0000-000000000000'::uuid
              THEN jsonb_build_object('portrait', (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 280)))
              ELSE jsonb_build_object() END
FROM (SELECT ':customer'::uuid AS id OFFSET 0) fresh
WHERE (SELECT count(*) FROM customers WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid)
      < coalesce((SELECT (settings->>'customers')::numeric FROM storefronts WHERE id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid) * 1.05, 1e9);
INSERT INTO customer_addresses (customer_id, kind, street, city)
SELECT id, (array['billing', 'delivery'])[a], 'Street ' || :number + a, 'City ' || :number % 50
FROM customers, generate_series(1, 2) a
WHERE id = ':customer';
SELECT gen_random_uuid() AS cart \gset
INSERT INTO shopping_carts (id, storefront_id, customer_id)
SELECT ':cart', storefront_id, id FROM customers WHERE id = ':customer';
INSERT INTO cart_items (cart_id, sku, quantity)
SELECT id, 'SKU-' || (:number + i) % 1000, i FROM shopping_carts, generate_series(1, 3) i WHERE id = ':cart';
INSERT INTO cart_views (cart_id, seen_at, agent)
SELECT id, clock_timestamp(), 'browser ' || v FROM shopping_carts, generate_series(1, 2) v WHERE id = ':cart';
END;
