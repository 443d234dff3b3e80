"""The floors of the README's table: nothing imports from a floor above its own."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "offload_jax"


def floors():
    """The package's parts in the README's order, and the number of the floor each stands on."""
    table = (ROOT / "README.md").read_text().split("| floor | what is there |")[1].split("\n\n")[0]
    names = [re.findall(r"`(?:offload_jax/)?(\w+)(?:/|\.py)`", row.split("|")[1])
             for row in table.splitlines()[2:]]  # fmt: skip
    return {name: number for number, row in enumerate(names) for name in row}


def imported(path):
    """Parts of the package that a file imports from."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("offload_jax"):
            _, *rest = node.module.split(".")
            yield from rest[:1] or [alias.name for alias in node.names]


def test_every_part_stands_on_a_floor():
    parts = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert floors().keys() - {"experiments", "configs"} == parts - {"__init__", "__pycache__"}


def test_no_floor_imports_from_one_above():
    number = floors()
    upwards = [
        f"{path.relative_to(ROOT)} imports {other}"
        for path in PACKAGE.rglob("*.py")
        for own in [path.relative_to(PACKAGE).with_suffix("").parts[0]]
        for other in imported(path)
        if number[other] < number[own]
    ]
    assert not upwards
