"""Attention: `dense.py` is the definition, `kernels.py` the fused implementations.

`limits.py` has what each implementation supports and imports no jax, so that a config
is checked before it is loaded.
"""
