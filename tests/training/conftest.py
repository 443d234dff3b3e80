import importlib.util
from pathlib import Path

import pytest

_SPEC = importlib.util.spec_from_file_location("tiny", Path(__file__).parent / "tiny.py")


@pytest.fixture(scope="session")
def tiny():
    """The module `tiny.py` beside this file."""
    module = importlib.util.module_from_spec(_SPEC)
    _SPEC.loader.exec_module(module)
    return module
