"""Deals with the machine: signals, exit codes, files, locks, clocks, time limits.

Nothing here knows a model or a config. Start with `process.py`; every file that must
survive a crash is written through `storage.py`.
"""
