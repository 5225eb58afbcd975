-- What stands in the catalogs about the moved tables of a schema ($1) and what they need, line by line.
SELECT string_agg(line, E'\n' ORDER BY line COLLATE "C") FROM (
  SELECT format('constraint %s %s %s', k.conrelid::regclass, k.conname, pg_get_constraintdef(k.oid)) AS line
    FROM pg_constraint k JOIN pg_class c ON c.oid = k.conrelid
   WHERE c.relnamespace = $1::text::regnamespace AND c.relname IN ('Par ent', 'child') AND k.conname !~ 'country'
  UNION ALL SELECT 'index ' || pg_get_indexdef(i.indexrelid) FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid
   WHERE c.relnamespace = $1::text::regnamespace AND c.relname IN ('Par ent', 'child')
  UNION ALL SELECT 'trigger ' || pg_get_triggerdef(t.oid) FROM pg_trigger t JOIN pg_class c ON c.oid = t.tgrelid
   WHERE c.relnamespace = $1::text::regnamespace AND NOT t.tgisinternal
  UNION ALL SELECT format('view %s %s %s', c.oid::regclass, c.reloptions, pg_get_viewdef(c.oid)) FROM pg_class c
   WHERE c.relnamespace = $1::text::regnamespace AND c.relkind = 'v' AND c.relname IN ('Vi ew', 'on_view')
  UNION ALL SELECT format('policy %s %s %s %s %s', p.polname, p.polcmd, p.polpermissive, p.polroles::regrole[],
                          coalesce(pg_get_expr(p.polqual, p.polrelid), '') || coalesce(pg_get_expr(p.polwithcheck, p.polrelid), ''))
    FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid WHERE c.relnamespace = $1::text::regnamespace
  UNION ALL SELECT format('column %s.%s %s %s %s %s %s %s %s %s %s %s', c.relname, a.attname, format_type(a.atttypid, a.atttypmod),
                          a.attnotnull, a.attcollation::regcollation, pg_get_expr(d.adbin, d.adrelid), a.attstorage, a.attcompression,
                          a.attstattarget, a.attoptions, a.attidentity::text || a.attgenerated::text, col_description(c.oid, a.attnum))
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0
    LEFT JOIN pg_attrdef d ON (d.adrelid, d.adnum) = (c.oid, a.attnum)
   WHERE c.relnamespace = $1::text::regnamespace AND c.relname IN ('Par ent', 'child')
  UNION ALL SELECT format('table %s %s %s %s %s %s %s', c.relname, c.reloptions, t.reloptions, c.relrowsecurity, c.relforcerowsecurity,
                          pg_get_userbyid(c.relowner), obj_description(c.oid, 'pg_class'))
    FROM pg_class c LEFT JOIN pg_class t ON t.oid = c.reltoastrelid
   WHERE c.relnamespace = $1::text::regnamespace AND c.relname IN ('Par ent', 'child', 'Mail ix')
  UNION ALL SELECT format('grant %s %s %s %s', c.relname, a.grantee::regrole, a.privilege_type, a.is_grantable)
    FROM pg_class c, aclexplode(c.relacl) a
   WHERE c.relnamespace = $1::text::regnamespace AND c.relname IN ('Par ent', 'child') AND a.grantee <> c.relowner
  UNION ALL SELECT format('grant %s.%s %s %s', c.relname, t.attname, a.grantee::regrole, a.privilege_type)
    FROM pg_class c JOIN pg_attribute t ON t.attrelid = c.oid, aclexplode(t.attacl) a
   WHERE c.relnamespace = $1::text::regnamespace AND c.relname IN ('Par ent', 'child')
  UNION ALL SELECT format('sequence %s %s %s %s %s %s %s', c.relname, s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmax,
                          s.seqcache, s.seqcycle)
    FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid
   WHERE c.relnamespace = $1::text::regnamespace AND c.relname LIKE 'Par%'
  UNION ALL SELECT format('type %s %s %s', t.oid::regtype, t.typtype, obj_description(t.oid, 'pg_type'))
    FROM pg_type t WHERE t.typtype IN ('e', 'd', 'r', 'm') AND t.oid >= 16384 AND t.typname !~ 'carveout'
  UNION ALL SELECT format('label %s %s %s', enumtypid::regtype, enumlabel, row_number() OVER (PARTITION BY enumtypid ORDER BY enumsortorder))
    FROM pg_enum
  UNION ALL SELECT format('domain %s %s %s', contypid::regtype, conname, pg_get_constraintdef(oid)) FROM pg_constraint WHERE contypid <> 0 AND oid >= 16384
  UNION ALL SELECT format('composite %s %s %s %s', c.relname, a.attname, a.atttypid::regtype, a.attcollation::regcollation)
    FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid WHERE c.relkind = 'c' AND c.oid >= 16384
  UNION ALL SELECT 'function ' || pg_get_functiondef(oid) FROM pg_proc
   WHERE proname IN ('Even?', 'helper', 'Twice It', 'touch', 'of_row') AND oid >= 16384
  UNION ALL SELECT format('extension %s', extname) FROM pg_extension WHERE extname <> 'pgcrypto'
  UNION ALL SELECT format('collation %s %s', c.oid::regcollation, to_jsonb(c) ->> 'colliculocale') FROM pg_collation c WHERE oid >= 16384
  UNION ALL SELECT format('sequence %s %s %s', c.relname, s.seqstart, s.seqincrement)
    FROM pg_sequence s JOIN pg_class c ON c.oid = s.seqrelid WHERE c.relname = 'free Seq') lines
