-- Tenant 1 moves; the others stay and write on. {rows}: how many accounts tenant 1 has, with a note for each tenth.
CREATE TABLE kinds (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO kinds SELECT n, 'kind ' || n FROM generate_series(1, 5) n;
CREATE TABLE accounts (
  id bigint PRIMARY KEY, bid int NOT NULL, kind int NOT NULL REFERENCES kinds, balance bigint NOT NULL DEFAULT 0, filler text NOT NULL,
  UNIQUE (bid, id));
INSERT INTO accounts SELECT n, 1, 1 + n % 5, 0, repeat('x', 80) FROM generate_series(0, {rows} - 1) n;
INSERT INTO accounts SELECT b * 100000000 + n, b, 1 + n % 5, 0, repeat('x', 80) FROM generate_series(2, {tenants}) b, generate_series(0, 9999) n;
CREATE TABLE notes (
  account bigint NOT NULL REFERENCES accounts ON DELETE CASCADE, number int NOT NULL, note text, PRIMARY KEY (account, number));
INSERT INTO notes SELECT id, 1, 'a note' FROM accounts WHERE id % 10 = 0;
-- What a client was told is a row here, until the write that comes {kept} later deletes it, and finds it there.
CREATE TABLE writes (id bigserial UNIQUE, bid int NOT NULL, number bigint NOT NULL, body text NOT NULL, PRIMARY KEY (bid, number));
