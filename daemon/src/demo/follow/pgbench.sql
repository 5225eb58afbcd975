BEGIN;
INSERT INTO pgbench_history (tid, bid, aid, delta, mtime, filler) VALUES (0, {tenant}, 0, 1, now(), 'follows the routes');
UPDATE pgbench_branches SET bbalance = bbalance + 1 WHERE bid = {tenant};
COMMIT;
