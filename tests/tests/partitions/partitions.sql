-- Three ways to be partitioned: by range with a tenant key outside the primary key (so REPLICA IDENTITY FULL), by list with
-- a DEFAULT and a key that carries the tenant, and below another table, found by its foreign key.
CREATE TABLE orders (bid integer NOT NULL, id bigint PRIMARY KEY, v text);
CREATE TABLE events (bid integer NOT NULL, id bigint, at integer, note text, large text, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
ALTER TABLE events ALTER large SET STORAGE EXTERNAL;
CREATE INDEX "events'by note" ON events (lower(note));
CREATE TABLE "events 1" PARTITION OF events FOR VALUES FROM (0) TO (10);
-- Other column order, and a column that is gone.
CREATE TABLE "events ""2""" (large text, at integer NOT NULL, gone integer, note text, id bigint NOT NULL, bid integer NOT NULL);
ALTER TABLE "events ""2""" DROP COLUMN gone;
ALTER TABLE events ATTACH PARTITION "events ""2""" FOR VALUES FROM (10) TO (20);
CREATE TABLE events_3 PARTITION OF events FOR VALUES FROM (20) TO (30) PARTITION BY HASH (id);
CREATE TABLE events_3a (note text, id bigint NOT NULL, bid integer NOT NULL, at integer NOT NULL, large text);
ALTER TABLE events_3 ATTACH PARTITION events_3a FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE events_3b PARTITION OF events_3 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
-- Comes and goes.
CREATE TABLE guest (LIKE events INCLUDING STORAGE, CONSTRAINT at CHECK (at >= 30 AND at < 40));
CREATE TABLE days (bid integer NOT NULL, day integer NOT NULL, n integer NOT NULL, PRIMARY KEY (bid, day)) PARTITION BY LIST (day);
CREATE TABLE days_some PARTITION OF days FOR VALUES IN (1, 2, 3);
CREATE TABLE days_rest PARTITION OF days DEFAULT;
CREATE TABLE marks (bid integer NOT NULL, id bigint PRIMARY KEY, day integer NOT NULL,
  FOREIGN KEY (bid, day) REFERENCES days ON DELETE CASCADE);

CREATE TABLE lines (order_id bigint NOT NULL REFERENCES orders ON DELETE CASCADE, n integer NOT NULL, v text, PRIMARY KEY (order_id, n))
  PARTITION BY RANGE (n);
CREATE TABLE lines_low (v text, n integer NOT NULL, order_id bigint NOT NULL);
ALTER TABLE lines ATTACH PARTITION lines_low FOR VALUES FROM (0) TO (5);
CREATE TABLE lines_high PARTITION OF lines FOR VALUES FROM (5) TO (10);
CREATE TABLE lines_guest (LIKE lines);

CREATE SEQUENCE ids;
INSERT INTO orders SELECT n % 4, n, 'o' FROM generate_series(1, 400) n;
INSERT INTO events SELECT n % 4, nextval('ids'), n % 30, 'n', repeat(md5(n::text), 80) FROM generate_series(1, 3000) n;
INSERT INTO days SELECT t, d, 0 FROM generate_series(0, 3) t, generate_series(1, 9) d;
INSERT INTO marks SELECT n % 4, nextval('ids'), 1 + n % 3 FROM generate_series(1, 200) n;
INSERT INTO lines SELECT o, n, 'l' FROM generate_series(1, 400) o, generate_series(0, 9, 2) n;

-- One transaction of the application.
CREATE FUNCTION touch() RETURNS void LANGUAGE plpgsql AS $$
DECLARE tenant integer := (random() * 3)::integer; own bigint := nextval('ids'); place integer := (random() * 39)::integer; one record;
BEGIN
  BEGIN
    INSERT INTO events VALUES (tenant, own, place, 'new', repeat(md5(own::text), 60));
  EXCEPTION WHEN check_violation THEN NULL;  -- no such partition now
  END;
  IF own % 7 = 0 THEN INSERT INTO marks VALUES (tenant, own, 1 + own % 3); END IF;
  FOR one IN SELECT id, at FROM events WHERE id BETWEEN own - 40 AND own - 30 ORDER BY id LIMIT 2 FOR UPDATE SKIP LOCKED LOOP
    UPDATE events SET note = 'upd ' || own WHERE (id, at) = (one.id, one.at);
    -- From one partition into another; the large value stays. Not of those that come and go.
    UPDATE events SET at = 10 + (one.at + 7) % 20 WHERE (id, at) = (one.id, one.at) AND at BETWEEN 10 AND 29;
  END LOOP;
  DELETE FROM events WHERE id = own - 300;
  UPDATE days SET n = n + 1 WHERE bid = tenant AND day = 1 + own % 9;
  BEGIN
    INSERT INTO lines SELECT id, place % 15, 'new' FROM orders WHERE id = 1 + own % 400 ON CONFLICT DO NOTHING;
  EXCEPTION WHEN check_violation THEN NULL;
  END;
  DELETE FROM lines WHERE order_id = 1 + own % 397 AND n = place % 10;
  IF own % 50 = 0 THEN
    DELETE FROM orders WHERE id = 1 + (own / 50) % 400;
    INSERT INTO orders VALUES (tenant, 1 + (own / 50) % 400, 'again') ON CONFLICT DO NOTHING;
  END IF;
-- With who changes the partitions; a row that went to another one meanwhile; an order that the other client deleted.
EXCEPTION WHEN deadlock_detected OR serialization_failure OR foreign_key_violation THEN NULL;
END $$;
