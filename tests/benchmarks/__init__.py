"""How fast the core is, next to floors and a peer measured in the same run.

``python -m pytest -m benchmark tests/benchmarks`` runs all of it (about a minute), prints a table
and writes it to ``build/benchmarks.md`` and ``.json`` (``--benchmark-report`` names another place).
Without ``-m benchmark`` nothing here is selected.

The two sides of every comparison take turns, so that a machine that is busy for a while slows both:
quote the ratios, not the milliseconds.
"""
