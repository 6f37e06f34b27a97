"""From a model to text: a cache, a loop over tokens, a search, a dialogue.

Models give `make_cache` and `extend`; the command is `lm/generate.py`. Start with
`loop.py`.
"""
