"""How the gradient of a step is made: one file each, which `config.update.name` names.

Start with `plain.py`; what each file defines is `lm.updates.base.Update`. The
optimiser, and what a step measures, are in `lm/training`.
"""
