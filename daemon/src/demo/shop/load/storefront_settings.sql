-- A storefront's settings change.
\set tenant random(0, :tenants - 1)
\set number random(1, 100000)
BEGIN;
UPDATE storefronts SET settings = settings || jsonb_build_object('theme', :number) WHERE id = ('550e8400-e29b-41d4-a716-44665544' || lpad(:tenant::text, 4, '0'))::uuid;
END;
