"""Reads config files and flags, adds defaults, and checks the result.

Nothing here imports jax, except the second stage of the check in `match.py`. The
options themselves are dataclass fields of the rooms that use them. Start with
`resolve.py`; `files.py` explains how a config file is written.
"""

from lm.config.files import parse_arg as parse_arg
