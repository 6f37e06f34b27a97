"""A stack of Transformer layers, scanned: encoders, decoders, and those with both."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm.models.blocks.layers import (
    Attention,
    Context,
    Dropout,
    FeedForward,
    Shape,
    Table,
    constrain,
    rematerialised,
    shape_norm,
)
from lm.ops.attention.dense import TokenLayout
from lm.ops.positions import alibi_slopes, relative_bucket, rotary_frequencies, rotation

BIASED = ("relative", "alibi")  # positions that add a bias to the scores

Cache = dict[str, dict[str, jax.Array]] | None


class Layer(nn.Module):
    """Computes attention and feed-forward, each with dropout, residual and norm.

    With `cross`, attention to an encoder's states comes between the two (Vaswani et al.
    2017, section 3.1).
    """

    shape: Shape
    causal: bool
    cross: bool

    def setup(self):
        shape = self.shape
        self.attention = Attention(shape, self.causal)
        self.attention_norm = shape_norm(shape)
        if self.cross:
            self.cross_attention = Attention(shape, self.causal, cross=True)
            self.cross_attention_norm = shape_norm(shape)
        self.mlp = FeedForward(shape)
        self.mlp_norm = shape_norm(shape)
        self.drop = Dropout(shape.dropout)

    def __call__(
        self, x: Float[Array, "B T D"], cache: Cache, context: Context, train: bool
    ) -> tuple[Float[Array, "B T D"], Cache]:
        cached = {} if cache is None else dict(cache)
        parts = [("attention", self.attention, self.attention_norm)]
        if self.cross:
            cross = self.cross_attention, self.cross_attention_norm
            parts.append(("cross_attention", *cross))
        for name, attention, norm in parts:
            given = norm(x) if self.shape.norm_position == "pre" else x
            y, new = attention(given, cached.get(name), context, train=train)
            if cache is not None:
                cached[name] = new
            x = x + self.drop(y, train=train)
            x = norm(x) if self.shape.norm_position == "post" else x
        if self.shape.norm_position == "pre":
            x = x + self.drop(self.mlp(self.mlp_norm(x)), train=train)
        else:
            x = self.mlp_norm(x + self.drop(self.mlp(x), train=train))
        x = constrain(x, self.shape.compute.rules, "batch", "length", None)
        self.sow("intermediates", "states", x)
        return x, None if cache is None else cached


class Stack(nn.Module):
    """Computes layers one after the other, and the last norm of a pre-norm model.

    Axis 0 of the layers' parameters and caches has an entry for each layer. Rotary
    embeddings and biases by distance are computed here, once for all layers.
    """

    shape: Shape
    num_layers: int
    causal: bool
    cross: bool = False

    def setup(self):
        shape, compute = self.shape, self.shape.compute
        self.layers = nn.scan(
            rematerialised(Layer, compute, static=(4,)),
            variable_axes={"params": 0, "intermediates": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=self.num_layers,
            unroll=compute.unroll or self.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )(shape, self.causal, self.cross)
        if shape.position == "relative":
            # One table for all layers (Raffel et al. 2020, section 2.1).
            buckets, std = shape.attention.buckets, shape.std(shape.d_model)
            self.relative = Table(buckets, shape.num_heads, None, std, "heads")
        if shape.norm_position == "pre":
            self.norm = shape_norm(shape)

    def __call__(
        self,
        x: Float[Array, "B T D"],
        query: TokenLayout,
        *,
        train: bool,
        key: TokenLayout | None = None,
        cache: Cache = None,
        slot: Int[Array, ""] | None = None,
        encoded: Float[Array, "B S D"] | None = None,
        source: TokenLayout | None = None,
    ) -> tuple[Float[Array, "B T D"], Cache]:
        """Returns the states of the last layer, and the cache with this call's tokens.

        Args:
          query: layout of x.
          key: layout of all tokens of the cache, x included; None: of x alone.
          slot: index in the cache of the first token of x.
          encoded, source: the encoder's states and their layout.
        """
        key = query if key is None else key
        context = Context(
            query=query,
            key=key,
            bias=self._bias(query.positions, key.positions),
            rotary=self._rotary(query.positions),
            slot=slot,
            encoded=encoded,
            source=source,
        )
        x, cache = self.layers(x, cache, context, train)
        return (self.norm(x) if self.shape.norm_position == "pre" else x), cache

    def _rotary(self, positions: Int[Array, "B T"]) -> jax.Array | None:
        if self.shape.position != "rope":
            return None
        options = dataclasses.asdict(self.shape.rope)
        frequencies = rotary_frequencies(self.shape.head_dim, **options)
        return rotation(positions, frequencies)

    def _bias(
        self, query: Int[Array, "B T"], key: Int[Array, "B S"]
    ) -> Float[Array, "B N T S"] | None:
        if self.shape.position not in BIASED:
            return None
        behind = query[:, :, None] - key[:, None, :]
        if self.shape.position == "alibi":
            slopes = alibi_slopes(self.shape.num_heads)[:, None, None]
            return -jnp.asarray(slopes) * jnp.abs(behind)[:, None].astype(jnp.float32)
        options = self.shape.attention
        bucket = relative_bucket(
            behind,
            causal=self.causal,
            buckets=options.buckets,
            max_distance=options.max_distance,
        )
        return jnp.moveaxis(self.relative()[bucket], -1, 1)
