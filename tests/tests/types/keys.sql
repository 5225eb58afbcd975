-- Tenants are called by {key}, elsewhere by {other}, in what refers to them by {referring}; rows by {id}, in what refers
-- to them by {ref}: types that compare. And hurt(), one random transaction's work on few of them.
CREATE TABLE r (tenant {key} NOT NULL, n integer NOT NULL, v text, PRIMARY KEY (tenant, n));
CREATE TABLE plain (whose {other} NOT NULL, n integer NOT NULL, v text, PRIMARY KEY (whose, n));
CREATE TABLE a (id {id} PRIMARY KEY, r_tenant {referring} NOT NULL, r_n integer NOT NULL, v text,
    FOREIGN KEY (r_tenant, r_n) REFERENCES r ON UPDATE CASCADE ON DELETE CASCADE);
CREATE TABLE b (id integer PRIMARY KEY, a_id {ref} NOT NULL REFERENCES a ON UPDATE CASCADE ON DELETE CASCADE, v text);

CREATE FUNCTION n(most integer) RETURNS integer LANGUAGE sql VOLATILE AS 'SELECT 1 + floor(random() * most)::integer';
CREATE FUNCTION k(n integer) RETURNS text LANGUAGE sql IMMUTABLE AS $$ SELECT {tenant} $$;

CREATE FUNCTION act() RETURNS void LANGUAGE plpgsql AS $$
DECLARE one {key} := k(n(6)); other {key} := k(n(6)); root integer := n(20); item integer := n(400);
        these {other} := one::text; those {other} := other::text;
        row_id {id} := 'i' || n(200); other_id {id} := 'i' || n(200);
BEGIN
  CASE n(12)
  WHEN 1, 2, 3, 4 THEN
    INSERT INTO r VALUES (one, root, 'new') ON CONFLICT DO NOTHING;
    INSERT INTO a VALUES (row_id, one, root, 'new') ON CONFLICT DO NOTHING;
    INSERT INTO b VALUES (item, row_id, 'new') ON CONFLICT DO NOTHING;
  WHEN 5, 6 THEN INSERT INTO plain VALUES (these, item, 'new') ON CONFLICT DO NOTHING;
  WHEN 7 THEN UPDATE plain SET whose = those, v = 'given' WHERE whose = these AND n = item;
  WHEN 8 THEN
    UPDATE r SET v = 'touched ' || n(9) WHERE tenant = one AND n = root;
    UPDATE a SET v = 'touched ' || n(9) WHERE id = row_id;
    UPDATE b SET v = 'touched ' || n(9) WHERE id = item;
  WHEN 9 THEN DELETE FROM r WHERE tenant = one AND n = root;
  WHEN 10 THEN UPDATE b SET a_id = row_id, v = 'given' WHERE id = item AND EXISTS (SELECT FROM a WHERE id = row_id);
  WHEN 11 THEN UPDATE r SET tenant = other, v = 'given' WHERE tenant = one AND n = root;
  ELSE UPDATE a SET id = other_id WHERE id = row_id; DELETE FROM b WHERE id = item;
  END CASE;
END $$;

CREATE FUNCTION hurt() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. n(4) LOOP
    BEGIN
      PERFORM act();
      IF random() < 0.05 THEN RAISE EXCEPTION 'changed my mind'; END IF;
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
  END LOOP;
END $$;

SELECT hurt() FROM generate_series(1, 800);
INSERT INTO plain SELECT k(t)::{other}, 1000 + n, 'there' FROM generate_series(1, 6) t, generate_series(1, 20) n;
