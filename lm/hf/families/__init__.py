"""One file for each family of Hugging Face: a table that is used in both directions.

`base.py` has what a family is, `table.py` how a table is applied. Start with `bert.py`.
"""
