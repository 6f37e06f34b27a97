"""Flax modules that models are built of: layers, stacks of them, heads.

The mathematics is in `lm/ops`. Start with `layers.py`.
"""
