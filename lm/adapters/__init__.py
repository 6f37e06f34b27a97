"""Wrappers of a model that train a few parameters beside frozen ones.

Each file is one, which `config.adapter.name` names; `none.py` leaves a model as it is.
What each defines is `lm.adapters.base.Adapter`. Where the frozen weights come from, and
how a checkpoint names them, is in `lm/adapted.py`.
"""
