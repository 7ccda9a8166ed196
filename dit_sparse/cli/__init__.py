"""The ``dit-sparse`` command. Thin: it reads options, calls :mod:`dit_sparse.report`, and prints."""
