"""Measure a generation and report it: timed runs, metrics on raw frames, videos, a JSON and an HTML page.

The usual way in is :mod:`dit_sparse.report.compare`: ``generate_pair`` runs dense and sparse from one seed,
``write_comparison`` writes the folder. Nothing here is imported before it is used, so that importing the
library does not need the ``report`` extra.
"""
