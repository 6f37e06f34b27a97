"""What gradient training is made of: the update, the optimiser, the mesh, the guard.

The loop itself is `lm/train.py`. Start with `step.py`.
"""
