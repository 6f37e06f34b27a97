"""The Transformer: encoder, decoder, or both (Vaswani et al. 2017).

BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019), GPT-2 (Radford et al. 2019), T5
(Raffel et al. 2020) and Llama (Touvron et al. 2023) are settings of its fields:
`lm/models/presets.py`.

    model = Model(**PRESETS["bert_tiny"], heads=(Head("mlm", "mlm"),))
    params = lm.training.step.make(model, objective).init(jax.random.key(0))
    hidden = model.apply({"params": params}, batch, train=False)

Parameters, where the fields ask for them:

    embed/{token,position,type}/embedding   embed/norm/{scale,bias}
    layers/attention/{query,key,value,output}/{kernel,bias}   (leading axis: layers)
    layers/attention_norm   layers/mlp/{up,gate,down}   layers/mlp_norm
    norm   relative/embedding   output/embedding   pooler   heads/<name>/...

With both stacks these are encoder/layers, encoder/norm and so on beside decoder/...,
whose layers have cross_attention and cross_attention_norm too.
"""

import functools
from collections.abc import Callable
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lm.errors import ConfigError
from lm.models.blocks.heads import FIRST, LAST, POOLED, Head, Heads
from lm.models.blocks.layers import (
    AttentionOptions,
    Compute,
    Dense,
    Dropout,
    RopeOptions,
    Shape,
    Table,
    constrain,
    shape_norm,
)
from lm.models.blocks.stack import Stack
from lm.ops.attention.dense import Places
from lm.ops.dense import project
from lm.ops.positions import sinusoidal

BOUNDS = {
    "vocab_size": "[1, inf)",
    "vocab_multiple": "[1, inf)",
    "num_layers": "[1, inf)",
    "encoder_layers": "[1, inf)",
    "d_model": "[1, inf)",
    "num_heads": "[1, inf)",
    "d_ff": "[1, inf)",
    "max_len": "[1, inf)",
    "position_offset": "[0, inf)",
    "token_types": "[0, inf)",
    "norm_epsilon": "(0, inf)",
    "softcap": "(0, inf)",
    "dropout": "[0, 1)",
    "init_std": "(0, inf)",
}
CHANGEABLE = ()

Batch = dict[str, jax.Array]
Cache = dict[str, Any]


class Embed(nn.Module):
    """The sum of token, position and type embeddings, with dropout."""

    shape: Shape
    vocab_size: int
    max_len: int
    position: str
    position_offset: int
    token_types: int
    embedding: str

    def setup(self):
        shape, dim = self.shape, self.shape.d_model
        # The published models that draw by fan-in have embeddings of deviation 1, also
        # those that draw them smaller and scale them up again.
        one = 1.0 if self.embedding == "plain" else dim**-0.5
        std = one if shape.init_std is None else shape.init_std
        self.token = Table(self.vocab_size, dim, "vocab", std)
        if self.position == "learned":
            rows = self.max_len + self.position_offset
            self.learned = Table(rows, dim, None, std, name="position")
        if self.token_types:
            self.type = Table(self.token_types, dim, None, std)
        if self.embedding == "norm":
            self.norm = shape_norm(shape)
        self.drop = Dropout(shape.dropout)

    def table(self) -> Float[Array, "V D"]:
        # Were it sharded over embed as well, a gather would make the compiler copy it.
        return constrain(self.token(), self.shape.compute.rules, "vocab", None)

    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        types: Int[Array, "B T"] | None,
        *,
        train: bool,
    ) -> Float[Array, "B T D"]:
        x = self.table()[tokens]
        if self.embedding == "scaled":
            x *= self.shape.d_model**0.5
        if self.position == "learned":
            length = tokens.shape[1]
            if length > self.max_len:
                raise ConfigError(
                    where="model.max_len",
                    found=f"{self.max_len} with rows of {length} tokens",
                    expected="a table of positions as long as the rows",
                    fix=f"set model.max_len={length} or a shorter seq_len",
                )
            x += self.learned()[positions + self.position_offset]
        elif self.position == "sinusoidal":
            x += sinusoidal(positions + self.position_offset, self.shape.d_model)
        if self.token_types:
            # RoBERTa has one type for both texts.
            x += self.type().at[types].get(mode="clip")
        if self.embedding == "norm":
            x = self.norm(x)
        x = self.drop(x.astype(self.shape.compute.dtype), train=train)
        return constrain(x, self.shape.compute.rules, "batch", "length", None)


class Model(nn.Module):
    """A Transformer; its fields are the options of config.model.

    Attributes:
      vocab_size: None only until the tokenizer is known.
      vocab_multiple: a vocab_size of None is the tokenizer's, up to a multiple of this.
      kind: which stacks it has; a decoder's tokens see those before them.
      num_layers: of each stack; encoder_layers of the encoder, if it is another number.
      max_len: the longest row; a learned table has max_len + position_offset rows.
      position: "relative" is a learned bias by distance (Raffel et al. 2020), "alibi" a
        fixed one (Press et al. 2022), "rope" a rotation (Su et al. 2021).
      position_offset: the row of a document's first token (2 in RoBERTa).
      token_types: kinds of segment (sentence A, sentence B); 0: no such embedding.
      norm_position: "post" as BERT, or "pre" with one more norm after the last layer.
      activation: of the feed-forward layers; the names in -glu are gated units.
      bias: which dense layers and norms have one; "qkv": query, key and value alone.
      embedding: "norm" as BERT, "scaled" by sqrt(d_model) (Vaswani et al. 2017, 3.4).
      output: of decoders; "tied" is the token embedding, "scaled" the same with states
        times d_model ** -0.5 (Raffel et al. 2020), "untied" a table of its own.
      softcap: bounds the logits by tanh.
      init_std: standard deviation, before truncation at two of them, of each matrix; in
        a pre-norm decoder the ones that end a residual branch are divided by
        sqrt(2 num_layers) (Radford et al. 2019, section 2.3). None: by fan-in.
      heads: what the objective needs.
    """

    vocab_size: int | None = None
    vocab_multiple: int = 8
    kind: Literal["encoder", "decoder", "encoder_decoder"] = "encoder"
    num_layers: int = 12
    encoder_layers: int | None = None
    d_model: int = 768
    num_heads: int = 12
    d_ff: int = 3072
    max_len: int = 512
    position: Literal["learned", "sinusoidal", "rope", "relative", "alibi", "none"] = (
        "learned"
    )
    position_offset: int = 0
    token_types: int = 2
    norm: Literal["layer", "rms"] = "layer"
    norm_position: Literal["post", "pre"] = "post"
    norm_epsilon: float = 1e-12
    activation: Literal[
        "gelu", "gelu_tanh", "relu", "silu", "geglu", "geglu_tanh", "reglu", "swiglu"
    ] = "gelu"
    bias: Literal["all", "none", "qkv"] = "all"
    embedding: Literal["plain", "norm", "scaled"] = "norm"
    output: Literal["tied", "scaled", "untied"] = "tied"
    softcap: float | None = None
    dropout: float = 0.1
    init_std: float | None = 0.02
    attention: AttentionOptions = AttentionOptions()
    rope: RopeOptions = RopeOptions()
    compute: Compute = Compute()
    heads: tuple[Head, ...] = ()

    @property
    def shape(self) -> Shape:
        deep = self.kind == "decoder" and self.norm_position == "pre"
        residual = (2 * self.num_layers) ** -0.5 if deep and self.init_std else 1.0
        return Shape(
            d_model=self.d_model,
            num_heads=self.num_heads,
            d_ff=self.d_ff,
            position=self.position,
            norm=self.norm,
            norm_position=self.norm_position,
            norm_epsilon=self.norm_epsilon,
            activation=self.activation,
            bias=self.bias,
            dropout=self.dropout,
            init_std=self.init_std,
            residual_scale=residual,
            attention=self.attention,
            rope=self.rope,
            compute=self.compute,
        )

    def setup(self):
        shape, compute = self.shape, self.compute
        std = shape.std(self.d_model)
        self.embed = Embed(
            shape,
            self.vocab_size,
            self.max_len,
            self.position,
            self.position_offset,
            self.token_types,
            self.embedding,
        )
        if self.kind == "encoder_decoder":
            layers = self.encoder_layers or self.num_layers
            self.encoder = Stack(shape, layers, causal=False)
            self.decoder = Stack(shape, self.num_layers, causal=True, cross=True)
        else:
            self.stack = Stack(shape, self.num_layers, causal=self.kind == "decoder")
            nn.share_scope(self, self.stack)
        if self.kind != "encoder" and self.output == "untied":
            self.untied = Table(
                self.vocab_size, self.d_model, "vocab", std, name="output"
            )
        if any(head.kind in POOLED for head in self.heads):
            dim = (self.d_model,)
            self.pooler = Dense(dim, dim, ("embed", None), std, compute)
        if self.heads:
            self.drop = Dropout(self.dropout)
            self.all_heads = Heads(self.heads, shape, self.vocab_size, name="heads")

    def __call__(self, batch: Batch, *, train: bool) -> Float[Array, "B T D"]:
        """Hidden states of the last layer; with two stacks, of the decoder.

        Args:
          batch: `inputs`, `positions`, `segment_ids` and, where the model has such
            embeddings, `token_types`, each (B, T); for the encoder of two stacks the
            same with `source_` before the name. A token sees its own segment only, and
            in a decoder what is not after it or stands in the `prefix`, (B, T) bool.
          train: whether dropout is on; it needs the rng stream "dropout".
        """
        x, places = self._embed(batch, "", train)
        if self.kind != "encoder_decoder":
            return self.stack(x, places, train=train)[0]
        encoded = self.encode(batch, train=train)
        source = _places(batch, "source_")
        return self.decoder(x, places, train=train, encoded=encoded, source=source)[0]

    def encode(self, batch: Batch, *, train: bool) -> Float[Array, "B S D"]:
        """The encoder's states, of a model with two stacks."""
        x, places = self._embed(batch, "source_", train)
        return self.encoder(x, places, train=train)[0]

    def _embed(self, batch: Batch, side: str, train: bool) -> tuple[jax.Array, Places]:
        places = _places(batch, side)
        tokens, types = batch[f"{side}inputs"], batch.get(f"{side}token_types")
        return self.embed(tokens, places.positions, types, train=train), places

    def make_cache(self, rows: int, length: int, source_length: int = 0) -> Cache:
        """An empty cache of a decoder's keys and values, for `extend`.

        Args:
          rows: texts that are continued side by side.
          length: places of each, padding included.
          source_length: of the encoder's side.
        """
        shape = self.shape

        def pair(places: int) -> dict[str, jax.Array]:
            size = (self.num_layers, rows, shape.kv_heads, places, shape.head_dim)
            dtype = jnp.dtype(self.compute.dtype)
            return {name: jnp.zeros(size, dtype) for name in ("key", "value")}

        def places(count: int) -> Places:
            empty = jnp.zeros((rows, count), jnp.int32)
            return Places(empty, empty, empty.astype(bool))

        cache = {
            "used": jnp.zeros((), jnp.int32),
            "places": places(length),
            "layers": {"attention": pair(length)},
        }
        if self.kind == "encoder_decoder":
            cache["source"] = places(source_length)
            cache["layers"]["cross_attention"] = pair(source_length)
        return cache

    def extend(self, batch: Batch, cache: Cache) -> tuple[Float[Array, "B T D"], Cache]:
        """Hidden states of new tokens after those of the cache, and the cache grown.

        The first call of an encoder-decoder brings the encoder's side of the batch too;
        its keys and values stay in the cache.

        Args:
          batch: as for a call; positions count within the text, of which the cache
            holds the beginning.
          cache: of `make_cache`, with room for the new tokens: the caller sees to it,
            for what is beyond would overwrite the last places.
        """
        x, _ = self._embed(batch, "", False)
        full, slot = _places(batch, "", prefix=True), cache["used"]
        known = jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, slot, 1),
            cache["places"],
            full,
        )
        options = {"key": known, "cache": cache["layers"], "slot": slot, "train": False}
        cache = cache | {"used": slot + x.shape[1], "places": known}
        if self.kind == "encoder_decoder":
            if "source_inputs" in batch:
                options["encoded"] = self.encode(batch, train=False)
                cache["source"] = _places(batch, "source_", prefix=True)
            hidden, layers = self.decoder(x, full, source=cache["source"], **options)
        else:
            hidden, layers = self.stack(x, full, **options)
        return hidden, cache | {"layers": layers}

    def token_head(self) -> tuple[Float[Array, "V D"], Callable]:
        """The table of output embeddings, and (hidden, table) -> float32 logits."""
        table = self.untied() if self.output == "untied" else self.embed.table()
        return table, functools.partial(
            project,
            scale=self.d_model**-0.5 if self.output == "scaled" else 1.0,
            softcap=self.softcap,
            precision=self.compute.precision,
        )

    def logits(self, hidden: Float[Array, "*any D"]) -> Float[Array, "*any V"]:
        """Of the next word, or of the masked one, float32.

        An encoder's are those of its masked-word head: give it the masked places only,
        (B, K, D).
        """
        if self.kind == "encoder":
            name = next(head.name for head in self.heads if head.kind == "mlm")
            return self.all_heads(name, hidden, self.embed.table())
        table, logits = self.token_head()
        return logits(hidden, table)

    def head(
        self,
        name: str,
        hidden: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "B *T C"]:
        """A head's outputs, float32, of each row; of a token head, of each token.

        Args:
          segment_ids: of the batch, for a head on the last token that is no padding.

        Raises:
          ConfigError: the head is on the first token, which in a decoder sees no other.
        """
        kind = next(head.kind for head in self.heads if head.name == name)
        if kind in FIRST and self.kind != "encoder":
            raise ConfigError(
                where="model.kind",
                found=f"{self.kind!r} with a head on the first token",
                expected="'encoder', where that token sees the whole row",
                fix="a decoder's row is read at its last token: objective.summary=last "
                "or, with an encoder, decoder",
            )
        if kind in FIRST:
            hidden = hidden[:, 0]
        elif kind in LAST:
            after = jnp.argmax(segment_ids[:, ::-1] != 0, axis=1)
            place = hidden.shape[1] - 1 - after
            hidden = jnp.take_along_axis(hidden, place[:, None, None], axis=1)[:, 0]
        if kind in POOLED:
            hidden = POOLED[kind](self.pooler(hidden))
        return self.all_heads(name, self.drop(hidden, train=train)).astype(jnp.float32)

    def touch(self) -> None:
        """Goes through every module once, so that `init` makes every parameter."""
        one = jnp.zeros((1, 1), jnp.int32)
        names = ("inputs", "positions", "segment_ids", "token_types")
        batch = {f"{side}{name}": one for side in ("", "source_") for name in names}
        hidden = self(batch, train=False)
        # A classifier of texts has no table of words of its own to say.
        if self.kind != "encoder" and not self.heads:
            self.logits(hidden)
        for head in self.heads:
            if head.kind == "mlm":
                self.logits(hidden)
            else:
                self.head(head.name, hidden, batch["segment_ids"], train=False)


def _places(batch: Batch, side: str, prefix: bool = False) -> Places:
    """Of a side's tokens; with `prefix` always saying which belong to one."""
    positions, segments = batch[f"{side}positions"], batch[f"{side}segment_ids"]
    marked = batch.get(f"{side}prefix")
    if marked is None and prefix:
        marked = jnp.zeros_like(segments, bool)
    return Places(positions, segments, marked)
