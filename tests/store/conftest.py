"""A scheme of its own for the tests of stores."""

from pathlib import Path

import pytest
import toy_store

from gradosr.store import BACKENDS, Scheme


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """A folder in a store that the program knows from one line in the table."""
    monkeypatch.setitem(BACKENDS, "toy", Scheme("toy_store", "toy://NAME/KEY"))
    monkeypatch.setattr(toy_store, "FOLDER", tmp_path)
    return "toy://place"
