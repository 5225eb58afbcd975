-- Three shops' rows by turns: rows n of every table are shop 1 + n % 3's. What refers to each other: customers to customers, orders and
-- items in a circle that is also the items' path, teams and members, links in chains that end in rings.
CREATE TABLE kinds (id integer PRIMARY KEY);
CREATE TABLE customer (shop integer NOT NULL, id bigint, referrer bigint, v integer DEFAULT 0, PRIMARY KEY (shop, id),
  FOREIGN KEY (shop, referrer) REFERENCES customer);
CREATE TABLE "Or""ders" (shop integer NOT NULL, id bigint PRIMARY KEY, customer bigint NOT NULL, kind integer REFERENCES kinds,
  main_item bigint, v integer DEFAULT 0, FOREIGN KEY (shop, customer) REFERENCES customer);
CREATE TABLE item (id bigint PRIMARY KEY, order_id bigint NOT NULL REFERENCES "Or""ders" ON DELETE CASCADE);
CREATE TABLE piece (id bigint PRIMARY KEY, item_id bigint NOT NULL REFERENCES item ON DELETE CASCADE);
CREATE TABLE team (shop integer NOT NULL, id bigint PRIMARY KEY, lead bigint);
CREATE TABLE member (shop integer NOT NULL, id bigint PRIMARY KEY, team bigint NOT NULL REFERENCES team DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE link (shop integer NOT NULL, id bigint PRIMARY KEY, next bigint REFERENCES link DEFERRABLE INITIALLY DEFERRED);
CREATE TABLE event (shop integer NOT NULL, id bigint, at integer, PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
CREATE TABLE event_1 PARTITION OF event FOR VALUES FROM (0) TO (10);
CREATE TABLE event_2 PARTITION OF event FOR VALUES FROM (10) TO (20) PARTITION BY HASH (id);
CREATE TABLE event_2a PARTITION OF event_2 FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE "event 2b" PARTITION OF event_2 FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE note (shop integer NOT NULL, id bigint PRIMARY KEY, event bigint, at integer, FOREIGN KEY (event, at) REFERENCES event);
CREATE TABLE log (shop integer NOT NULL, line text);
CREATE TABLE archive (shop integer NOT NULL, line text);
INSERT INTO kinds SELECT generate_series(1, 5);
INSERT INTO customer SELECT 1 + n % 3, n, CASE WHEN n > 30 THEN n - 30 END FROM generate_series(1, 300) n;
INSERT INTO "Or""ders" SELECT 1 + n % 3, n, (n - 1) % 300 + 1, 1 + n % 5 FROM generate_series(1, 900) n;
INSERT INTO item SELECT n, (n - 1) % 900 + 1 FROM generate_series(1, 1800) n;
INSERT INTO piece SELECT n, (n - 1) % 1800 + 1 FROM generate_series(1, 3600) n;
UPDATE "Or""ders" SET main_item = id WHERE id % 2 = 0;
ALTER TABLE "Or""ders" ADD FOREIGN KEY (main_item) REFERENCES item;
INSERT INTO team SELECT 1 + n % 3, n FROM generate_series(1, 30) n;
INSERT INTO member SELECT 1 + n % 3, n, (n - 1) % 30 + 1 FROM generate_series(1, 300) n;
COMMIT;
UPDATE team SET lead = id;
ALTER TABLE team ADD FOREIGN KEY (lead) REFERENCES member;
INSERT INTO link SELECT 1 + n % 3, n, CASE WHEN n > 2997 THEN n - 150 ELSE n + 3 END FROM generate_series(1, 3000) n;
COMMIT;
INSERT INTO event SELECT 1 + n % 3, n, n % 20 FROM generate_series(1, 900) n;
INSERT INTO note SELECT 1 + n % 3, n, n, n % 20 FROM generate_series(1, 300) n;
INSERT INTO log SELECT 1 + n % 3, 'l ' || n FROM generate_series(1, 300) n;
INSERT INTO archive SELECT 1 + n % 3, 'a ' || n FROM generate_series(1, 30) n;
CREATE INDEX ON customer (shop, referrer);
CREATE INDEX ON "Or""ders" (shop, customer);
CREATE INDEX ON "Or""ders" (main_item);
CREATE INDEX ON item (order_id);
CREATE INDEX ON piece (item_id);
CREATE INDEX ON link (next);
CREATE ROLE app LOGIN;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO app;
-- As a fence refuses.
CREATE FUNCTION carveout.fence_9() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF current_setting('carveout.lane', true) = 'm1' THEN RETURN NULL; END IF;
  RAISE EXCEPTION USING ERRCODE = 'TM001', MESSAGE = 'the tenant does not live here';
END $$;
CREATE TRIGGER carveout_fence_9_delete AFTER DELETE ON event FOR EACH ROW WHEN (OLD.shop <> 1) EXECUTE FUNCTION carveout.fence_9();
ALTER TABLE event ENABLE ALWAYS TRIGGER carveout_fence_9_delete;
ALTER TABLE event_1 ENABLE ALWAYS TRIGGER carveout_fence_9_delete;
ALTER TABLE event_2a ENABLE ALWAYS TRIGGER carveout_fence_9_delete;
ALTER TABLE "event 2b" ENABLE ALWAYS TRIGGER carveout_fence_9_delete;
