"""What every test may use: test data that is not ours to ship, eight CPU devices."""

import ctypes
import gc
import os
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

from tests import xla

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS", f"--xla_force_host_platform_device_count=8 {xla.FLAGS}"
)

# The shapes and types written in signatures are checked here, and only here.
install_import_hook(
    [
        "lm.ops",
        "lm.models",
        "lm.objectives",
        "lm.training.step",
        "lm.metrics",
        "lm.tokenizers",
    ],
    "beartype.beartype",
)

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def test_data():
    """A function of a data set's name: its folder, or a skip that says what is absent.

    The place is $LM_TEST_DATA, or else a folder `shared/data` beside the checkout.
    """
    place = Path(os.environ.get("LM_TEST_DATA", ROOT.parent / "shared" / "data"))

    def find(name: str) -> Path:
        if not (place / name).exists():
            pytest.skip(f"test data absent: {name} (set LM_TEST_DATA)")
        return place / name

    return find


@pytest.fixture(scope="session", autouse=True)
def compile_cache(tmp_path_factory):
    """Programs compiled once for all tests of a session, whose processes share them.

    $LM_TEST_COMPILED keeps them from one session to the next.
    """
    import jax

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # The folder is one process's own.
        folder = folder.parent
    place = os.environ.get("LM_TEST_COMPILED", folder / "compiled")
    jax.config.update("jax_compilation_cache_dir", str(place))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


@pytest.fixture(scope="module", autouse=True)
def forget_programs():
    """Lets go of the compiled programs of a file of tests, where they are many.

    Each one maps dozens of regions of memory and a process may have 65,530
    (vm.max_map_count): at the limit it dies by a segmentation fault.
    """
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 4096:
        import jax

        jax.clear_caches()
        gc.collect()
        libc = ctypes.CDLL(None)
        if hasattr(libc, "malloc_trim"):  # glibc keeps what is free otherwise
            libc.malloc_trim(0)
