-- A tree of depth 4 under the tenants' roots, its last table without a key; a table with large values and a small identity; two
-- tables that are everybody's; and give(), one random transaction's work, in which rows go from tenant to tenant with all below.
CREATE TABLE kind (id integer PRIMARY KEY, v text);
CREATE TABLE word (w text, n integer);
CREATE TABLE r (id bigint PRIMARY KEY, bid integer NOT NULL, kind integer REFERENCES kind, large text, v text);
CREATE TABLE a (id bigint PRIMARY KEY, r_id bigint NOT NULL REFERENCES r ON DELETE CASCADE, large text, v text);
CREATE TABLE b (id uuid PRIMARY KEY, a_id bigint NOT NULL REFERENCES a ON DELETE CASCADE, large text, v text);
CREATE TABLE c (id integer PRIMARY KEY, b_id uuid NOT NULL REFERENCES b ON DELETE CASCADE, v text);
CREATE TABLE d (c_id integer NOT NULL REFERENCES c ON DELETE CASCADE, v text);
CREATE TABLE t (bid integer NOT NULL, id bigint NOT NULL, large text, v text, UNIQUE (bid, id), UNIQUE (id));
CREATE UNIQUE INDEX r_identity ON r (id, bid);
CREATE UNIQUE INDEX a_identity ON a (id, r_id);
CREATE INDEX ON a (r_id);
CREATE INDEX ON b (a_id);
CREATE INDEX ON c (b_id);
CREATE INDEX ON d (c_id);

CREATE FUNCTION n(most integer) RETURNS integer LANGUAGE sql VOLATILE AS 'SELECT 1 + floor(random() * most)::integer';
CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE AS 'SELECT md5(n::text)::uuid';
CREATE FUNCTION large() RETURNS text LANGUAGE sql VOLATILE AS
    'SELECT string_agg(md5(random()::text), '''') FROM generate_series(1, 120)';

CREATE FUNCTION tree(root bigint, tenant integer) RETURNS void LANGUAGE plpgsql AS $$
DECLARE one bigint := n(400); two integer := n(400);
BEGIN
  INSERT INTO r VALUES (root, tenant, n(5), large(), 'tree') ON CONFLICT DO NOTHING;
  INSERT INTO a VALUES (one, root, large(), 'tree') ON CONFLICT DO NOTHING;
  INSERT INTO b VALUES (u(two), one, large(), 'tree') ON CONFLICT DO NOTHING;
  INSERT INTO c VALUES (n(400), u(two), 'tree') ON CONFLICT DO NOTHING;
  INSERT INTO d SELECT id, 'tree' FROM c WHERE b_id = u(two);
END $$;

CREATE FUNCTION act() RETURNS void LANGUAGE plpgsql AS $$
DECLARE root bigint := n(200); other bigint := n(200); one bigint := n(400); two integer := n(400); three integer := n(400);
        tenant integer := n(4); what integer;
BEGIN
  what := n(11) + 6;
  IF random() < 0.15 THEN what := n(6); END IF;
  CASE what
  WHEN 1, 2, 3 THEN UPDATE r SET bid = tenant, v = 'given' WHERE id = root;
  WHEN 4 THEN UPDATE r SET bid = tenant WHERE id IN (root, other, n(200)); PERFORM tree(root, tenant);
  WHEN 5 THEN
    UPDATE a SET v = 'before' WHERE r_id = root; UPDATE r SET bid = tenant WHERE id = root;
    UPDATE a SET v = 'after' WHERE r_id = root; UPDATE b SET v = 'after' WHERE a_id IN (SELECT id FROM a WHERE r_id = root);
    DELETE FROM c WHERE b_id = u(two);
  WHEN 6 THEN UPDATE r SET bid = tenant WHERE id = root; UPDATE r SET bid = n(4) WHERE id = root;
  WHEN 7 THEN UPDATE a SET r_id = other WHERE id = one;
  WHEN 8 THEN UPDATE b SET a_id = one, v = 'given' WHERE id = u(two);
  WHEN 9 THEN UPDATE c SET b_id = u(two) WHERE id = three;
  WHEN 10 THEN PERFORM tree(root, tenant); UPDATE r SET bid = n(4) WHERE id = root;
  WHEN 11 THEN DELETE FROM r WHERE id = root; PERFORM tree(root, tenant);
  WHEN 12 THEN
    DELETE FROM a WHERE id = one; DELETE FROM c WHERE id = three;
    DELETE FROM d WHERE ctid = (SELECT min(ctid) FROM d WHERE c_id = n(400)); UPDATE d SET c_id = three + 1 WHERE c_id = two;
  WHEN 13 THEN
    UPDATE r SET v = 'touched ' || n(9) WHERE id = root; UPDATE a SET v = 'touched ' || n(9) WHERE id = one;
    UPDATE b SET v = 'touched ' || n(9) WHERE id = u(two); UPDATE c SET v = 'touched ' || n(9) WHERE id = three;
  WHEN 14 THEN
    INSERT INTO t VALUES (tenant, root, large(), 'new') ON CONFLICT DO NOTHING;
    UPDATE t SET bid = n(4) WHERE id = other; UPDATE t SET v = 'touched ' || n(9) WHERE id = one % 200;
  WHEN 15 THEN
    UPDATE kind SET v = 'kind ' || n(99) WHERE id = n(5); INSERT INTO word VALUES ('w', n(9));
    UPDATE word SET n = n(9) WHERE ctid = (SELECT min(ctid) FROM word); DELETE FROM word WHERE n = n(20);
  WHEN 16 THEN
    DELETE FROM b WHERE id = u(two); INSERT INTO b VALUES (u(two), one, large(), 'again');
    INSERT INTO c VALUES (three, u(two), 'again'); UPDATE c SET v = 'once more' WHERE id = three;
    INSERT INTO d VALUES (three, 'tree'), (three, 'tree');
  ELSE UPDATE r SET large = large() WHERE id = root; UPDATE b SET large = large() WHERE id = u(two);
  END CASE;
END $$;

CREATE FUNCTION give() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. n(3) LOOP
    BEGIN
      PERFORM act();
      IF random() < 0.05 THEN RAISE EXCEPTION 'changed my mind'; END IF;
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
  END LOOP;
END $$;

INSERT INTO kind SELECT n, 'kind' FROM generate_series(1, 5) n;
SELECT tree(id, n(4)) FROM generate_series(1, 200) id;
INSERT INTO t SELECT n(4), id, large(), 'first' FROM generate_series(1, 200) id;
