"""Reads files of tensors: safetensors, msgpack and TensorFlow 1.

Nothing is unpickled and jax is not imported. Start with `tensors.py`.
"""
