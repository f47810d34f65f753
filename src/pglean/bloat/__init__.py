"""How much of a table is bloat: what it holds, what is free in it, and what a repack would leave.

    figures.py     what is known of a table and its indexes                        (pure)
    estimate.py    what a repack would leave, by the page layouts                  (pure)
    finding.py     what is told of a table                                         (pure)
    verdict.py     what was found, held against thresholds                         (pure)
    statistics.py  figures from the server's statistics: a few queries for a whole database, no table is read
    measure.py     figures from pgstattuple, where that extension is there
    sample.py      figures from some blocks of the table
    density.py     how full a table is along its file
    survey.py      which method is taken for which table, and what is told

Nothing here writes, needs the schema `pglean`, or a right that the role has not; what it may not see is said.
"""
