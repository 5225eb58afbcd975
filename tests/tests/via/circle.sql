-- Tables whose foreign keys go round: a person has a boss and a team, a team has a lead; a paper names a team and a
-- person, and belongs to the team; a line belongs to a paper by two columns. And hurt(), one random transaction's work.
CREATE TABLE person (id integer PRIMARY KEY, bid integer NOT NULL, boss integer REFERENCES person ON DELETE SET NULL,
    team_id integer, v text);
CREATE TABLE team (id integer PRIMARY KEY, lead_id integer NOT NULL REFERENCES person ON UPDATE CASCADE ON DELETE CASCADE, v text);
ALTER TABLE person ADD FOREIGN KEY (team_id) REFERENCES team ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED;
CREATE TABLE paper (team_id integer REFERENCES team ON UPDATE CASCADE ON DELETE CASCADE, number integer,
    person_id integer NOT NULL REFERENCES person ON DELETE CASCADE, v text, PRIMARY KEY (team_id, number));
CREATE TABLE line (id integer PRIMARY KEY, paper_number integer NOT NULL, team_id integer NOT NULL, v text,
    FOREIGN KEY (team_id, paper_number) REFERENCES paper ON UPDATE CASCADE ON DELETE CASCADE);

CREATE FUNCTION n(most integer) RETURNS integer LANGUAGE sql VOLATILE AS 'SELECT 1 + floor(random() * most)::integer';

CREATE FUNCTION act() RETURNS void LANGUAGE plpgsql AS $$
DECLARE one integer := n(120); other integer := n(120); team integer := n(120); another integer := n(120); item integer := n(400);
BEGIN
  CASE n(15)
  WHEN 1, 2, 3, 11, 12, 13, 14 THEN
    -- Each before the other.
    INSERT INTO person VALUES (one, n(5), NULL, team, 'new') ON CONFLICT DO NOTHING;
    INSERT INTO team VALUES (team, one, 'new') ON CONFLICT DO NOTHING;
    INSERT INTO paper VALUES (team, n(5), other, 'new') ON CONFLICT DO NOTHING;
    INSERT INTO line SELECT item, number, team_id, 'new' FROM paper WHERE team_id = team ON CONFLICT DO NOTHING;
  WHEN 4 THEN UPDATE person SET boss = other, team_id = another WHERE id = one;
  WHEN 5 THEN UPDATE team SET lead_id = other, v = 'led by another' WHERE id = team;
  WHEN 6 THEN UPDATE paper SET team_id = another, v = 'given' WHERE team_id = team;
  WHEN 7 THEN UPDATE person SET bid = n(5), v = 'given' WHERE id = one;
  WHEN 8 THEN DELETE FROM person WHERE id = one;
  WHEN 9 THEN DELETE FROM team WHERE id = team; DELETE FROM line WHERE id = item;
  WHEN 10 THEN UPDATE team SET id = another WHERE id = team;
  ELSE
    UPDATE person SET v = 'touched ' || n(9) WHERE id = one;
    UPDATE team SET v = 'touched ' || n(9) WHERE id = team;
    UPDATE paper SET v = 'touched ' || n(9), number = n(5) WHERE team_id = team AND number = n(5);
    UPDATE line SET v = 'touched ' || n(9) WHERE id = item;
  END CASE;
END $$;

CREATE FUNCTION hurt() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. n(4) LOOP
    BEGIN
      PERFORM act();
      SET CONSTRAINTS ALL IMMEDIATE;
      IF random() < 0.05 THEN RAISE EXCEPTION 'changed my mind'; END IF;
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
    SET CONSTRAINTS ALL DEFERRED;
  END LOOP;
END $$;

SELECT hurt() FROM generate_series(1, 500);
