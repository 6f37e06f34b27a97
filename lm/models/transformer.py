"""The Transformer: encoder, decoder, or both (Vaswani et al. 2017).

BERT (Devlin et al. 2019), RoBERTa (Liu et al. 2019), GPT-2 (Radford et al. 2019), T5
(Raffel et al. 2020) and Llama (Touvron et al. 2023) are settings of its fields:
`lm/models/presets.py`.

    masked = Head("mlm", MaskedToken, logits=True)
    model = Model(**PRESETS["bert_tiny"], heads=(masked,))
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
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PyTree

from lm.errors import Rule, require
from lm.models.base import Batch, Compute, Head, Rows, Shapes, Trunk
from lm.models.blocks.embed import Embed
from lm.models.blocks.heads import Heads
from lm.models.blocks.layers import AttentionOptions, RopeOptions, Shape, Table
from lm.models.blocks.stack import BIASED, Stack
from lm.ops.activations import GATES
from lm.ops.attention.dense import TokenLayout
from lm.ops.attention.limits import Requirements, check_implementation
from lm.ops.dense import project

BOUNDS = {
    "vocab_size": "[1, 16777216]",
    "vocab_multiple": "[1, 1048576]",
    "num_layers": "[1, 4096]",
    "encoder_layers": "[1, 4096]",
    "d_model": "[1, 1048576]",
    "num_heads": "[1, 65536]",
    "d_ff": "[1, 4194304]",
    "max_len": "[1, 16777216]",
    "position_offset": "[0, 16777216]",
    "token_types": "[0, 65536]",
    "norm_epsilon": "(0, inf)",
    "softcap": "(0, inf)",
    "dropout": "[0, 1)",
    "init_std": "(0, inf)",
}
CHANGEABLE = ()

Cache = dict[str, Any]


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
      token_types: number of segment types (sentence A, sentence B); 0: no embedding.
      norm_position: "post" as BERT, or "pre" with one more norm after the last layer.
      activation: of the feed-forward layers; names that end in "glu" are gated units.
      bias: which dense layers and norms have one; "qkv": query, key and value alone;
        "attention", "mlp": the dense layers of that part alone, no norm.
      embedding: "norm" as BERT, "scaled" by sqrt(d_model) (Vaswani et al. 2017, 3.4).
      output: of decoders; "tied" is the token embedding, "scaled" the same with states
        times d_model ** -0.5 (Raffel et al. 2020), "untied" a table of its own.
      softcap: bounds the logits by tanh.
      init_std: standard deviation, before truncation at two of them, of each matrix; in
        a pre-norm decoder the ones that end a residual branch are divided by
        sqrt(2 num_layers) (Radford et al. 2019, section 2.3). None: by fan-in.
      heads: the heads that the objective needs.
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
    bias: Literal["all", "none", "qkv", "attention", "mlp"] = "all"
    embedding: Literal["plain", "norm", "scaled"] = "norm"
    output: Literal["tied", "scaled", "untied"] = "tied"
    softcap: float | None = None
    dropout: float = 0.1
    init_std: float | None = 0.02
    attention: AttentionOptions = AttentionOptions()
    rope: RopeOptions = RopeOptions()
    compute: Compute = Compute()
    heads: tuple[Head, ...] = ()

    vectors_at: ClassVar[str] = "embed/token/embedding"

    def __post_init__(self):
        require(_rules(self))
        check_implementation(self.compute.attention, _requirements(self))
        super().__post_init__()

    @property
    def can(self) -> frozenset[str]:
        """Returns what the model can do (lm.models.base.ABILITIES)."""
        words = {"embeds", "hidden", "head"}
        if self.kind == "encoder":
            words |= {"whole"}
        if self.kind != "encoder_decoder":
            words |= {"layers"}
        if self.kind != "encoder":
            words |= {"logits", "causal", "extend"}
            words |= {"prefix" if self.kind == "decoder" else "encode"}
        if any(head.logits for head in self.heads):
            words |= {"logits"}
        if self.position != "learned":
            words |= {"beyond"}
        return frozenset(words)

    @property
    def reads(self) -> frozenset[str]:
        """Returns the keys of a batch beside inputs, positions and segment_ids."""
        names = {"token_types"} if self.token_types else set()
        if self.kind == "encoder_decoder":
            sides = ("inputs", "positions", "segment_ids", *names)
            names |= {f"source_{name}" for name in sides}
        return frozenset(names)

    @property
    def context(self) -> int:
        """Returns the length of the longest row."""
        return self.max_len

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
        shape = self.shape
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
            std = shape.std(self.d_model)
            self.untied = Table(
                self.vocab_size, self.d_model, "vocab", std, name="output"
            )
        self.head_modules = Heads(self.heads, self._trunk())
        nn.share_scope(self, self.head_modules)

    def _trunk(self) -> Trunk:
        return Trunk(
            d_model=self.d_model,
            vocab_size=self.vocab_size or 0,
            std=self.shape.std(self.d_model),
            dropout=self.dropout,
            bidirectional=self.kind == "encoder",
            activation=self.activation,
            norm=self.norm,
            norm_epsilon=self.norm_epsilon,
            use_bias=self.bias == "all",
            compute=self.compute,
        )

    def __call__(self, batch: Batch, *, train: bool) -> Float[Array, "B T D"]:
        """Computes the hidden states of the last layer; with two stacks, the decoder's.

        Args:
          batch: `inputs`, `positions`, `segment_ids` and, where the model has such
            embeddings, `token_types`, each (B, T); for the encoder of two stacks the
            same with `source_` before the name. A token sees only its own segment, and
            in a decoder only tokens that are not after it or are in the `prefix`,
            (B, T) bool, which a batch may have.
          train: whether dropout is on; it needs the rng stream "dropout".
        """
        x, layout = self._embed(batch, "", train)
        if self.kind != "encoder_decoder":
            return self.stack(x, layout, train=train)[0]
        encoded = self.encode(batch, train=train)
        source = _layout(batch, "source_")
        return self.decoder(x, layout, train=train, encoded=encoded, source=source)[0]

    def encode(self, batch: Batch, *, train: bool) -> Float[Array, "B S D"]:
        """Computes the encoder's states, in a model with two stacks."""
        x, layout = self._embed(batch, "source_", train)
        return self.encoder(x, layout, train=train)[0]

    def _embed(
        self, batch: Batch, side: str, train: bool
    ) -> tuple[jax.Array, TokenLayout]:
        layout = _layout(batch, side)
        tokens = batch[f"{side}inputs"]
        types = batch[f"{side}token_types"] if self.token_types else None
        x = self.embed(tokens, layout.positions, types, train=train)
        self.sow("intermediates", "embedded", x)
        return x, layout

    def layer_states(self, variables: PyTree) -> Float[Array, "N B T D"]:
        """Returns the embeddings, and the states after each layer of the only stack."""
        kept = variables["intermediates"]
        (embedded,), (states,) = kept["embedded"], kept["layers"]["states"]
        return jnp.concatenate([embedded[None].astype(states.dtype), states])

    def make_cache(self, rows: int, length: int, source_length: int = 0) -> Cache:
        """Makes an empty cache of a decoder's keys and values, for `extend`.

        Args:
          rows: how many texts are continued side by side.
          length: tokens of each, padding included.
          source_length: tokens of each source, with an encoder.
        """
        shape = self.shape

        def pair(count: int) -> dict[str, jax.Array]:
            size = (self.num_layers, rows, shape.kv_heads, count, shape.head_dim)
            dtype = jnp.dtype(self.compute.dtype)
            return {name: jnp.zeros(size, dtype) for name in ("key", "value")}

        def layout(count: int) -> TokenLayout:
            empty = jnp.zeros((rows, count), jnp.int32)
            return TokenLayout(empty, empty, empty.astype(bool))

        cache: dict[str, Any] = {
            "used": jnp.zeros((), jnp.int32),
            "layout": layout(length),
            "layers": {"attention": pair(length)},
        }
        if self.kind == "encoder_decoder":
            cache["source"] = layout(source_length)
            cache["layers"]["cross_attention"] = pair(source_length)
        return cache

    def cache_rows(self) -> PyTree:
        """Returns the row axes; all continuations of a prompt have the same layout."""
        own, source = Rows(1, stacked=True), Rows(1, stacked=True, shared=True)
        rows = {"used": Rows(None), "layout": Rows(shared=True)}
        if self.kind != "encoder_decoder":
            return rows | {"layers": {"attention": own}}
        layers = {"attention": own, "cross_attention": source}
        return rows | {"source": Rows(shared=True), "layers": layers}

    def extend(self, batch: Batch, cache: Cache) -> tuple[Float[Array, "B T D"], Cache]:
        """Computes hidden states of tokens that follow those of the cache.

        In an encoder-decoder, the batch of the first call has the source too, whose
        keys and values stay in the cache.

        Args:
          batch: as in a call; positions count from the beginning of the text, which is
            in the cache.
          cache: of `make_cache`. The caller makes sure that the new tokens fit, since
            tokens beyond its end would overwrite the last ones.

        Returns:
          The hidden states, and the cache with the new tokens.
        """
        x, _ = self._embed(batch, "", False)
        new, slot = _layout(batch, "", prefix=True), cache["used"]
        known = jax.tree.map(
            lambda old, new: jax.lax.dynamic_update_slice_in_dim(old, new, slot, 1),
            cache["layout"],
            new,
        )
        options = {"key": known, "cache": cache["layers"], "slot": slot, "train": False}
        cache = cache | {"used": slot + x.shape[1], "layout": known}
        if self.kind == "encoder_decoder":
            if "source_inputs" in batch:
                options["encoded"] = self.encode(batch, train=False)
                cache["source"] = _layout(batch, "source_", prefix=True)
            hidden, layers = self.decoder(x, new, source=cache["source"], **options)
        else:
            hidden, layers = self.stack(x, new, **options)
        return hidden, cache | {"layers": layers}

    def vectors(self, ids: Int[Array, "*any"]) -> Float[Array, "*any D"]:
        """Returns the vectors of tokens."""
        return self.embed.table()[ids]

    def token_head(self) -> tuple[Float[Array, "V D"], Callable]:
        """Returns the output embeddings, and (hidden, table) -> float32 logits."""
        table = self.untied() if self.output == "untied" else self.embed.table()
        return table, functools.partial(
            project,
            scale=self.d_model**-0.5 if self.output == "scaled" else 1.0,
            softcap=self.softcap,
            precision=self.compute.precision,
        )

    def logits(self, hidden: Float[Array, "*any D"]) -> Float[Array, "*any V"]:
        """Computes float32 logits of the next token, or of the masked one.

        An encoder's come from its head for masked tokens, which needs the states of
        masked tokens only, (B, K, D).
        """
        if any(head.logits for head in self.heads):
            return self.head_modules.logits(hidden, self.embed.table())
        table, logits = self.token_head()
        return logits(hidden, table)

    def head(
        self,
        name: str,
        hidden: Float[Array, "B T D"],
        segment_ids: Int[Array, "B T"] | None = None,
        *,
        train: bool,
    ) -> PyTree:
        """Computes the output of a head; see `lm.models.blocks.heads.Heads`."""
        return self.head_modules(name, hidden, segment_ids, train=train)

    def touch(self) -> None:
        """Calls every module once, so that `init` creates every parameter."""
        one = jnp.zeros((1, 1), jnp.int32)
        names = ("inputs", "positions", "segment_ids", "token_types")
        batch = {f"{side}{name}": one for side in ("", "source_") for name in names}
        hidden = self(batch, train=False)
        if self.heads:
            # A classifier of texts has no table of output embeddings.
            self.head_modules.touch(hidden, self.embed.table())
        elif "logits" in self.can:
            self.logits(hidden)

    def flops(self, batch: Shapes) -> float:
        """Counts the FLOPs that one update needs, without recomputation.

        They are 3 (forward, and twice that backward) x 2 x the multiplications of each
        token with the kernels of its layers, of scores and sums of attention
        (2 x T x S x N x H a layer) and of each target with the vocabulary head. Masked
        scores count as well.
        """
        shape, dim = self.shape, self.d_model
        wide, narrow = (n * shape.head_dim for n in (self.num_heads, shape.kv_heads))
        matrices = 3 if self.activation in GATES else 2

        def attention(queries: int, keys: int) -> int:
            kernels = queries * 2 * dim * wide + keys * 2 * dim * narrow
            return kernels + 2 * queries * keys * wide

        def layer(tokens: int) -> int:
            return attention(tokens, tokens) + tokens * matrices * dim * self.d_ff

        vocab = self.vocab_size or 0
        rows, length = batch["inputs"].shape
        products = self.num_layers * layer(length)
        if self.kind == "encoder_decoder":
            source = batch["source_inputs"].shape[1]
            layers = self.encoder_layers or self.num_layers
            products += layers * layer(source)
            products += self.num_layers * attention(length, source)
        if "target_positions" in batch:
            targets = batch["target_positions"].shape[1]
            products += targets * dim * (vocab + dim)
        elif "targets" in batch:
            products += length * dim * vocab
        return 6.0 * rows * products

    def small(self) -> dict[str, Any]:
        """Returns the fields of two narrow layers of the same kind, for `lm.verify`."""
        width, ratio = 8 * self.num_heads, self.d_ff / self.d_model
        changes: dict[str, Any] = {
            "num_layers": 2,
            "d_model": width,
            "d_ff": max(round(ratio * width / 8), 1) * 8,
        }
        if self.encoder_layers:
            # Another number stays another number.
            changes["encoder_layers"] = 2 + (self.encoder_layers != self.num_layers)
        if self.attention.head_dim:
            changes["attention.head_dim"] = 8
        if self.attention.window:
            changes["attention.window"] = min(self.attention.window, 32)
        return changes

    def exact(self, length: int) -> dict[str, Any]:
        """Returns the fields for no dropout and for rows of `length` tokens."""
        return {"dropout": 0.0, "attention.dropout": 0.0, "max_len": length}


def _layout(batch: Batch, side: str, prefix: bool = False) -> TokenLayout:
    """Returns the layout of a side's tokens; with `prefix`, that is never None."""
    positions, segments = batch[f"{side}positions"], batch[f"{side}segment_ids"]
    marked = batch.get(f"{side}prefix")
    if marked is None and prefix:
        marked = jnp.zeros_like(segments, bool)
    return TokenLayout(positions, segments, marked)


def _rules(model: Model) -> Iterator[Rule]:
    """Yields the rules between the fields of a model."""
    heads, attention = model.num_heads, model.attention
    fix = "change one of them, or set model.attention.head_dim."
    yield Rule(
        bool(attention.head_dim) or model.d_model % heads == 0,
        "model.d_model",
        model.d_model,
        f"a multiple of model.num_heads={heads}",
        fix,
    )
    shared = attention.kv_heads or heads
    where, expected = "model.attention.kv_heads", f"a divisor of num_heads={heads}"
    yield Rule(heads % shared == 0, where, shared, expected)
    size = attention.head_dim or model.d_model // heads
    found, expected = f"rope with heads of {size}", "heads of an even size"
    even = model.position != "rope" or size % 2 == 0
    yield Rule(even, "model.position", found, expected)


def _requirements(model: Model) -> Requirements:
    """Returns what the layers of a model need of a kernel of attention."""
    return Requirements(
        dtype=model.compute.dtype,
        head_dim=model.shape.head_dim,
        bias=model.position if model.position in BIASED else None,
        softcap=model.attention.softcap,
        dropout=model.attention.dropout,
        precision=model.compute.precision,
    )
