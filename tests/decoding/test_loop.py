"""Decoding: what is said is what the model says, however it is computed."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lm import trees
from lm.config import resolve as configs
from lm.decoding import loop
from lm.errors import ConfigError, DataError
from lm.models.presets import PRESETS
from lm.models.transformer import Model
from lm.training import step

SIZE = {
    "vocab_size": 32,
    "num_layers": 2,
    "d_model": 16,
    "num_heads": 4,
    "d_ff": 24,
    "max_len": 64,
    "dropout": 0.0,
}
LLAMA3 = {"factor": 4.0, "low": 1.0, "high": 4.0, "original_len": 4}
KINDS = {
    "gpt2": ("gpt2_small", {}),
    "llama": ("llama_tiny", {"attention": {"kv_heads": 2}}),
    "llama3": (
        "llama3_8b",
        {"attention": {"kv_heads": 2}, "rope": LLAMA3 | {"scaling": "llama3"}},
    ),
    "t5": ("t5_small", {"attention": {"head_dim": 4, "buckets": 8}}),
    "t5_v1_1": ("t5_v1_1_small", {"attention": {"head_dim": 6, "max_distance": 8}}),
    "transformer": ("transformer_base", {"encoder_layers": 1}),
    "alibi": ("gpt2_small", {"position": "alibi"}),
    "window": ("llama_tiny", {"attention": {"window": 3}}),
    "prefix": ("gpt2_small", {"position": "sinusoidal"}),
}
PROMPTS = [[5, 9, 11], [7], [3, 4, 5, 6, 7, 8, 9, 10, 12], [20, 21, 20, 21, 22]]


def codec(**changes):
    """A tokenizer of 29 words; the model's vocabulary is rounded up to 32."""
    ids = {"vocab_size": 29, "pad_id": 0, "bos_id": 1, "eos_id": 2}
    return types.SimpleNamespace(**ids | changes)


NO_END = codec(eos_id=None)


def make(kind, seed=0, words=NO_END, **changes):
    """A tiny model with large random weights, which seldom repeats itself."""
    preset, own = KINDS[kind]
    settings = PRESETS[preset] | SIZE
    for name, value in (own | changes).items():
        old = settings.get(name)
        settings[name] = old | value if isinstance(old, dict) else value
    if "attention" in settings:
        known = {"kv_heads": 2} if kind.startswith(("llama", "window")) else {}
        settings["attention"] = settings["attention"] | known
    model = configs.build(Model, settings)
    shapes = jax.eval_shape(step.make(model, None).init, jax.random.key(0))
    draw = np.random.default_rng(seed)

    def weights(path, shape):
        name = jax.tree_util.keystr(path)
        size = {"embedding": 0.3, "bias": 0.1}.get(path[-1].key, 0.6)
        noise = draw.normal(0, size, shape.shape)
        return jnp.asarray(noise + ("scale" in name), jnp.float32)

    params = jax.tree_util.tree_map_with_path(weights, shapes)
    decoder = loop.make_decoder(model, words, prefix=kind == "prefix")
    return model, params, loop.with_params(decoder, params)


def ids(answers):
    return [[answer.ids for answer in each] for each in answers]


def greedy(decoder, prompts, count=8, **changes):
    settings = loop.Settings(max_tokens=count, **changes)
    return [each[0] for each in ids(loop.answer(decoder, prompts, settings))]


@functools.cache
def forward(model):
    """Logits of every place, compiled once; rows of 24 places."""

    def run(model, batch):
        return model.logits(model(batch, train=False))

    return jax.jit(functools.partial(model.apply, method=run))


def full_logits(model, params, prompt, said, words, prefix=False):
    """Of the next word, by one pass over the whole text without a cache."""

    def side(tokens, name=""):
        places = np.arange(24)[None]
        inputs = np.pad(np.asarray([tokens]), ((0, 0), (0, 24 - len(tokens))))
        segments = (places < len(tokens)).astype(np.int32)
        parts = {"inputs": inputs, "positions": places, "segment_ids": segments}
        return {name + key: value for key, value in parts.items()}

    if model.kind == "encoder_decoder":
        text = [loop.start_id(words), *said]
        batch = side(text) | side(prompt, "source_")
    else:
        text = [*prompt, *said]
        batch = side(text)
    if prefix:
        batch["prefix"] = np.arange(24)[None] < len(prompt)
    return np.array(forward(model)({"params": params}, batch)[0, len(text) - 1])


def allowed_logits(*args, **keywords):
    logits = full_logits(*args, **keywords)
    words = args[4]
    logits[words.vocab_size :] = -np.inf
    logits[[words.pad_id, words.bos_id]] = -np.inf
    return logits


SLOW = {"llama", "t5_v1_1", "alibi", "transformer"}


def marked(kind):
    return pytest.param(kind, marks=[pytest.mark.slow] if kind in SLOW else [])


@pytest.mark.parametrize("kind", [marked(kind) for kind in KINDS])
def test_cached_and_batched_is_the_full_forward_alone(kind):
    model, params, decoder = make(kind)
    settings = loop.Settings(max_tokens=8, repetition_penalty=1.5)
    batched = loop.answer(decoder, PROMPTS, settings)
    assert len({tuple(said) for (said,) in ids(batched)}) == len(PROMPTS)
    for prompt, (said,) in zip(PROMPTS, ids(batched)):
        expected = []
        for _ in range(8):
            logits = allowed_logits(
                model, params, prompt, expected, NO_END, prefix=kind == "prefix"
            )
            read = [] if model.kind == "encoder_decoder" else prompt
            known = sorted({*read, *expected})
            logits[known] *= np.where(logits[known] > 0, 1 / 1.5, 1.5)
            expected.append(int(logits.argmax()))
        assert said == expected
        assert loop.answer(decoder, [prompt], settings, rows=4) == [[(said, None)]]


def test_a_prefix_prompt_is_seen_as_a_whole():
    """The model above would pass without it, were both sides without a prefix."""
    _, params, decoder = make("prefix")
    plain = loop.with_params(loop.make_decoder(decoder.model, NO_END), params)
    assert greedy(decoder, PROMPTS) != greedy(plain, PROMPTS)


def test_layers_are_split_and_joined():
    _, params, decoder = make("t5")
    assert len(decoder.params["encoder"]["layers"]) == 2
    jax.tree.map(
        np.testing.assert_array_equal,
        trees.join_layers(trees.split_layers(params)),
        params,
    )


def test_rows_that_end():
    """What a row says after its end counts for nothing, and others go on."""
    _, _, endless = make("gpt2", seed=3)
    said = greedy(endless, PROMPTS, 20)
    end = said[2][5]
    words = codec(eos_id=end)
    _, _, decoder = make("gpt2", seed=3, words=words)
    for before, after in zip(said, greedy(decoder, PROMPTS, 20)):
        assert after == (before[: before.index(end)] if end in before else before)


def test_padding_beginning_and_rounding_are_never_said():
    words = codec(vocab_size=8)
    _, _, decoder = make("gpt2", words=words)
    settings = loop.Settings(max_tokens=40, temperature=50.0)
    answers = ids(loop.answer(decoder, [[3]] * 20, settings))
    assert {id for (said,) in answers for id in said} == {3, 4, 5, 6, 7}
    # An end that is the beginning too, as in GPT-2, may be said.
    both = codec(bos_id=2)
    assert loop.allowed_tokens(both, 32).nonzero()[0].tolist() == list(range(1, 29))


SAMPLED = loop.Settings(max_tokens=12, temperature=1.0, top_p=0.9, seed=4)


def test_draws_depend_on_the_prompt_and_the_seed_alone():
    _, _, decoder = make("llama")
    batched = ids(loop.answer(decoder, PROMPTS, SAMPLED))
    for prompt, said in zip(PROMPTS, batched):
        assert ids(loop.answer(decoder, [prompt], SAMPLED)) == [said]
    other = dataclasses.replace(SAMPLED, seed=5)
    assert ids(loop.answer(decoder, PROMPTS, other)) != batched
    again = ids(loop.answer(decoder, [PROMPTS[0]] * 2, SAMPLED))
    assert again[0] == batched[0] != again[1]


def test_all_prompts_in_their_order():
    _, _, decoder = make("transformer", words=codec())
    prompts = [[3 + n] * (1 + n * 7 % 5) for n in range(7)]
    numbers = []

    def going(batches):
        for number in batches:
            numbers.append((number, len(batches)))
            yield number

    together = loop.answer_all(decoder, prompts, SAMPLED, batch_size=3, progress=going)
    batches = -(-len(prompts) // 3)
    assert numbers == [(n, batches) for n in range(batches)]
    assert ids(together) == ids(loop.answer(decoder, prompts, SAMPLED))


def test_one_compilation_for_each_bucket_and_none_for_numbers():
    _, _, decoder = make("gpt2")
    for length, number in [(3, 0.0), (16, 1.5), (17, 0.5), (30, 0.0)]:
        loop.answer(
            decoder,
            [[4] * length, [5]],
            loop.Settings(
                max_tokens=30,  # of which the last dispatch says fewer than a block
                temperature=number,
                top_k=int(number * 4),
                top_p=1 - number / 4,
                min_p=number / 8,
                repetition_penalty=1 + number,
                seed=int(number * 10),
            ),
        )
    assert decoder.start._cache_size() == 2  # of 16 and 32 places
    assert decoder.advance._cache_size() == 2
    for alpha in (0.0, 0.5, 1.0):
        settings = loop.Settings(max_tokens=4, beams=2, length_penalty=alpha)
        loop.answer(decoder, PROMPTS, settings)
    assert decoder.search._cache_size() == 1


def test_buckets():
    sizes = [loop.bucket(n, 100) for n in (1, 16, 17, 64, 65, 100, 101)]
    assert sizes == [16, 16, 32, 64, 100, 100, 101]


def test_blocks_show_what_was_said_and_can_be_stopped():
    _, _, decoder = make("gpt2")
    settings = loop.Settings(max_tokens=40)
    seen = []

    def stopped(generated):
        seen.append([len(row) for row in generated])
        return [len(generated[0]) > 10, False]

    answers = ids(loop.answer(decoder, PROMPTS[:2], settings, should_stop=stopped))
    assert seen == [[1, 1], [17, 17], [17, 33], [17, 40]]
    whole = ids(loop.answer(decoder, PROMPTS[:2], settings))
    assert answers == [[whole[0][0][:17]], whole[1]]


def test_a_program_keeps_no_copy_of_weights_or_cache():
    """In the loop each layer is read where it lies, and its cache grows in place."""
    _, _, decoder = make("gpt2", num_layers=4, d_model=64, d_ff=256)
    batch = loop.make_batch(decoder, PROMPTS, 4)
    numbers, params = loop.as_arrays(loop.Settings()), decoder.params
    state = decoder.start(params, batch, np.zeros(4, np.uint32), numbers, 128)
    compiled = decoder.advance.lower(
        params, state, numbers, np.zeros(4, bool), np.int32(16)
    ).compile()
    memory = compiled.memory_analysis()
    layers = sum(leaf.nbytes for leaf in jax.tree.leaves(params["layers"]))
    cache = sum(leaf.nbytes for leaf in jax.tree.leaves(state.cache["layers"]))
    assert memory.temp_size_in_bytes < min(layers, cache) / 4


def enumerated(model, params, prompt, words, length, divisor):
    """Every text of up to `length` tokens by score, the best first."""
    found = []

    def grow(said, score):
        logits = full_logits(model, params, prompt, said, words)
        logs = np.asarray(jax.nn.log_softmax(logits))
        for word in np.flatnonzero(loop.allowed_tokens(words, len(logits))).tolist():
            total = score + float(logs[word])
            if word == words.eos_id or len(said) + 1 == length:
                text = [*said, word] if word != words.eos_id else said
                found.append((total / divisor(len(said) + 1), text))
            else:
                grow([*said, word], total)

    grow([], 0.0)
    return sorted(found, reverse=True)


@pytest.mark.parametrize(
    "kind, alpha, penalty",
    [
        ("gpt2", 0.9, "gnmt"),
        pytest.param("gpt2", 0.0, "gnmt", marks=pytest.mark.slow),
        pytest.param("gpt2", 2.0, "length", marks=pytest.mark.slow),
        ("transformer", 2.0, "length"),
    ],
)
def test_beam_search_finds_the_best(kind, alpha, penalty):
    """As wide as there are texts, it finds all of them, in their order."""
    words = codec(vocab_size=6)
    model, params, decoder = make(kind, words=words, seed=1)
    divisor = {
        "gnmt": lambda n: ((5 + n) / 6) ** alpha,
        "length": lambda n: n**alpha,
    }[penalty]
    settings = loop.Settings(
        max_tokens=3, beams=40, n_best=40, length_penalty=alpha, penalty=penalty
    )
    prompts = [[3, 4, 3], [5]]
    for prompt, found in zip(prompts, loop.answer(decoder, prompts, settings)):
        expected = enumerated(model, params, prompt, words, 3, divisor)
        assert len(expected) == 40
        assert [answer.ids for answer in found] == [text for _, text in expected]
        scores = [answer.score for answer in found]
        np.testing.assert_allclose(scores, [s for s, _ in expected], rtol=1e-5)


def test_early_stops():
    """Exact changes no answer; the other two may only be earlier, and worse."""
    words = codec(vocab_size=12, eos_id=11)  # which is often said
    _, _, decoder = make("gpt2", words=words, seed=8)
    prompts = [[3 + n, 4] for n in range(9)]
    settings = loop.Settings(
        max_tokens=12, beams=3, n_best=3, length_penalty=1.0, penalty="length"
    )
    exact, heuristic, full = (
        loop.answer(decoder, prompts, dataclasses.replace(settings, early_stop=word))
        for word in ("exact", "heuristic", "full")
    )
    for better, worse in [(exact, heuristic), (exact, full)]:
        assert all(a[0].score >= b[0].score for a, b in zip(better, worse))
    assert exact != heuristic != full
    for prompt, answers in zip(prompts, exact):
        alone = loop.answer(decoder, [prompt], settings)[0]
        assert [a.ids for a in alone] == [a.ids for a in answers]


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_beam_of_one_is_greedy(kind):
    words = codec(vocab_size=12)
    _, _, decoder = make(kind, words=words, seed=5)
    batch = loop.make_batch(decoder, [[3, 4], [5], [6, 7, 8]], 3)
    options = {"beams": 1, "max_tokens": 10, "penalty": "gnmt", "early_stop": "full"}
    texts, _ = decoder.search(decoder.params, batch, np.float32(0.0), **options)
    said = [
        [id for id in text if id not in (-1, words.eos_id)]
        for text in np.asarray(texts)[:, 0].tolist()
    ]
    assert said == greedy(decoder, [[3, 4], [5], [6, 7, 8]], 10)


def test_refusals():
    with pytest.raises(ConfigError, match="n_best: found 3 with beams=2"):
        loop.Settings(beams=2, n_best=3)
    with pytest.raises(ConfigError, match="beams: found 2 with temperature"):
        loop.Settings(beams=2, temperature=0.5)
    encoder = Model(**PRESETS["bert_tiny"])
    with pytest.raises(ConfigError, match=r"cannot continue a text.*for generation"):
        loop.make_decoder(encoder, codec())
    _, _, decoder = make("gpt2")
    with pytest.raises(ConfigError, match="60 with a prompt of 9 tokens, expected"):
        loop.answer(decoder, PROMPTS, loop.Settings(max_tokens=60))
    model, _, _ = make("t5")
    with pytest.raises(DataError, match="no bos and no pad"):
        loop.make_decoder(model, codec(bos_id=None, pad_id=None))
