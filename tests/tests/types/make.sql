-- Types of every kind that people make; names that have to be quoted, or that are words of SQL.
CREATE SCHEMA "Types é";
CREATE TYPE "Types é"."Mo""od" AS ENUM ('sad', 'HAPPY', 'it''s "so-so"', 'ü,{}\');
CREATE DOMAIN "Types é"."select" AS integer CHECK (VALUE > -1000);
CREATE DOMAIN "Types é"."over" AS "Types é"."select" CHECK (VALUE < 1000);
CREATE DOMAIN "Types é".ints AS integer[];
CREATE TYPE "Types é".inner_pair AS (n integer, t text, m "Types é"."Mo""od");
CREATE TYPE "Types é"."outer" AS (p "Types é".inner_pair, l "Types é".inner_pair[], d "Types é"."over", "user" text[]);
CREATE TYPE "Types é".floatrange AS RANGE (subtype = float8, multirange_type_name = "Types é"."float""ranges");
-- These travel as text.
CREATE DOMAIN "Types é".wrapped AS regclass;
CREATE TYPE "Types é".rights AS (r regclass, a aclitem[], t text);
CREATE TYPE "Types é".regrange AS RANGE (subtype = regclass);

-- A family is a type with its extreme values, as SQL expressions; `as_text`: it travels as text.
CREATE TEMP TABLE family (as_text boolean, name text, type text, vals text[]);
INSERT INTO family VALUES
(false, 'smallint', 'smallint', ARRAY['-32768', '0', '32767']),
(false, 'integer', 'integer', ARRAY['-2147483648', '0', '2147483647']),
(false, 'bigint', 'bigint', ARRAY['-9223372036854775808', '0', '9223372036854775807']),
(false, 'numeric', 'numeric', ARRAY['''NaN''', '''Infinity''', '''-Infinity''', 'repeat(''9'', 131072)::numeric',
   '(''0.'' || repeat(''1'', 16383))::numeric', '0.00', '1.10', '-0.0000000000000000000000001', '1e1000']),
(false, 'scaled', 'numeric(30,10)', ARRAY['''NaN''', '-99999999999999999999.9999999999', '0.1']),
(false, 'float4', 'real', ARRAY['''NaN''', '''Infinity''', '''-Infinity''', '''-0''', '1e-45', '3.4028235e38', '0.1', '16777217']),
(false, 'float8', 'double precision', ARRAY['''NaN''', '''Infinity''', '''-Infinity''', '''-0''', '5e-324', '1.7976931348623157e308',
   '0.30000000000000004', '2.2250738585072011e-308']),
(false, 'money', 'money', ARRAY['''-92233720368547758.08''', '0::money', '''92233720368547758.07''', '''1,234.56''']),
(false, 'char', 'char(5)', ARRAY['''''', '''a''', '''ab   ''', '''äöüß€''']),
(false, 'varchar', 'varchar(20)', ARRAY['''''', ''' ''', 'E''tab\t nl\n cr\r bs\\''', '''\N''', '''\.''', '''{NULL,"}''']),
(false, 'text', 'text', ARRAY['''''', '''NULL''', '''\N''', 'E''\\.\n\\.''', 'E''\u202ertl \U0001F600 \b\f\v\x7f''', '''$1 % "q" ''''s'''' {}''',
   'repeat(''large \ "text" '', 100000)']),
(false, 'name', 'name', ARRAY['''''', 'repeat(''é'', 31)', '''A "b"''']),
(false, 'byte', '"char"', ARRAY['''''', '''a''', '''"''', '''\''', '''{''', 'E''\n''']),
(false, 'bytea', 'bytea', ARRAY['''''', '''\x00''', '''\xdeadbeef00ff5c27220a''', 'decode(repeat(''00ff5c27'', 100000), ''hex'')']),
(false, 'boolean', 'boolean', ARRAY['true', 'false']),
(false, 'date', 'date', ARRAY['''infinity''', '''-infinity''', '''4714-11-24 BC''', '''5874897-12-31''', '''0044-03-15 BC''', '''2024-02-29''']),
(false, 'time', 'time', ARRAY['''24:00''', '''00:00''', '''23:59:59.999999''', '''00:00:00.000001''']),
(false, 'timetz', 'timetz', ARRAY['''24:00:00+15:59:59''', '''00:00:00-15:59:59''', '''12:30:00.5+05:30''']),
(false, 'timestamp', 'timestamp', ARRAY['''infinity''', '''-infinity''', '''4714-11-24 00:00:00 BC''', '''294276-12-31 23:59:59.999999''',
   '''0044-03-15 12:00 BC''', '''1999-12-31 23:59:60''']),
(false, 'timestamptz', 'timestamptz', ARRAY['''infinity''', '''-infinity''', '''4714-11-24 00:00:00+00 BC''', '''294276-12-31 23:59:59.999999+00''',
   '''2026-03-29 01:30:00.000001+01''', '''1883-11-18 12:03:57-05''']),
(false, 'interval', 'interval', ARRAY['''178000000 years''', '''-178000000 years''', '''1 mon -1 day 00:00:00.000001''', '''-3 years 25:00:00''', '''0''',
   '''-2147483648 days -2562047788:00:54.775807''']),
(false, 'enum', '"Types é"."Mo""od"', ARRAY['''sad''', '''it''''s "so-so"''', '''ü,{}\''']),
(false, 'domain', '"Types é"."over"', ARRAY['-999', '0', '999']),
(false, 'ints', '"Types é".ints', ARRAY['''{}''', '''{1,NULL}''', '''[5:6][-1:0]={{1,2},{3,4}}''']),
(false, 'composite', '"Types é"."outer"', ARRAY['ROW(NULL, NULL, NULL, NULL)', 'ROW(ROW(1, ''a "q" \ , ) ('', ''sad''), ARRAY[ROW(NULL, '''', NULL), NULL]::"Types é".inner_pair[], 7, ''{NULL,"NULL","",a}'')',
   'ROW(ROW(NULL, NULL, NULL), ''{}'', -1, ''{{a,b},{c,NULL}}'')']),
(false, 'int array', 'integer[]', ARRAY['''{}''', '''{1,NULL,3}''', '''[0:2]={7,8,9}''', '''{{1,2},{NULL,4}}''', '''[-3:-2][4:4]={{1},{2}}''']),
(false, 'text array', 'text[]', ARRAY['''{}''', '''{NULL,"NULL","",null}''', 'ARRAY[E''a"b\\c,d{e}\n'', '' '']', 'ARRAY[repeat(''x'', 300000)]']),
(false, 'enum array', '"Types é"."Mo""od"[]', ARRAY['''{sad,NULL}''', 'ARRAY[''it''''s "so-so"'', ''ü,{}\'']::"Types é"."Mo""od"[]']),
(false, 'composites', '"Types é".inner_pair[]', ARRAY['''{}''', 'ARRAY[ROW(1, ''"'', ''sad''), ROW(NULL, NULL, NULL), NULL]::"Types é".inner_pair[]']),
(false, 'domains', '"Types é"."over"[]', ARRAY['''{1,NULL,-999}''', '''{}''']),
(false, 'range', 'int8range', ARRAY['''empty''', '''(,)''', '''[1,5)''', '''(,-9223372036854775807)''']),
(false, 'tstzrange', 'tstzrange', ARRAY['''[infinity,infinity]''', '''["0044-03-15 12:00:00+00 BC",)''', '''empty''']),
(false, 'numrange', 'numrange', ARRAY['''[1.10,NaN]''', '''(,0.00]''']),
(false, 'multirange', 'int4multirange', ARRAY['''{}''', '''{[1,3),[7,)}''', '''{(,)}''']),
(false, 'made range', '"Types é".floatrange', ARRAY['''[-0,NaN]''', '''empty''', '''(5e-324,)''']),
(false, 'made ranges', '"Types é"."float""ranges"', ARRAY['''{[1,2],(5,NaN)}''', '''{}''']),
(false, 'ranges', '"Types é".floatrange[]', ARRAY['''{"[1,2)",empty,NULL}''']),
(false, 'bit', 'bit(5)', ARRAY['B''00000''', 'B''10101''']),
(false, 'varbit', 'varbit', ARRAY['B''''', 'B''1''', 'repeat(''10110'', 50000)::varbit']),
(false, 'inet', 'inet', ARRAY['''0.0.0.0/0''', '''10.1.2.3/8''', '''::''', '''::ffff:1.2.3.4''', '''fe80::1/64''']),
(false, 'cidr', 'cidr', ARRAY['''10.0.0.0/8''', '''::/0''', '''192.168.1.1/32''']),
(false, 'macaddr', 'macaddr', ARRAY['''00:00:00:00:00:00''', '''ff:ff:ff:ff:ff:ff''']),
(false, 'macaddr8', 'macaddr8', ARRAY['''00:00:00:00:00:00:00:00''', '''08:00:2b:01:02:03:04:05''']),
(false, 'uuid', 'uuid', ARRAY['''00000000-0000-0000-0000-000000000000''', '''ffffffff-ffff-ffff-ffff-ffffffffffff''']),
(false, 'json', 'json', ARRAY['''null''', '''{"b" : 1,  "a":[1.10, "\u00fc\\\"\n"], "b":2}''', '(''["'' || repeat(''x\\'', 400000) || ''"]'')::json']),
(false, 'jsonb', 'jsonb', ARRAY['''null''', '''{"b": 1, "aa": [1.10, null, 1e100, "ü\\\"\n"]}''', '(''["'' || repeat(''x\\'', 400000) || ''", 1]'')::jsonb']),
(false, 'tsvector', 'tsvector', ARRAY['''''', '''a:1A,2B "b c":3 it''''s''', 'array_to_tsvector(ARRAY(SELECT ''w'' || n FROM generate_series(1, 20000) n))']),
(true, 'tsquery', 'tsquery', ARRAY['''''', '''a & !b:*A <2> (c | ''''d "e''''''''f'''')''']),
(false, 'point', 'point', ARRAY['''(NaN,-0)''', '''(Infinity,5e-324)''', '''(0.1,0.30000000000000004)''']),
(false, 'line', 'line', ARRAY['''{1,-1,0}''', '''{0.1,2,1e300}''']),
(false, 'lseg', 'lseg', ARRAY['''[(0,0),(1e-300,1)]''']),
(false, 'box', 'box', ARRAY['''(1,1),(0,0)''', '''(Infinity,2),(-Infinity,-0)''']),
(false, 'boxes', 'box[]', ARRAY['''{(1,1),(0,0);(3,3),(2,2)}''']),
(false, 'path', 'path', ARRAY['''[(0,0),(1,1)]''', '''((0,0),(1,1),(0.1,2))''']),
(false, 'polygon', 'polygon', ARRAY['''((0,0),(1,1),(0,1))''']),
(false, 'circle', 'circle', ARRAY['''<(0,0),0>''', '''<(1,2),Infinity>''']),
(false, 'hstore', 'hstore', ARRAY['''''', '''"a b"=>NULL, "q\"\\"=>"x, =>", ""=>""''']),
(false, 'citext', 'citext', ARRAY['''ÀbC''', '''''']),
(false, 'xml', 'xml', ARRAY['''<a b="&amp;">ü</a>text''', '''''', '''<?xml version="1.0"?><!DOCTYPE r><r/>''']),
(false, 'pg_lsn', 'pg_lsn', ARRAY['''0/0''', '''FFFFFFFF/FFFFFFFF''']),
(false, 'xid', 'xid', ARRAY['''0''', '''4294967295''']),
(false, 'xid8', 'xid8', ARRAY['''0''', '''18446744073709551615''']),
(false, 'cid', 'cid', ARRAY['''0''', '''4294967295''']),
(false, 'tid', 'tid', ARRAY['''(0,0)''', '''(4294967295,65535)''']),
(false, 'txid', 'txid_snapshot', ARRAY['''10:20:10,14,15''', '''1:1:''']),
(false, 'snapshot', 'pg_snapshot', ARRAY['''10:20:10,14,15''', '''1:1:''']),
(false, 'oid', 'oid', ARRAY['0', '4294967295', '''pg_class''::regclass::oid']),
(true, 'oidvector', 'oidvector', ARRAY['''''', '''1 4294967295''']),
(true, 'int2vector', 'int2vector', ARRAY['''''', '''-32768 32767''']),
(false, 'jsonpath', 'jsonpath', ARRAY['''$''', '''strict $."a b"[*] ? (@.x > 1.10 && @ like_regex "^\\d")''']),
(true, 'regclass', 'regclass', ARRAY['''pg_class''', '''-''', '''4294967295''', '''information_schema.tables''']),
(true, 'regproc', 'regproc', ARRAY['''now''', '''-''', '''4294967295''']),
(true, 'regprocedure', 'regprocedure', ARRAY['''lower(text)''', '''abs(integer)''', '''-''']),
(true, 'regoper', 'regoper', ARRAY['''||/''', '''0''']),
(true, 'regoperator', 'regoperator', ARRAY['''+(integer,integer)''', '''-(NONE,integer)''', '''0''']),
(true, 'regtype', 'regtype', ARRAY['''integer''', '''"char"''', '''timestamp with time zone''', '''"Types é"."Mo""od"''', '''integer[]''']),
(true, 'regrole', 'regrole', ARRAY['''postgres''', '''pg_read_all_data''', '''-''']),
(true, 'regnamespace', 'regnamespace', ARRAY['''pg_catalog''', '''"Types é"''', '''-''']),
(true, 'regconfig', 'regconfig', ARRAY['''simple''', '''english''']),
(true, 'regdictionary', 'regdictionary', ARRAY['''simple''']),
(true, 'regcollation', 'regcollation', ARRAY['''"C"''', '''"default"''']),
(true, 'regclasses', 'regclass[]', ARRAY['''{pg_class,NULL,-}''', '''{}''', '''[2:2][3:3]={{pg_type}}''']),
(true, 'wrapped', '"Types é".wrapped', ARRAY['''pg_class''']),
(true, 'wrapped s', '"Types é".wrapped[]', ARRAY['''{pg_class,NULL}''']),
(true, 'aclitem', 'aclitem', ARRAY['''postgres=arwdDxt/postgres''', '''=r*/postgres''']),
(true, 'aclitems', 'aclitem[]', ARRAY['''{}''', '''{postgres=arwdDxt/postgres,=r/postgres,NULL}''']),
(true, 'rights', '"Types é".rights', ARRAY['ROW(''pg_type'', ''{=r/postgres}'', ''a,"b'')', 'ROW(NULL, NULL, NULL)']),
(true, 'regrange', '"Types é".regrange', ARRAY['''empty''', '''[pg_type,pg_class]''']);
-- What the server was built without is left out.
DELETE FROM family WHERE name IN ('hstore', 'citext', 'xml') AND to_regtype(type) IS NULL;
-- What 14 does not read.
UPDATE family SET vals = array_remove(vals, '''-2147483648 days -2562047788:00:54.775807''')
 WHERE current_setting('server_version_num')::integer < 150000;

-- Runs a template for every family: {t} and {f} are its tables, with a key and without; {k}, {i}, {v} the columns;
-- {n} how many values it has, {value} the one with the number n.
CREATE FUNCTION pg_temp.each(texts boolean, template text) RETURNS void LANGUAGE plpgsql AS $$
DECLARE r record; picked text;
BEGIN
  FOR r IN SELECT * FROM family WHERE texts OR NOT as_text LOOP
    SELECT 'CASE n % {n} ' || string_agg(format('WHEN %s THEN (%s)::%s', place - 1, expression, r.type), ' ') || ' END'
      INTO picked FROM unnest(r.vals) WITH ORDINALITY v(expression, place);
    EXECUTE replace(replace(replace(replace(replace(replace(replace(replace(template, '{value}', picked), '{t}', pg_temp.named(r.name, 't')),
      '{f}', pg_temp.named(r.name, 'f')), '{k}', '"Te""nant é"'), '{i}', '"order"'), '{v}', pg_temp.column_name()),
      '{type}', r.type), '{n}', cardinality(r.vals)::text);
  END LOOP;
END $$;
-- Names of 63 bytes.
CREATE FUNCTION pg_temp.named(name text, kind text) RETURNS text LANGUAGE sql AS
  $$ SELECT '"Types é".' || quote_ident(rpad('S"elect ''ü'' ' || kind || ' ' || name, 62, '_')) $$;
CREATE FUNCTION pg_temp.column_name() RETURNS text LANGUAGE sql AS $$ SELECT quote_ident(rpad('Va"lue\ é $1 ', 62, '%')) $$;
