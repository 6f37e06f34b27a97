"""Holds a file for each family of Hugging Face: a table used in both directions.

`base.py` defines a family, and `table.py` applies its table. Start with `bert.py`.
"""
