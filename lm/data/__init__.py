"""From files to batches, a pure function of the config and the step.

Records are read by `sources/`, indexed once (`index.py`, `layouts.py`), made examples
(`transforms.py`) and put into batches. Start with `pipeline.py`.
"""
