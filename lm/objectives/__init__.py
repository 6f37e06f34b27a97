"""Objectives: the examples of a task (host) and its loss (device), one file each.

Models are not defined here. Start with `base.py` and `mlm.py`.
"""
