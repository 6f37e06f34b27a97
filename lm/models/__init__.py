"""Models, one file a kind, and the shapes that have names (`presets.py`).

Models know no objective and no data. Start with `transformer.py`; what models are
built of is in `blocks/`.
"""
