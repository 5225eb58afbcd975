-- Tables that lead to their tenant by 0 to 4 foreign keys, with few ids, so that they are used again and again;
-- and hurt(), one random transaction's work. Rows that others refer to stay with their tenant or are deleted:
-- what changes hands is deleted and made again, or refers to something and is referred to by nothing.
CREATE TABLE r (id bigint PRIMARY KEY, bid integer NOT NULL, v text);
CREATE TABLE a (id bigint PRIMARY KEY, r_id bigint NOT NULL REFERENCES r ON UPDATE CASCADE ON DELETE CASCADE, v text);
CREATE TABLE b (id uuid PRIMARY KEY, a_id bigint NOT NULL REFERENCES a ON UPDATE CASCADE ON DELETE CASCADE
    DEFERRABLE INITIALLY DEFERRED, v text);
CREATE TABLE c (id integer PRIMARY KEY, b_id uuid NOT NULL REFERENCES b ON UPDATE CASCADE ON DELETE CASCADE, v text);
CREATE TABLE d (c_id integer NOT NULL REFERENCES c ON UPDATE CASCADE ON DELETE CASCADE, v text);
CREATE TABLE e (id integer PRIMARY KEY, a_id bigint NOT NULL REFERENCES a ON UPDATE CASCADE ON DELETE CASCADE, v text);
CREATE INDEX ON a (r_id);
CREATE INDEX ON b (a_id);
CREATE INDEX ON c (b_id);
CREATE INDEX ON d (c_id);
CREATE INDEX ON e (a_id);

CREATE FUNCTION n(most integer) RETURNS integer LANGUAGE sql VOLATILE AS 'SELECT 1 + floor(random() * most)::integer';
CREATE FUNCTION u(n integer) RETURNS uuid LANGUAGE sql IMMUTABLE AS 'SELECT md5(n::text)::uuid';

-- A root with something below it, for a random tenant; bottom up where the constraints let it.
CREATE FUNCTION tree(root bigint) RETURNS void LANGUAGE plpgsql AS $$
DECLARE one bigint := n(300); two integer := n(300); three integer := n(300);
BEGIN
  INSERT INTO r VALUES (root, n(8), 'tree') ON CONFLICT DO NOTHING;
  IF random() < 0.5 THEN
    INSERT INTO b VALUES (u(two), one, 'before') ON CONFLICT DO NOTHING;
    INSERT INTO a VALUES (one, root, 'after') ON CONFLICT DO NOTHING;
  ELSE
    INSERT INTO a VALUES (one, root, 'tree') ON CONFLICT DO NOTHING;
    INSERT INTO b VALUES (u(two), one, 'tree') ON CONFLICT DO NOTHING;
  END IF;
  INSERT INTO c VALUES (three, u(two), 'tree') ON CONFLICT DO NOTHING;
  INSERT INTO d SELECT three, 'tree' FROM generate_series(1, n(2));
  INSERT INTO e VALUES (n(300), one, 'tree') ON CONFLICT DO NOTHING;
END $$;

-- One thing that an application may do.
CREATE FUNCTION act() RETURNS void LANGUAGE plpgsql AS $$
DECLARE root bigint := n(150); other bigint := n(150); one bigint := n(300); two integer := n(300); three integer := n(300);
        tenant integer; theirs integer;
BEGIN
  CASE n(19)
  WHEN 1, 2, 3 THEN PERFORM tree(root);
  WHEN 4 THEN DELETE FROM r WHERE id = root;
  WHEN 5 THEN DELETE FROM r WHERE id = root; PERFORM tree(root); PERFORM tree(root);
  WHEN 6 THEN PERFORM tree(root); DELETE FROM r WHERE id = root;
  WHEN 7 THEN
    DELETE FROM a WHERE id = one;
    INSERT INTO a SELECT one, id, 'again' FROM r WHERE id = root FOR KEY SHARE;
    INSERT INTO b VALUES (u(two), one, 'again') ON CONFLICT DO NOTHING;
    INSERT INTO e VALUES (three, one, 'again') ON CONFLICT DO NOTHING;
  WHEN 8 THEN
    DELETE FROM b WHERE id = u(two);
    INSERT INTO c VALUES (three, u(two), 'early') ON CONFLICT DO NOTHING;
  WHEN 9 THEN
    DELETE FROM b WHERE id = u(two);
    INSERT INTO b SELECT u(two), id, 'again' FROM a WHERE id = one FOR KEY SHARE;
    INSERT INTO c VALUES (three, u(two), 'again') ON CONFLICT DO NOTHING;
    INSERT INTO d SELECT three, 'again' FROM c WHERE id = three FOR KEY SHARE;
    DELETE FROM c WHERE id = three AND random() < 0.3;
  WHEN 10 THEN
    -- To another root of the same tenant, with all that is below.
    PERFORM FROM r WHERE id IN (root, other) ORDER BY id FOR UPDATE;
    SELECT bid INTO tenant FROM r WHERE id = root;
    SELECT bid INTO theirs FROM r WHERE id = other;
    IF tenant = theirs THEN UPDATE a SET r_id = other, v = 'moved' WHERE r_id = root; END IF;
  WHEN 11 THEN UPDATE d SET c_id = (SELECT id FROM c WHERE id = three FOR KEY SHARE), v = 'given'
                WHERE c_id = n(300) AND EXISTS (SELECT FROM c WHERE id = three);
  WHEN 12 THEN UPDATE e SET a_id = (SELECT id FROM a WHERE id = one FOR KEY SHARE), v = 'given'
                WHERE id = three AND EXISTS (SELECT FROM a WHERE id = one);
  WHEN 13 THEN
    UPDATE r SET v = 'touched ' || n(9) WHERE id = root;
    UPDATE a SET v = 'touched ' || n(9) WHERE id = one;
    UPDATE b SET v = 'touched ' || n(9) WHERE id = u(two);
    UPDATE c SET v = 'touched ' || n(9) WHERE id = three;
    UPDATE d SET v = 'touched ' || n(9) WHERE c_id = three;
  WHEN 14 THEN UPDATE r SET id = other WHERE id = root AND NOT EXISTS (SELECT FROM r WHERE id = other);
  WHEN 15 THEN UPDATE a SET id = one + 1 WHERE id = one AND NOT EXISTS (SELECT FROM a WHERE id = one + 1);
  WHEN 16 THEN UPDATE c SET id = three + 1 WHERE id = three AND NOT EXISTS (SELECT FROM c WHERE id = three + 1);
  WHEN 17 THEN DELETE FROM c WHERE id = three; DELETE FROM e WHERE id = three;
  WHEN 18 THEN DELETE FROM d WHERE c_id = three; DELETE FROM a WHERE id = one AND random() < 0.3;
  ELSE
    INSERT INTO e VALUES (three, one, 'passing') ON CONFLICT DO NOTHING;
    UPDATE e SET v = 'passing by' WHERE id = three;
    DELETE FROM e WHERE id = three;
  END CASE;
END $$;

CREATE FUNCTION hurt() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. n(4) LOOP
    BEGIN
      PERFORM act();
      -- What is deferred fails here and not at the end.
      SET CONSTRAINTS ALL IMMEDIATE;
      IF random() < 0.05 THEN RAISE EXCEPTION 'changed my mind'; END IF;
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
    SET CONSTRAINTS ALL DEFERRED;
  END LOOP;
END $$;

SELECT tree(id) FROM generate_series(1, 150) id;
