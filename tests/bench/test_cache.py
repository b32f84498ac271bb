import json
from pathlib import Path

import pytest

from plait.bench._cache import cached_json, digest_of, new_folder


def test_a_folder_appears_only_when_complete(tmp_path: Path) -> None:
    target = tmp_path / "entry"
    with pytest.raises(RuntimeError, match="interrupted"), new_folder(target) as draft:
        (draft / "file").write_text("half")
        raise RuntimeError("interrupted")
    assert list(tmp_path.iterdir()) == []
    with new_folder(target) as draft:
        (draft / "file").write_text("whole")
        assert not target.exists()
    assert [path.name for path in tmp_path.iterdir()] == ["entry"]
    assert (target / "file").read_text() == "whole"


def test_a_folder_that_another_process_made_first_is_kept(tmp_path: Path) -> None:
    target = tmp_path / "entry"
    with new_folder(target) as draft:
        (draft / "file").write_text("second")
        target.mkdir()
        (target / "file").write_text("first")
    assert (target / "file").read_text() == "first"
    assert len(list(tmp_path.iterdir())) == 1


def test_json_is_made_once(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b.json"
    assert cached_json(path, lambda: {"x": 1}) == {"x": 1}
    assert cached_json(path, lambda: pytest.fail("made again")) == {"x": 1}
    with pytest.raises(TypeError):
        cached_json(tmp_path / "a" / "c.json", lambda: {"x": object()})
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["b.json"]
    assert json.loads(path.read_text()) == {"x": 1}


def test_the_key_depends_on_settings_but_not_on_their_order() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 1, "b": 3})
