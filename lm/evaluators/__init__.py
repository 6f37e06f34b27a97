"""Evaluations of a run, one file for each kind, named by `evals.<name>.evaluator`.

Figures are computed in `lm/metrics`. Start with `base.py` and `mean.py`.
"""
