"""What every test may use: test data that is not ours to ship, eight CPU devices."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=8")

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
