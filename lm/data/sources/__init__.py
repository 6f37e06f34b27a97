"""Sources of records: one file for each kind, named by `data.sources`.

Start with `base.py`.
"""
