"""Hugging Face checkpoints in and out: file formats, and one table per family.

`tensors.py` opens a directory's weights in whatever format they are (`safetensors.py`,
`msgpack.py`, `tf1.py`), `table.py` says what a table is and applies it, `bert.py`,
`gpt2.py`, ... hold the tables, `importing.py` and `exporting.py` are the two directions
and `tokenizer.py` opens the tokenizer that comes with a checkpoint. Nothing here
unpickles, and no code of a checkpoint runs. The formats need no jax: files are checked
before it is imported.
"""
