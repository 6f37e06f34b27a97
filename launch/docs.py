"""Writes the reference: a page for each room of lm/ and each file, from the docstrings.

python launch/docs.py DIR [MODULE ...]

Needs `pdoc` (tests/requirements.txt). A warning, such as a name that a signature does
not resolve, is an error: exit code 1.
"""

import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def rooms() -> list[str]:
    """The package, its rooms and the files beside them; pdoc finds what is in a room.

    lm.train goes unsaid: pdoc finds it in the package's __all__.
    """
    places = sorted((ROOT / "lm").iterdir())
    files = [place.stem for place in places if place.suffix == ".py"]
    folders = [place.name for place in places if (place / "__init__.py").exists()]
    names = [
        f"lm.{name}" for name in files + folders if name not in ("__init__", "train")
    ]
    return ["lm", *names]


def build(target: Path, names: list[str]) -> list[Path]:
    """Writes a page for each of the modules.

    Raises:
      Warning: something that pdoc cannot show as it is meant.
    """
    import pdoc
    import pdoc.render

    pdoc.render.configure(docformat="google", search=False, show_source=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lm.evaluate
        import lm.train  # noqa: F401  what libraries warn of when they are imported
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc(*names, output_directory=target)
    return sorted(target.rglob("*.html"))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    sys.path.insert(0, str(ROOT))
    pages = build(Path(sys.argv[1]), sys.argv[2:] or rooms())
    print(f"{len(pages)} pages: {sys.argv[1]}/index.html")
