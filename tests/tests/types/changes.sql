-- Before the copy: every value, NULL, and rows for what is to come.
SELECT pg_temp.each($texts, $$
  CREATE TABLE {t} ({k} integer NOT NULL, {i} integer NOT NULL, {v} {type}, note text, PRIMARY KEY ({k}, {i}));
  CREATE TABLE {f} ({k} integer NOT NULL, {i} integer NOT NULL, {v} {type}, note text);
  INSERT INTO {t} SELECT t, h * 100 + n, {value} FROM generate_series(1, 3) t, generate_series(1, 6) h, generate_series(0, {n} - 1) n;
  INSERT INTO {t} SELECT t, 800 + n FROM generate_series(1, 3) t, generate_series(0, {n} - 1) n;
  INSERT INTO {f} SELECT t, h * 100 + n, {value} FROM generate_series(1, 3) t, generate_series(1, 3) h, generate_series(0, {n} - 1) n;
$$);
-- step
SELECT pg_temp.each($texts, $$
  INSERT INTO {t} SELECT t, 700 + n, {value} FROM generate_series(1, 3) t, generate_series(0, {n} - 1) n;
  UPDATE {t} o SET {v} = (SELECT {value} FROM (SELECT o.{i} + 1 AS n) x) WHERE {i} BETWEEN 200 AND 299;
  UPDATE {t} SET {v} = NULL WHERE {i} BETWEEN 300 AND 399;
  UPDATE {t} SET {i} = {i} + 5000 WHERE {i} BETWEEN 400 AND 499;
  UPDATE {t} SET note = 'other' WHERE {i} BETWEEN 500 AND 599;
  DELETE FROM {t} WHERE {i} BETWEEN 600 AND 699;
  UPDATE {t} o SET {v} = (SELECT {value} FROM (SELECT o.{i} AS n) x) WHERE {i} BETWEEN 800 AND 899;
$$);
-- step
SELECT pg_temp.each($texts, $$
  UPDATE {t} o SET {v} = (SELECT {value} FROM (SELECT o.{i} AS n) x) WHERE {i} BETWEEN 300 AND 399;
  UPDATE {t} SET {v} = NULL WHERE {i} BETWEEN 800 AND 899;
$$);
-- step
SELECT pg_temp.each($texts, $$
  INSERT INTO {f} SELECT t, 700 + n, {value} FROM generate_series(1, 3) t, generate_series(0, {n} - 1) n;
  UPDATE {f} o SET {v} = (SELECT {value} FROM (SELECT o.{i} + 1 AS n) x) WHERE {i} BETWEEN 200 AND 299;
  UPDATE {f} SET {i} = {i} + 5000 WHERE {i} BETWEEN 100 AND 199;
  UPDATE {f} SET {k} = 1 WHERE {k} = 3 AND {i} BETWEEN 300 AND 399;
  DELETE FROM {f} WHERE {k} = 1 AND {i} = 300 OR {k} = 2 AND {i} BETWEEN 300 AND 399;
$$);
