import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")
_SPEC = importlib.util.spec_from_file_location("fakes", Path(__file__).with_name("fakes.py"))


@pytest.fixture(scope="session")
def fakes():
    """The module `fakes.py` beside this one."""
    module = importlib.util.module_from_spec(_SPEC)
    _SPEC.loader.exec_module(module)
    return module
