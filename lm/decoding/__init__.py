"""Generation: a model with a cache, a loop over tokens, beam search, dialogues.

Models have `make_cache` and `extend`; the command is `lm/generate.py`. Start with
`loop.py`.
"""
