"""The mathematics: arrays in, arrays out, jax only.

Shapes use one legend: B batch, T query position, S key position, N heads, K masked
positions of a row (or key-value heads, in attention), H head dim, D model dim, F
feed-forward dim, V vocabulary.
"""
