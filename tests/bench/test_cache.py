from pathlib import Path

import pytest

from plait.bench._cache import digest_of, new_folder


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


def test_the_key_depends_on_settings_but_not_on_their_order() -> None:
    assert digest_of({"a": 1, "b": 2}) == digest_of({"b": 2, "a": 1}) != digest_of({"a": 1, "b": 3})
