"""What to do about bloat, in which order, and what stands in the way.

    figures.py     what is known of a table beyond its bloat: counters, settings, indexes, running VACUUMs    (pure)
    cost.py        how long things take, estimated from sizes                                                (pure)
    advice.py      what is told: actions with reason, command, cost and gain                                 (pure)
    vacuuming.py   rules: VACUUM, its memory, autovacuum's settings, freezing
    rewriting.py   rules: repack, with an order perhaps, reindex, fillfactor
    dropping.py    rules: indexes that are there twice, or that nobody uses
    statistics.py  figures from the server: a query per topic, however many tables there are
    survey.py      which tables are looked at, and what is told of them

What is bloated is found out by `pglean.bloat`, who holds the vacuum horizon by `pglean.horizon`. Nothing here writes.
A rule gives an action only where the figures bear it out; where none does, there is nothing to do, which is said.
"""
