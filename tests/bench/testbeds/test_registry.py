from pathlib import Path

import pytest
from typer.testing import CliRunner

from plait.bench.testbeds import TESTBEDS, build, built, recipe_of
from plait.bench.testbeds._draft import Draft, building
from plait.cli import app
from plait.errors import PlaitError


def test_unknown_testbeds_and_sizes_are_refused_with_a_suggestion(tmp_path: Path) -> None:
    with pytest.raises(PlaitError, match="Did you mean 'encoder'"):
        build("encoders", cache=tmp_path)
    with pytest.raises(PlaitError, match="Did you mean 'quick'"):
        build("encoder", "quik", cache=tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TESTBEDS)
def test_every_testbed_has_both_sizes(name: str) -> None:
    assert recipe_of(name, "quick") != recipe_of(name, "full")


def test_a_testbed_appears_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "bed"
    made: list[str] = []

    def make(draft: Draft, place: str, fail: bool = False) -> None:
        def fill(folder: Path) -> None:
            (folder / "file").write_text(place)
            if fail:
                raise KeyboardInterrupt
            made.append(place)

        draft.piece(place, fill)

    with pytest.raises(KeyboardInterrupt), building(target, print) as draft:
        assert draft
        make(draft, "a")
        make(draft, "b", fail=True)
    assert not target.exists()
    with building(target, print) as draft:
        assert draft
        make(draft, "a")
        make(draft, "b")
        assert draft.once("c.json", lambda: {"x": 1}) == draft.once("c.json", lambda: pytest.fail("again")) == {"x": 1}
        draft.manifest["name"] = "bed"
        draft.finish("# bed\n")
    assert made == ["a", "b"]
    assert sorted(path.name for path in target.iterdir()) == ["README.md", "a", "b", "c.json", "testbed.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["bed"]
    with building(target, print) as draft:
        assert draft is None
    (entry,) = built(tmp_path)
    assert entry["name"] == "bed" and entry["cost"]["cpu_seconds"] >= 0


def test_the_command_lists_and_shows(tmp_path: Path) -> None:
    run = CliRunner().invoke(app, ["testbed", "list", "--cache", str(tmp_path)])
    assert run.exit_code == 0 and "encoder" in run.output and "none" in run.output
    run = CliRunner().invoke(app, ["testbed", "show", "encoder", "--cache", str(tmp_path)])
    assert run.exit_code == 0 and "is not in" in run.output and "py_expr: steps" in run.output
