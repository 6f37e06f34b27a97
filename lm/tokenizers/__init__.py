"""Tokenizers: text to token ids and back.

One file for each kind (`hf`, `spm`, `word`), each with a class `Tokenizer`; its name is
`tokenizer.name` in a config. Start with `base.py`.
"""
