"""Tests the formats of weights: round trips, and hostile files, which are refused."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import flax.serialization
import ml_dtypes
import numpy as np
import pytest

from lm.errors import CheckpointError
from lm.hf.formats import files, msgpack, safetensors, tensors, tf1
from lm.hf.formats.crc32c import crc32c, masked

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "goldens"


def arrays(seed=0):
    rng = np.random.default_rng(seed)
    return {
        "a.weight": rng.normal(size=(3, 5)).astype(np.float32),
        "b.bias": rng.normal(size=(7,)).astype(ml_dtypes.bfloat16),
        "c": rng.integers(-9, 9, (2, 2, 2)),
        "d": np.asarray(rng.normal(size=()), np.float16),
        "empty": np.zeros((0, 4), np.float32),
    }


def save(directory, values, **keywords):
    directory.mkdir(exist_ok=True)
    shapes = {name: (value.dtype, value.shape) for name, value in values.items()}
    return safetensors.write(directory, shapes, values.__getitem__, **keywords)


def same(found, wanted):
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


def packed(header, body=b"", length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    return size.to_bytes(8, "little") + text + body


def entry(begin=0, end=4, shape=(1,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


# ── safetensors ─────────────────────────────────────────────────────────────────────


def test_one_file_is_written_and_read(tmp_path):
    assert save(tmp_path, arrays()) == ["model.safetensors"]
    found = safetensors.read(tmp_path / "model.safetensors")
    same(found, arrays())
    assert not found["a.weight"].flags.writeable
    assert found["a.weight"].base is not None  # a view, not a copy


def test_the_reference_library_agrees(tmp_path):
    library = pytest.importorskip("safetensors.numpy")
    values = {n: v for n, v in arrays().items() if v.dtype != ml_dtypes.bfloat16}
    save(tmp_path, values)
    same(library.load_file(tmp_path / "model.safetensors"), values)
    library.save_file(values, tmp_path / "theirs.safetensors")
    same(safetensors.read(tmp_path / "theirs.safetensors"), values)


def test_several_files_have_an_index(tmp_path):
    names = save(tmp_path, arrays(), shard_bytes=70)
    assert names[-1] == safetensors.INDEX and len(names) == 4
    assert "model-00001-of-00003.safetensors" in names
    place, found = tensors.open_tensors(tmp_path)
    assert place.name == safetensors.INDEX
    same(found, arrays())


WHOLE = packed({"a": entry()}, b"1234")
HOSTILE = {
    "empty": (b"", "an empty file"),
    "short": (b"1234", "4 bytes"),
    "length beyond the file": (packed(b"{}", length=2**63), "a header of 9,223"),
    "cut": (WHOLE[:-1], "3 bytes of data"),
    "more data": (WHOLE + b"5", "5 bytes of data"),
    "no JSON": (packed(b"{nonsense"), "broken JSON"),
    "no object": (packed(b"[1, 2]"), "type list"),
    "not UTF-8": (packed(b'{"\xff": 1}'), "broken JSON"),
    "deep": (packed(b'{"a":' + b"[" * 100_000), "JSON nested too deep"),
    "twice": (packed(b'{"a":{},"b":{},"a":{}}'), "the key 'a' twice"),
    "huge number": (packed(b'{"a":' + b"9" * 100_000 + b"}"), "broken JSON"),
    "not a number": (packed(b'{"a": NaN}'), "the number NaN"),
    "no entry": (packed({"a": 3}), "other fields"),
    "unknown dtype": (packed({"a": entry(dtype="F8_E4M3")}), "F8_E4M3"),
    "wrong dtype": (packed({"a": entry(dtype="F64")}, b"1234"), "4 bytes, expected 8"),
    "negative size": (packed({"a": entry(shape=(-1,))}, b"1234"), "shape [-1]"),
    "size as text": (packed({"a": entry(shape=("1",))}, b"1234"), "shape ['1']"),
    "true as size": (packed({"a": entry(shape=(True,))}, b"1234"), "shape [True]"),
    "overflow": (packed({"a": entry(shape=(2**62, 2**62))}, b"1234"), "4 bytes"),
    "backwards": (packed({"a": entry(4, 0)}, b"1234"), "offsets [4, 0]"),
    "overlap": (
        packed({"a": entry(0, 8, (2,)), "b": entry(4, 12, (2,))}, bytes(12)),
        "an overlap: it begins at 4",
    ),
    "gap": (packed({"a": entry(), "b": entry(8, 12)}, bytes(12)), "a gap"),
    "late start": (packed({"a": entry(4, 8)}, bytes(8)), "a gap"),
    "beyond the end": (packed({"a": entry(0, 4000, (1000,))}, bytes(4)), "4 bytes of"),
    "zip": (b"PK\x03\x04" + bytes(100), "a zip archive"),
    "pickle": (b"\x80\x02}q\x00." + bytes(100), "a pickle"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_by_name(tmp_path, name):
    data, found = HOSTILE[name]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        tensors.open_tensors(tmp_path)
    assert str(path) in caught.value.where
    assert found in str(caught.value)


def test_huge_json_is_refused_in_little_time_and_memory(tmp_path):
    """Memory stays bounded for the largest header that is parsed, and without jax."""
    lists = b'{"a":[' + b"[]," * (files.MAX_JSON // 3 - 10) + b"[]]}"
    paths = []
    for name, data in {
        "nested.safetensors": packed(lists),
        "long.safetensors": packed(b"{" + b" " * 50_000_000),
        "beyond.safetensors": packed(b"{}", length=10**15),
    }.items():
        (tmp_path / name).write_bytes(data)
        paths.append(str(tmp_path / name))
    code = (
        "import sys, time; from pathlib import Path; start = time.process_time()\n"
        "from lm.hf.formats import tensors; from lm.errors import CheckpointError\n"
        "try: tensors.open_tensors(Path(sys.argv[1]))\n"
        "except CheckpointError as error: print(error.where)\n"
        "print(time.process_time() - start, 'jax' in sys.modules)\n"
        "lines = open('/proc/self/status').read().splitlines()\n"
        "print(next(int(l.split()[1]) // 1024 for l in lines if 'VmHWM' in l))\n"
    )
    for path in paths:
        command = [sys.executable, "-c", code, path]
        done = subprocess.run(
            command, capture_output=True, text=True, cwd=GOLDENS.parents[1]
        )
        where, spent, memory = done.stdout.splitlines()
        assert path in where
        assert spent.endswith("False") and float(spent.split()[0]) < 2
        assert int(memory) < 200, path


@pytest.mark.parametrize(
    "file",
    ["../x.safetensors", "/etc/passwd", "a/b", "..", "", "a\0b", "a\nb", 3, None],
)
def test_an_index_stays_in_its_folder(tmp_path, file):
    save(tmp_path, arrays())
    index = {"weight_map": {"a.weight": file}}
    (tmp_path / safetensors.INDEX).write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"index\.json.*without a folder"):
        safetensors.read_sharded(tmp_path / safetensors.INDEX)


def test_index_and_files_hold_the_same(tmp_path):
    save(tmp_path, arrays(), shard_bytes=70)
    place = tmp_path / safetensors.INDEX
    index = json.loads(place.read_text())
    file = index["weight_map"].pop("c")
    place.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"{file}.*'c'"):
        tensors.open_tensors(tmp_path)
    index["weight_map"] |= {"c": file, "more": file}
    place.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=f"{file}.*'more'"):
        tensors.open_tensors(tmp_path)
    index["weight_map"]["more"] = "model-00009-of-00003.safetensors"
    place.write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match=r"model-00009.*no such file"):
        tensors.open_tensors(tmp_path)


def test_a_pipe_is_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(CheckpointError, match="no regular file"):
        tensors.open_tensors(tmp_path / "pipe.safetensors")


def mutants(data, count=300):
    """Makes copies of a file with bytes changed, cut or doubled."""
    rng = np.random.default_rng(0)
    for _ in range(count):
        out = bytearray(data)
        for _ in range(rng.integers(1, 4)):
            at = int(rng.integers(0, len(out)))
            match rng.integers(0, 4):
                case 0:
                    out[at] = int(rng.integers(0, 256))
                case 1:
                    out[at] ^= 1 << int(rng.integers(0, 8))
                case 2:
                    del out[at : at + int(rng.integers(1, 20))]
                case 3:
                    out[at:at] = out[at : at + int(rng.integers(1, 20))]
            out = out or bytearray(b"\0")
        yield bytes(out)


def survives(read, path, data):
    for mutant in mutants(data):
        path.write_bytes(mutant)
        try:
            read(path)
        except CheckpointError as error:
            assert str(path.parent) in error.where


def test_random_damage_to_safetensors_ends_in_a_refusal(tmp_path):
    save(tmp_path, arrays())
    path = tmp_path / "model.safetensors"
    data = path.read_bytes()
    survives(safetensors.read, path, data)
    length = int.from_bytes(data[:8], "little") + 8
    survives(safetensors.read, path, data[:length])


# ── Flax ────────────────────────────────────────────────────────────────────────────


def flax_tree():
    value = arrays()
    return {
        "bert": {"dense": {"kernel": value["a.weight"], "bias": value["b.bias"]}},
        "c": value["c"],
    }


def flat_tree():
    value = arrays()
    return {
        "bert/dense/kernel": value["a.weight"],
        "bert/dense/bias": value["b.bias"],
        "c": value["c"],
    }


@pytest.mark.parametrize("inside", [False, True])
def test_flax_files_are_read(tmp_path, inside):
    path = tmp_path / "flax_model.msgpack"
    tree = {"params": flax_tree()} if inside else flax_tree()
    path.write_bytes(flax.serialization.to_bytes(tree))
    same(msgpack.read(path), flat_tree())
    _, found = tensors.open_tensors(tmp_path)
    np.testing.assert_array_equal(found["bert.dense.weight"], arrays()["a.weight"].T)
    assert not found["bert.dense.weight"].flags.owndata


def test_flax_chunks_are_joined(tmp_path, monkeypatch):
    monkeypatch.setattr(flax.serialization, "MAX_CHUNK_SIZE", 16)
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(flax.serialization.to_bytes(flax_tree()))
    same(msgpack.read(path), flat_tree())


def test_random_damage_to_flax_files_ends_in_a_refusal(tmp_path):
    path = tmp_path / "flax_model.msgpack"
    survives(msgpack.read, path, flax.serialization.to_bytes(flax_tree()))


@pytest.mark.parametrize(
    "data, found",
    [
        (b"\x81\xa1a" * 100 + b"\xc0", "deeper nested"),
        (b"\x91" * 10**6, "deeper nested"),
        (b"\xdd\xff\xff\xff\xff" + b"\x80" * 300_000, "200,000"),
        (b"\xdf\xff\xff\xff\xff", "at least"),
        (b"\xdb\xff\xff\xff\xff", "4,294,967,295 bytes"),
        (b"\xc1", "byte 0xc1"),
        (b"\x81\xa1a\xc7\x01\x05x", "extension of type 5"),
        (b"\x81\xa1a\xc0", "NoneType"),
        (b"\x82\xa1a\x80\xa1a\x80", "each once"),
        (b"\x81\xa1a\xc7\x09\x01\x93\x91\x01\xa3fooxx", "an array that is none"),
        (b"\x80\x80", "1 bytes after the map"),
    ],
)
def test_hostile_flax_files(tmp_path, data, found):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        msgpack.read(path)
    assert str(path) in caught.value.where and found in str(caught.value)


# ── TensorFlow 1 ────────────────────────────────────────────────────────────────────


def tf1_copy(folder):
    for path in (GOLDENS / "tf1_bert").glob("bert_model.ckpt*"):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / "bert_model.ckpt.index"


def test_a_checkpoint_that_tensorflow_wrote_is_read():
    found = tf1.read(GOLDENS / "tf1_bert" / "bert_model.ckpt.index")
    wanted = dict(np.load(GOLDENS / "tf1_bert" / "bert_model.npz"))
    extra = found.keys() - wanted.keys()
    assert extra == {"global_step", "bert/encoder/layer_0/output/dense/bias/adam_m"}
    assert found["global_step"] == 7
    same({name: found[name] for name in wanted}, wanted)


def test_tf1_names_become_those_of_pytorch():
    _, found = tensors.open_tensors(GOLDENS / "tf1_bert")
    wanted = np.load(GOLDENS / "tf1_bert" / "bert_model.npz")
    layer, theirs = "bert.encoder.layer.1.", "bert/encoder/layer_1/"
    for name, value in {
        layer + "intermediate.dense.weight": wanted[
            theirs + "intermediate/dense/kernel"
        ].T,
        layer + "output.LayerNorm.weight": wanted[theirs + "output/LayerNorm/gamma"],
        "cls.predictions.bias": wanted["cls/predictions/output_bias"],
        "cls.seq_relationship.weight": wanted["cls/seq_relationship/output_weights"],
        "bert.embeddings.word_embeddings.weight": wanted[
            "bert/embeddings/word_embeddings"
        ],
    }.items():
        np.testing.assert_array_equal(found[name], value)
    assert not any("adam" in name or "global" in name for name in found)


def test_a_flipped_bit_of_tf1_data_is_found(tmp_path):
    index = tf1_copy(tmp_path)
    path = tmp_path / "bert_model.ckpt.data-00000-of-00001"
    data = bytearray(path.read_bytes())
    data[1000] ^= 4
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"data-00000.*damaged bytes"):
        tf1.read(index)
    path.write_bytes(data[:-100])
    with pytest.raises(CheckpointError, match="data-00000-of-00001"):
        tf1.read(index)
    path.unlink()
    with pytest.raises(CheckpointError, match=r"data-00000.*no such file"):
        tf1.read(index)


def test_random_damage_to_a_tf1_index_ends_in_a_refusal(tmp_path, monkeypatch):
    index = tf1_copy(tmp_path)
    data = index.read_bytes()
    survives(tf1.read, index, data)
    # Checksums find every change, so the code behind them is tested without them.
    monkeypatch.setattr(tf1, "masked", lambda crc: _Any())
    survives(tf1.read, index, data)


class _Any:
    """Equals every value."""

    def __eq__(self, other):
        return True

    def __ne__(self, other):
        return False

    __hash__ = None


FIELDS = {  # the wire types of protocol buffers: number, 8 bytes, length, 4 bytes
    "varint": lambda n: bytes([n << 3 | 0, 0x87, 0x01]),
    "huge varint": lambda n: bytes([n << 3 | 0]) + b"\xff" * 9 + b"\x7f",
    "eight bytes": lambda n: bytes([n << 3 | 1]) + b"\x07" * 8,
    "a text": lambda n: bytes([n << 3 | 2, 3]) + b"abc",
    "a message": lambda n: bytes([n << 3 | 2, 4, 0x12, 0x02, 0x0A, 0x00]),
    "four bytes": lambda n: bytes([n << 3 | 5]) + b"\x07" * 4,
    "a group": lambda n: bytes([n << 3 | 3]),
}


@pytest.mark.parametrize("kind", FIELDS)
def test_a_field_of_another_wire_type_ends_in_a_refusal(tmp_path, monkeypatch, kind):
    """The field is one of the header, of an entry, of its shape, or of a size."""
    index = tf1_copy(tmp_path)
    pairs = tf1._table(index.read_bytes(), index)
    read, refused = tf1._table, 0
    for number in range(1, 8):
        field = FIELDS[kind](number)
        shape = bytes([0x12, len(field)]) + field
        size = bytes([0x12, len(shape)]) + shape
        for row in (0, 1):
            for more in (field, shape, size):
                changed = list(pairs)
                changed[row] = (pairs[row][0], pairs[row][1] + more)
                monkeypatch.setattr(tf1, "_table", lambda *_, rows=changed: rows)
                try:
                    tf1.read(index)
                except CheckpointError as error:
                    refused += 1
                    assert str(tmp_path) in error.where
    monkeypatch.setattr(tf1, "_table", read)
    assert refused > 10


SHAPES = ([2**62, 2**62, 0], [2**40, 2**40, 0], [2**63 - 1, 0, 2])


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_whose_product_overflows_is_refused(tmp_path, shape):
    """It has no bytes, as any shape with a zero."""
    entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]}
    header = json.dumps({"a": entry}).encode()
    path = tmp_path / "model.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(CheckpointError, match="sizes of an array"):
        tensors.open_tensors(path)


def test_crc32c():
    """Compares with the value of RFC 3720, and at lengths around the lane widths."""
    assert crc32c(np.frombuffer(b"123456789", np.uint8)) == 0xE3069283
    assert crc32c(np.zeros(32, np.uint8)) == 0x8A9136AA
    rng = np.random.default_rng(0)
    for size in (0, 1, 2, 255, 256, 257, 32767, 32768, 65537, 99_999):
        data = rng.integers(0, 256, size, dtype=np.uint8)
        state = 0xFFFFFFFF
        for byte in data.tolist():
            state ^= byte
            for _ in range(8):
                state = (state >> 1) ^ (0x82F63B78 if state & 1 else 0)
        assert crc32c(data) == state ^ 0xFFFFFFFF, size
    assert masked(0) == 0xA282EAD8


# ── What is never loaded ────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "model.pt", "weights.npz", "model.h5", "m.keras"]
)
def test_pickles_are_refused_with_the_command_that_converts_them(tmp_path, name):
    with zipfile.ZipFile(tmp_path / name, "w") as archive:
        archive.writestr("archive/data.pkl", "cos\nsystem\n(S'touch /tmp/ran'\ntR.")
    with pytest.raises(CheckpointError) as caught:
        tensors.open_tensors(tmp_path)
    assert name in caught.value.where
    assert "pickles can run code" in str(caught.value)
    assert "save_pretrained" in caught.value.fix and str(tmp_path) in caught.value.fix


def test_nothing_here_can_unpickle():
    for path in Path(files.__file__).parent.glob("*.py"):
        text = path.read_text()
        assert "import pickle" not in text and "allow_pickle" not in text, path


def test_an_empty_folder_is_refused_with_the_expected_files(tmp_path):
    with pytest.raises(CheckpointError, match=r"an empty folder.*model\.safetensors"):
        tensors.open_tensors(tmp_path)
    with pytest.raises(CheckpointError, match="no such file"):
        tensors.open_tensors(tmp_path / "nowhere")
