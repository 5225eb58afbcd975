-- Tables that name the tenant, one of them partitioned, and two below; written by a role that may touch nothing of Carveout's.
CREATE TABLE "Or""ders" ("Tenant" integer NOT NULL, id bigint PRIMARY KEY, v integer, UNIQUE ("Tenant", id));
CREATE TABLE item (id bigint PRIMARY KEY, order_id bigint NOT NULL REFERENCES "Or""ders", v integer, UNIQUE (order_id, id));
CREATE TABLE piece (id bigint PRIMARY KEY, item_id bigint NOT NULL REFERENCES item, v integer);
CREATE TABLE events ("Tenant" integer NOT NULL, id bigint, v integer, PRIMARY KEY (id)) PARTITION BY HASH (id);
CREATE TABLE events_0 PARTITION OF events FOR VALUES WITH (MODULUS 2, REMAINDER 0);
CREATE TABLE "events 1" PARTITION OF events FOR VALUES WITH (MODULUS 2, REMAINDER 1);
CREATE TABLE kinds (id integer PRIMARY KEY);
ALTER TABLE "Or""ders" REPLICA IDENTITY FULL;
ALTER TABLE item REPLICA IDENTITY FULL;
ALTER TABLE piece REPLICA IDENTITY FULL;
ALTER TABLE events_0 REPLICA IDENTITY FULL;
ALTER TABLE "events 1" REPLICA IDENTITY FULL;
CREATE SEQUENCE ids START 1000;
INSERT INTO "Or""ders" SELECT 5 + n % 4, n, 0 FROM generate_series(1, 200) n;
INSERT INTO item SELECT n, n, 0 FROM generate_series(1, 200) n;
CREATE ROLE app LOGIN;
GRANT SELECT, INSERT, UPDATE, DELETE, TRUNCATE ON ALL TABLES IN SCHEMA public TO app;
GRANT USAGE ON SEQUENCE ids TO app;
