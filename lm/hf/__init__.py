"""Hugging Face checkpoints in and out: file formats, and one table per family.

`formats/` opens a directory's weights in whatever format they are, `families/` holds a
table for each family, `importing.py` and `exporting.py` are the two directions and
`tokenizer.py` opens the tokenizer that comes with a checkpoint. Nothing here unpickles,
and no code of a checkpoint runs. Neither formats nor families need jax: files are
checked before it is imported. Start with `source.py`.
"""
