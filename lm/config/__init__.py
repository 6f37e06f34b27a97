"""What a run may ask for: files and flags read, filled with defaults, and checked.

Nothing here imports jax. The options themselves are dataclass fields of the rooms that
use them. Start with `resolve.py`; `files.py` has how configs are written.
"""

from lm.config.files import parse_arg as parse_arg
