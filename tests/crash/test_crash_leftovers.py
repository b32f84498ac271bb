"""What a killed run left is damaged before the next one: the journal, the totals of surveys, the half-made files."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from places import Place
from warm import Fault

from plait.engine._journal import sealed

Damage = Callable[[bytes], bytes]


@pytest.fixture
def killed(place: Place) -> Iterator[Place]:
    """A place where a run with surveys was killed when all but a few tensors were finished; `again` restores it."""
    calls = place.run("ties").calls
    place.clear()
    tensors = [i for i, (call, _) in enumerate(calls, start=1) if call == "pwrite"][3:10]
    assert place.run("ties", Fault(at=tensors[-1])).killed
    shutil.copytree(place.out.parent, place.home / "killed")
    yield place


def _again(place: Place) -> None:
    shutil.rmtree(place.out.parent)
    shutil.copytree(place.home / "killed", place.out.parent)


def _flip(position: float) -> Damage:
    def flip(data: bytes) -> bytes:
        changed = bytearray(data)
        changed[int(position * (len(data) - 1))] ^= 1
        return bytes(changed)

    return flip


DAMAGES: dict[str, Damage] = {
    "emptied": lambda data: b"",
    "cut in its first line": lambda data: data[:20],
    "cut in the middle": lambda data: data[: len(data) // 2],
    "cut before its end": lambda data: data[:-3],
    "zeros": lambda data: bytes(len(data)),
    "a block of zeros": lambda data: data[: len(data) // 3] + bytes(200) + data[len(data) // 3 + 200 :],
    "noise": lambda data: bytes((i * 37 + 11) % 256 for i in range(len(data))),
    "nested beyond reason": lambda data: data + b"[" * 100_000 + b"\n",
    "another recipe's": lambda data: sealed(json.dumps({"fingerprint": "0" * 64})).encode() + b"\n" + data,
    "twice": lambda data: data + data,
    "Windows line ends": lambda data: data.replace(b"\n", b"\r\n"),
}
#: these damages leave some lines whole
SOME = ("cut in the middle", "cut before its end", "a block of zeros", "nested beyond reason", "twice")


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_journal(killed: Place, damage: str) -> None:
    """Lines that are as they were written count, no others."""
    killed.journal.write_bytes(DAMAGES[damage](killed.journal.read_bytes()))
    assert (killed.finish("ties").resumed > 0) == (damage in SOME)


def test_one_bit_of_the_journal(killed: Place) -> None:
    """Wherever it is: no tensor and no hash of an input is taken from an altered line."""
    whole = killed.journal.read_bytes()
    for step in range(0, len(whole) - 1, len(whole) // 14):
        _again(killed)
        killed.journal.write_bytes(_flip(step / (len(whole) - 1))(whole))
        killed.finish("ties")


def test_the_totals_of_surveys(killed: Place) -> None:
    """Altered or cut, they are counted again; no threshold is ever taken from them."""
    damages = [*DAMAGES.values(), *(_flip(i / 6) for i in range(7))]
    kept = sorted(killed.journal.parent.glob("facts-*"))
    assert len(kept) >= 2
    for number, damage in enumerate(damages):
        _again(killed)
        for path in kept:
            if number % 2 or path != kept[-1]:
                path.write_bytes(damage(path.read_bytes()))
        killed.finish("ties")


def test_things_in_the_place_of_the_journal_and_the_totals(killed: Place) -> None:
    facts = sorted(killed.journal.parent.glob("facts-*"))[0]
    for path in (killed.journal, facts):
        for kind in ("folder", "link", "nothing"):
            _again(killed)
            path.unlink()
            if kind == "folder":
                (path / "inside").mkdir(parents=True)
            elif kind == "link":
                path.symlink_to(killed.home / "base" / "config.json")
            killed.finish("ties")


@pytest.mark.parametrize("where", ["header", "middle", "last", "all"])
def test_bytes_of_finished_tensors(killed: Place, where: str) -> None:
    """What does not add up to what the journal says is merged again, the rest is not."""
    before = _resumed(killed)
    for file in sorted(killed.partial.glob("*.safetensors"))[:2]:
        data = bytearray(file.read_bytes())
        positions = {"header": [30], "middle": [len(data) // 2], "last": [len(data) - 1], "all": range(len(data))}
        for position in positions[where]:
            data[position] ^= 0x55
        file.write_bytes(data)
    resumed = killed.finish("ties").resumed
    assert resumed == before if where == "header" else resumed < before


def _resumed(place: Place) -> int:
    """How many tensors an undamaged state gives back; the state is as before."""
    found = place.finish("ties").resumed
    _again(place)
    assert found >= 4
    return found


@pytest.mark.parametrize("how", ["cut", "longer", "gone", "all gone", "a stray file"])
def test_half_made_files(killed: Place, how: str) -> None:
    files = sorted(killed.partial.glob("*.safetensors"))
    if how == "cut":
        files[0].write_bytes(files[0].read_bytes()[:100])
    elif how == "longer":
        files[0].write_bytes(files[0].read_bytes() + bytes(100))
    elif how == "gone":
        files[1].unlink()
    elif how == "all gone":
        shutil.rmtree(killed.partial)
    else:
        (killed.partial / "old" / "deep").mkdir(parents=True)
        (killed.partial / "old" / "deep" / "thing").write_text("of nobody")
        (killed.partial / "link").symlink_to(killed.home / "base")
        (killed.partial / "broken").symlink_to(killed.home / "nowhere")
        (killed.partial / "config.json").symlink_to(killed.home / "base" / "config.json")
        (killed.partial / "README.md").mkdir()
    killed.finish("ties")
    assert not (killed.out / "old").exists() and not (killed.out / "link").is_symlink()


@pytest.mark.parametrize("kind", ["folder", "link"])
@pytest.mark.parametrize("what", ["partial", "shard", "work", "lock"])
def test_things_in_the_way(killed: Place, what: str, kind: str) -> None:
    """Nothing is written through a link; the message names what to remove."""
    path: Path = {
        "partial": killed.partial,
        "shard": sorted(killed.partial.glob("*.safetensors"))[0],
        "work": killed.journal.parent,
        "lock": killed.out.with_name(".out.plait-lock"),
    }[what]
    victim = killed.home / "victim"
    victim.mkdir()
    (victim / "config.json").write_text("mine")
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(victim if what in ("partial", "work") else victim / "config.json")
    elif what in ("partial", "work"):
        path.write_text("a file")
    else:
        path.mkdir()
        (path / "inside").write_text("mine")
    ending = killed.run("ties")
    assert ending.error == "OutputError" and ending.exit_code == 1, ending
    assert str(path) in ending.message, ending.message
    assert not killed.out.exists()
    assert [(p.name, p.read_text()) for p in victim.iterdir()] == [("config.json", "mine")]
    path.unlink() if not path.is_dir() or path.is_symlink() else shutil.rmtree(path)
    killed.finish("ties")
