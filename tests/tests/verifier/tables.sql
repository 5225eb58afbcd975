-- Three tenants of ninety items each, with every value that is nearly another one: empty and NULL, zero and minus zero, 1.0 and 1.00.
CREATE TYPE mood AS ENUM ('sad', 'fair', 'happy');
CREATE DOMAIN price AS numeric CHECK (VALUE > -1000000);
CREATE TYPE spot AS (street text, number integer, at double precision);
CREATE TABLE countries (code char(2) PRIMARY KEY, name text, rate numeric);
INSERT INTO countries SELECT chr(65 + n) || chr(66 + n), CASE n % 3 WHEN 0 THEN '' WHEN 1 THEN NULL ELSE 'country ' || n END, n * 1.10
  FROM generate_series(0, 11) n;
CREATE TABLE items (
  id integer PRIMARY KEY, bid integer NOT NULL, country char(2) REFERENCES countries, raw bytea, word text, v varchar(60), c char(8), n numeric,
  f4 real, f8 double precision, jb jsonb, j json, ta text[], fa double precision[], at timestamptz, iv interval, u uuid, m mood, p price,
  s spot, r numrange, b boolean, bits bit varying, big text, bigraw bytea, twice integer GENERATED ALWAYS AS (id * 2) STORED, UNIQUE (bid, id));
ALTER TABLE items ALTER big SET STORAGE EXTERNAL, ALTER bigraw SET STORAGE EXTERNAL;
INSERT INTO items SELECT n, 1 + n % 3, chr(65 + k % 12) || chr(66 + k % 12),
  CASE k % 6 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE decode(md5(n::text), 'hex') END,
  CASE k % 5 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN 'a blank at the end ' ELSE 'text ' || n || ' é"\,()' END,
  CASE k % 4 WHEN 0 THEN NULL WHEN 1 THEN '' WHEN 2 THEN ' ' ELSE 'varchar ' || n END,
  CASE k % 4 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE 'c' || n END,
  CASE k % 6 WHEN 0 THEN NULL WHEN 1 THEN 1.0 WHEN 2 THEN 1.00 WHEN 3 THEN 0 WHEN 4 THEN 'NaN' ELSE n * 1.10 END,
  CASE k % 5 WHEN 0 THEN NULL WHEN 1 THEN 0 WHEN 2 THEN '-0' WHEN 3 THEN 'NaN' ELSE n / 7.0 END,
  CASE k % 7 WHEN 0 THEN NULL WHEN 1 THEN 0 WHEN 2 THEN '-0' WHEN 3 THEN '-Infinity' ELSE n / 7.0 END,
  CASE k % 6 WHEN 0 THEN NULL WHEN 1 THEN 'null' WHEN 2 THEN '1.10' WHEN 3 THEN '"text"' WHEN 4 THEN '{"a": [1, null], "b": ""}' ELSE '[]' END::jsonb,
  CASE k % 5 WHEN 0 THEN NULL WHEN 1 THEN 'null' WHEN 2 THEN '{"b":1,"a":2.0}' WHEN 3 THEN '{"a": 1, "a": 2}' ELSE '"x"' END::json,
  CASE k % 5 WHEN 0 THEN NULL WHEN 1 THEN '{}' WHEN 2 THEN '{a,NULL,""}' WHEN 3 THEN '{NULL}' ELSE ARRAY['x ' || n, 'y'] END,
  CASE k % 5 WHEN 0 THEN NULL WHEN 1 THEN '{0,1.5}' WHEN 2 THEN '{-0}' WHEN 3 THEN '{}' ELSE ARRAY[n / 3.0] END,
  CASE k % 5 WHEN 0 THEN 'infinity' WHEN 1 THEN NULL ELSE '2026-03-29 00:59:59.999999+00'::timestamptz + n * interval '1 second' END,
  CASE k % 4 WHEN 0 THEN NULL WHEN 1 THEN '1 day' WHEN 2 THEN '24:00' ELSE '1 mon -1 day' END::interval,
  md5(n::text)::uuid, (ARRAY['sad', 'fair', 'happy', NULL])[1 + k % 4]::mood, CASE k % 3 WHEN 0 THEN NULL ELSE n * 0.10 END,
  CASE k % 4 WHEN 0 THEN NULL WHEN 1 THEN ROW(NULL, NULL, NULL)::spot WHEN 2 THEN ROW('', 1, 0)::spot ELSE ROW('street ' || n, n, n / 9.0)::spot END,
  CASE k % 4 WHEN 0 THEN NULL WHEN 1 THEN 'empty' ELSE numrange(1.0, n + 2.00) END, (ARRAY[true, false, NULL])[1 + k % 3],
  CASE k % 3 WHEN 0 THEN NULL WHEN 1 THEN B'' ELSE n::bit(9) END,
  CASE k % 3 WHEN 0 THEN repeat(md5(n::text), 100) END, CASE k % 4 WHEN 0 THEN decode(repeat(md5(n::text), 200), 'hex') END
  FROM generate_series(0, 269) n, LATERAL (SELECT n / 3 AS k) l;
-- Its rows are their items'.
CREATE TABLE lines (
  item integer NOT NULL REFERENCES items ON DELETE CASCADE, no integer NOT NULL, note text, qty numeric, f8 double precision, PRIMARY KEY (item, no));
INSERT INTO lines SELECT id, l, CASE id % 4 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE 'line ' || l END, 1.0 * l, CASE l WHEN 1 THEN 0 ELSE id / 7.0 END
  FROM items, generate_series(1, 2) l;
-- Keys that are nearly another one.
CREATE TABLE codes (bid integer NOT NULL, code text NOT NULL, body text, v varchar(60), n numeric, PRIMARY KEY (bid, code));
INSERT INTO codes SELECT 1 + n, code, CASE length(code) % 3 WHEN 0 THEN '' WHEN 1 THEN 'body of ' || code END, CASE length(code) WHEN 1 THEN code || ' ' END, 1.0 * n
  FROM generate_series(0, 2) n, unnest(ARRAY['a', 'A', U&'\00E1', U&'a\0301', 'b "quoted"', '(1,c)', 'd\', '', 'NULL', '''e''']) code;
-- No key, and equal rows.
CREATE TABLE events (bid integer, what text, n numeric, f4 real, j json);
INSERT INTO events SELECT 1 + n % 3, CASE n % 5 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE 'event ' || n / 9 END, 1.0, CASE n % 2 WHEN 0 THEN 0 ELSE 0.1 END,
  CASE n % 4 WHEN 0 THEN '{"b":1,"a":2}' WHEN 1 THEN '1.0' END::json FROM generate_series(0, 89) n, generate_series(1, 2) twice WHERE n % 2 = 0 OR twice = 1;
CREATE TABLE days (
  bid integer NOT NULL, id integer NOT NULL, at integer NOT NULL, note text, n numeric, f8 double precision, PRIMARY KEY (id, at))
  PARTITION BY RANGE (at);
CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM (0) TO (10);
CREATE TABLE days_2 PARTITION OF days FOR VALUES FROM (10) TO (20);
CREATE TABLE days_3 PARTITION OF days DEFAULT;
INSERT INTO days SELECT 1 + n % 3, n, n % 30, CASE n % 4 WHEN 0 THEN NULL WHEN 1 THEN '' ELSE 'day ' || n END, 1.00, CASE n % 5 WHEN 0 THEN '-0' ELSE n / 7.0 END
  FROM generate_series(0, 179) n;
-- Nobody spoils it: what is written here arrives whatever happens to the others.
CREATE TABLE probes (bid integer NOT NULL, id bigserial, PRIMARY KEY (bid, id));
