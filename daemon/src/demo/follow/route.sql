SELECT isolation, database, coalesce(schema, 'public') FROM carveout.tenant_routes WHERE tenant = $1
