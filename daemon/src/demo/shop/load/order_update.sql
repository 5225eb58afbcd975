-- An order's status and details change.
\set tenant random(0, :tenants - 1)
\set number random(1, 100000)
BEGIN;
SELECT coalesce((
    SELECT id FROM orders
    WHERE storefront_id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid
      AND id >= (SELECT gen_random_uuid())
    ORDER BY id LIMIT 1 FOR UPDATE SKIP LOCKED), '00000000-0000-0000-0000-000000000000') AS order \gset
UPDATE orders
SET status = (array['placed', 'paid', 'shipped', 'closed'])[1 + :number % 4],
    details = details || jsonb_build_object('revision', coalesce((details->>'revision')::int, 0) + 1, 'note', 'note ' || :number)
WHERE id = ':order';
END;
