"""Objectives: a task's data on the host and its loss on the device, one file each.

Models are not defined here. Start with `base.py` and `mlm.py`.
"""
