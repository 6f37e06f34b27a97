"""What the machine gives: signals, exit codes, files, locks, clocks, limits on waiting.

Nothing here knows a model or a config. Start with `process.py`; every byte that must
last is written through `storage.py`.
"""
