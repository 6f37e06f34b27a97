"""Reads and writes Hugging Face checkpoints: file formats, and a table per family.

`formats/` reads a directory's weights in any of their formats, `families/` holds a
table for each family, `importing.py` and `exporting.py` are the two directions, and
`tokenizer.py` opens the tokenizer of a checkpoint. Nothing here unpickles, and no code
of a checkpoint runs. Formats and families do not need jax: files are checked before it
is imported. Start with `source.py`.
"""
