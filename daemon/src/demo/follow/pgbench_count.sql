SELECT count(*) FROM pgbench_history WHERE bid = {tenant} AND filler = 'follows the routes'
