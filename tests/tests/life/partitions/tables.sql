-- As ../tables.sql, but the writes are partitioned by the time at which they were made: some of each month.
CREATE TABLE kinds (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO kinds SELECT n, 'kind ' || n FROM generate_series(1, 5) n;
CREATE TABLE accounts (
  id int PRIMARY KEY, bid int NOT NULL, kind int NOT NULL REFERENCES kinds, balance bigint NOT NULL DEFAULT 0, UNIQUE (bid, id));
INSERT INTO accounts SELECT n, 1 + n % 3, 1 + n % 5, 0 FROM generate_series(1, 300) n;
CREATE TABLE writes (
  id bigserial, bid int NOT NULL, client int NOT NULL, number bigint NOT NULL, body text NOT NULL,
  at timestamptz NOT NULL DEFAULT timestamptz '2026-01-01 00:00+00' + random() * interval '89 days',
  UNIQUE (id, at), PRIMARY KEY (bid, client, number, at)) PARTITION BY RANGE (at);
CREATE TABLE january PARTITION OF writes FOR VALUES FROM ('2026-01-01 00:00+00') TO ('2026-02-01 00:00+00');
-- Other column order, and a column that is gone.
CREATE TABLE february (
  at timestamptz NOT NULL, gone int, body text NOT NULL, number bigint NOT NULL, client int NOT NULL, bid int NOT NULL, id bigint NOT NULL);
ALTER TABLE february DROP gone;
ALTER TABLE writes ATTACH PARTITION february FOR VALUES FROM ('2026-02-01 00:00+00') TO ('2026-03-01 00:00+00');
CREATE TABLE march PARTITION OF writes FOR VALUES FROM ('2026-03-01 00:00+00') TO ('2026-04-01 00:00+00') PARTITION BY RANGE (at);
CREATE TABLE march_early PARTITION OF march FOR VALUES FROM ('2026-03-01 00:00+00') TO ('2026-03-16 00:00+00');
CREATE TABLE march_late PARTITION OF march FOR VALUES FROM ('2026-03-16 00:00+00') TO ('2026-04-01 00:00+00');
CREATE TABLE notes (
  account int NOT NULL REFERENCES accounts ON DELETE CASCADE, number bigint NOT NULL, note text, PRIMARY KEY (account, number));
INSERT INTO notes SELECT id, n, 'note ' || n FROM accounts, generate_series(1, 3) n;
-- Without any key.
CREATE TABLE hits (bid int NOT NULL, at int NOT NULL, v text) PARTITION BY RANGE (at);
CREATE TABLE hits_low PARTITION OF hits FOR VALUES FROM (0) TO (10);
CREATE TABLE hits_high PARTITION OF hits FOR VALUES FROM (10) TO (20);
INSERT INTO hits SELECT 1 + n % 3, n % 20, 'v' FROM generate_series(1, 300) n;
