-- Three tenants. What a client is told it has written is a row of writes, and one more in its account's balance.
CREATE TABLE kinds (id int PRIMARY KEY, name text NOT NULL);
INSERT INTO kinds SELECT n, 'kind ' || n FROM generate_series(1, 5) n;
CREATE TABLE accounts (
  id int PRIMARY KEY, bid int NOT NULL, kind int NOT NULL REFERENCES kinds, balance bigint NOT NULL DEFAULT 0, UNIQUE (bid, id));
INSERT INTO accounts SELECT n, 1 + n % 3, 1 + n % 5, 0 FROM generate_series(1, 300) n;
CREATE TABLE writes (
  id bigserial UNIQUE, bid int NOT NULL, client int NOT NULL, number bigint NOT NULL, body text NOT NULL, PRIMARY KEY (bid, client, number));
CREATE TABLE notes (
  account int NOT NULL REFERENCES accounts ON DELETE CASCADE, number bigint NOT NULL, note text, PRIMARY KEY (account, number));
INSERT INTO notes SELECT id, n, 'note ' || n FROM accounts, generate_series(1, 3) n;
