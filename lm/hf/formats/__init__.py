"""Formats of files that hold tensors: safetensors, msgpack, TensorFlow 1.

Nothing is unpickled and jax is not imported. Start with `tensors.py`.
"""
