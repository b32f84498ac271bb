"""The plan of the house: which rooms may import which, what the engine may know, what imports stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "plait"

# From the street inwards: a room may import the rooms named here, and no others.
ROOMS: dict[str, set[str]] = {
    "architectures": set(),
    "checkpoints": {"architectures"},
    "security": {"checkpoints", "architectures", "tensors"},
    "tensors": set(),
    "kernels": {"tensors"},
    "alignment": {"architectures", "checkpoints", "tensors"},
    "methods": {"tensors"},
    "recipes": {"methods", "architectures"},
    "engine": {"alignment", "recipes", "kernels", "methods", "tensors", "checkpoints", "architectures"},
    "adapters": {"engine", "recipes", "methods", "tensors", "checkpoints", "architectures"},
    "tuning": {"engine", "methods"},
    "reports": {"adapters", "security", "engine", "recipes", "methods", "tensors", "checkpoints", "architectures"},
}
STREET = {"cli", "bench"}
EVERYWHERE = {"errors", "_versions", "plait"}


def _imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@pytest.mark.parametrize("room", sorted(p.name for p in SOURCE.iterdir() if (p / "__init__.py").is_file()))
def test_arrows_point_down(room: str) -> None:
    """No room imports one above it."""
    if room in STREET:
        return
    assert room in ROOMS, f"{room} is no room of the plan"
    allowed = ROOMS[room] | EVERYWHERE | {room}
    for path in (SOURCE / room).rglob("*.py"):
        for module in _imports(path):
            if module.split(".")[0] == "plait":
                target = [*module.split("."), "plait"][1]
                assert target in allowed, f"{path.relative_to(SOURCE)} imports {module}"


def test_tensors_and_methods_know_no_file_device_or_thread() -> None:
    """A method is a pure function of tensors."""
    forbidden = {
        "os",
        "io",
        "pathlib",
        "threading",
        "concurrent",
        "safetensors",
        "tempfile",
        "shutil",
        "multiprocessing",
    }
    for room in ("tensors", "methods"):
        for path in (SOURCE / room).glob("*.py"):
            if path.name == "_registry.py":
                continue
            roots = {module.split(".")[0] for module in _imports(path)}
            assert not roots & forbidden, f"{path.name} imports {roots & forbidden}"
            assert ".cuda(" not in path.read_text() and '"cuda"' not in path.read_text(), path.name


def test_the_engine_names_no_method() -> None:
    """Nothing in the engine depends on which method runs."""
    from plait.methods import methods

    for path in (SOURCE / "engine").glob("*.py"):
        words = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        named = {name for name in methods() if name in words}
        assert not named, f"{path.name} names {named}"


def _loaded_by(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(' '.join(sorted({{m.split('.')[0] for m in sys.modules}})))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


HEAVY = {"torch", "numpy", "transformers", "peft", "optuna", "ray", "plotly", "lm_eval", "safetensors", "pydantic"}
HEAVY |= {"fsspec", "s3fs", "aiohttp", "botocore", "huggingface_hub"}


@pytest.mark.parametrize("statement", ["import plait", "import plait.errors"])
def test_importing_plait_is_light(statement: str) -> None:
    """`import plait` loads none of the heavy libraries."""
    assert not _loaded_by(statement) & HEAVY


def test_help_is_light() -> None:
    """`plait --help` loads neither torch nor anything optional."""
    statement = "from plait.cli import app; from typer.testing import CliRunner; CliRunner().invoke(app, ['--help'])"
    assert not _loaded_by(statement) & (HEAVY - {"pydantic"})


def test_merging_loads_nothing_optional() -> None:
    """A merge needs no optional library."""
    statement = (
        "import torch, plait; plait.merge_state_dicts('ties', [{'w': torch.ones(3)}], {'w': torch.zeros(3)}, threads=1)"
    )
    optional = {"transformers", "peft", "optuna", "ray", "plotly", "lm_eval", "scipy"}
    assert not _loaded_by(statement) & (optional | {"fsspec", "s3fs", "aiohttp", "botocore", "huggingface_hub"})


def test_merging_folders_loads_no_remote_storage(tmp_path: Path) -> None:
    """Neither do inputs and outputs on disk."""
    from models import family, save_family

    base, experts = family(1)
    recipe = {"method": "task_arithmetic", **save_family(tmp_path, base, experts)}
    statement = f"import plait; plait.merge({recipe!r}, {str(tmp_path / 'out')!r}, threads=1)"
    assert not _loaded_by(statement) & {"fsspec", "ray", "s3fs", "aiohttp", "botocore", "huggingface_hub"}
