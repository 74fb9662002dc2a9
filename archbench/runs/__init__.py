"""One run: an architecture at one configuration, phase after phase, rows out.

The way of a row: a phase (``train``, ``quality``, ``positions``, ``speed``) adds it to its
:class:`~archbench.runs.rows.Rows` in a child process (``worker``); ``phase`` receives the rows, adds what the machine
did meanwhile, and keeps them in the run's ``folder``; ``run`` collects the phases' rows and writes the run's Parquet
file (:mod:`archbench.results.store`).
"""
