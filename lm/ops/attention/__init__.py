"""Attention: `dense.py` is the definition, and each kernel is a file.

`kernels.py` calls the kernel of a name; what each supports stands in its `LIMITS`,
which `limits.py` reads without importing jax: a config is checked before it is loaded.
"""
