-- One random transaction's work on Chinook, `sell()`: representatives sell, customers go to another representative
-- with all their invoices, the catalogue changes for everybody.
CREATE FUNCTION n(most integer) RETURNS integer LANGUAGE sql VOLATILE AS 'SELECT 1 + floor(random() * most)::integer';

CREATE FUNCTION act() RETURNS void LANGUAGE plpgsql AS $$
DECLARE one integer := n(90); bill integer := n(600); what integer := n(20); line integer := n(4000);
BEGIN
  CASE what
  WHEN 1 THEN UPDATE customer SET support_rep_id = 2 + n(3) WHERE customer_id = one;
  WHEN 2 THEN
    UPDATE customer SET support_rep_id = 2 + n(3), company = 'given' WHERE customer_id IN (one, n(90));
    UPDATE invoice SET billing_city = 'moved' WHERE customer_id = one;
    INSERT INTO invoice_line SELECT n(4000), invoice_id, n(3503), 0.99, 1 FROM invoice WHERE customer_id = one LIMIT 1;
  WHEN 3 THEN
    INSERT INTO customer (customer_id, first_name, last_name, email, support_rep_id)
      VALUES (one, 'New', 'Customer', 'new@example.org', 2 + n(3));
    INSERT INTO invoice (invoice_id, customer_id, invoice_date, total) VALUES (bill, one, now(), 9.99);
  WHEN 4 THEN
    DELETE FROM invoice_line WHERE invoice_id IN (SELECT invoice_id FROM invoice WHERE customer_id = one);
    DELETE FROM invoice WHERE customer_id = one;
    DELETE FROM customer WHERE customer_id = one;
  WHEN 5 THEN UPDATE invoice SET customer_id = one WHERE invoice_id = bill;
  WHEN 6 THEN UPDATE invoice_line SET invoice_id = bill, quantity = n(9) WHERE invoice_line_id = line;
  WHEN 7 THEN UPDATE track SET unit_price = n(300) / 100.0 WHERE track_id = n(3503);
  WHEN 8 THEN
    INSERT INTO album (album_id, title, artist_id) VALUES (400 + n(200), 'New', n(275));
    INSERT INTO track (track_id, name, album_id, media_type_id, milliseconds, unit_price)
      SELECT 3503 + n(500), 'New', max(album_id), 1, 1000, 0.99 FROM album;
    INSERT INTO playlist_track SELECT n(18), max(track_id) FROM track;
  WHEN 9 THEN DELETE FROM playlist_track WHERE track_id = n(3503); UPDATE artist SET name = name || '.' WHERE artist_id = n(275);
  WHEN 10 THEN DELETE FROM invoice_line WHERE invoice_line_id = line;
  WHEN 11 THEN UPDATE invoice SET invoice_id = 600 + n(200) WHERE invoice_id = bill;
  WHEN 12 THEN UPDATE employee SET title = 'rank ' || n(99) WHERE employee_id = n(8);
  WHEN 13 THEN
    DELETE FROM invoice_line WHERE invoice_id = bill; DELETE FROM invoice WHERE invoice_id = bill;
    INSERT INTO invoice (invoice_id, customer_id, invoice_date, total) VALUES (bill, one, now(), n(99));
    INSERT INTO invoice_line SELECT n(4000), bill, n(3503), 0.99, n FROM generate_series(1, 1) n;
  WHEN 14, 15 THEN
    INSERT INTO invoice (invoice_id, customer_id, invoice_date, total) VALUES (bill, one, now(), n(99));
    INSERT INTO invoice_line VALUES (line, bill, n(3503), 0.99, n(5));
  ELSE
    UPDATE invoice SET total = n(9999) / 100.0 WHERE invoice_id = bill;
    UPDATE invoice_line SET quantity = n(9) WHERE invoice_line_id = line;
    UPDATE customer SET phone = n(99999)::text WHERE customer_id = one;
  END CASE;
END $$;

CREATE FUNCTION sell() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
  FOR i IN 1 .. n(3) LOOP
    BEGIN
      PERFORM act();
      IF random() < 0.05 THEN RAISE EXCEPTION 'changed my mind'; END IF;
    EXCEPTION WHEN OTHERS THEN NULL;
    END;
  END LOOP;
END $$;
