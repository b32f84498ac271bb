"""A folder with tiny models, recipes over them, and what they must become."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from warm import Ending, Fault, Warm

from models import CONFIG, State, save, tree

Files = dict[str, bytes]

#: per recipe: method and parameters, and whether the output is one file or three
RECIPES: dict[str, dict[str, Any]] = {
    "linear": {"method": "linear", "dtype": "bfloat16"},
    "ties": {"method": "ties", "shard_size": "4KB", "parameters": {"density": 0.4}},
    "other": {"method": "ties", "shard_size": "4KB", "parameters": {"density": 0.7}},
}


def state(seed: int) -> State:
    """Seven tensors of an odd little model, in three shards of 4 KB."""
    rng = torch.Generator().manual_seed(seed)
    names = ["model.embed_tokens.weight", *(f"model.layers.{i}.mlp.up_proj.weight" for i in range(5))]
    drawn = {name: torch.randn(24, 16, generator=rng) for name in names}
    return {**drawn, "model.norm.weight": torch.randn(16, generator=rng)}


@dataclass
class Place:
    """The models, the process that merges them, and the target.

    Attributes:
        home: everything lies in it.
        inputs: files of all models, as they were.
    """

    home: Path
    warm: Warm
    inputs: Files
    wanted: dict[str, Files]

    @property
    def out(self) -> Path:
        """Where the merged model goes."""
        return self.home / "work" / "out"

    @property
    def partial(self) -> Path:
        """Where it grows."""
        return self.out.with_name(".out.plait-partial")

    @property
    def journal(self) -> Path:
        """What is finished of it."""
        return self.out.with_name(".out.plait-work") / "journal"

    def recipe(self, name: str) -> dict[str, Any]:
        """One of the recipes, with the models."""
        names = {f"e{i}": str(self.home / f"expert{i}") for i in range(2)}
        base = {} if name == "linear" else {"base": str(self.home / "base")}
        return {**RECIPES[name], **base, "experts": names}

    def run(self, name: str, fault: Fault | None = None, **options: Any) -> Ending:
        """Merge in a process of its own."""
        return self.warm.run(self.recipe(name), self.out, fault, **options)

    def points(self, name: str, halves: bool = True, **options: Any) -> list[Fault]:
        """Every point at which a merge can be killed: before each call that changes the file system, and within it."""
        place = make_place(self.home / "points", self.warm)
        if options.get("overwrite"):
            assert not place.run("other").error
        found: list[Fault] = []
        for number, (call, _) in enumerate(place.run(name, **options).calls, start=1):
            found.append(Fault(at=number))
            if halves and call in ("pwrite", "write"):
                found.append(Fault(at=number, half=True))
        shutil.rmtree(place.home)
        return found

    def want(self, name: str) -> Files:
        """The files of an undisturbed merge."""
        if name not in self.wanted:
            assert not self.warm.run(self.recipe(name), self.home / name).error
            self.wanted[name] = tree(self.home / name)
        return self.wanted[name]

    def left(self) -> list[str]:
        """What stands beside the output."""
        return sorted(p.name for p in self.out.parent.iterdir() if p != self.out)

    def check_inputs(self) -> None:
        """No input was touched."""
        assert _files(self.home) == self.inputs

    def finish(self, name: str, **options: Any) -> Ending:
        """The same command again: it succeeds, with the bytes of an undisturbed merge, and nothing is left over."""
        ending = self.run(name, **options)
        assert not ending.error and not ending.killed, ending
        assert tree(self.out) == self.want(name)
        assert self.left() == []
        self.check_inputs()
        return ending

    def clear(self) -> None:
        """Remove the output."""
        shutil.rmtree(self.out.parent)
        self.out.parent.mkdir()


def _files(home: Path) -> Files:
    return {f"{m}/{k}": v for m in ("base", "expert0", "expert1") for k, v in tree(home / m).items()}


def make_place(home: Path, warm: Warm) -> Place:
    """Write the models."""
    base = state(0)
    save(home / "base", base)
    for i in range(2):
        step = state(i + 1)
        save(home / f"expert{i}", {k: v + 0.1 * step[k] for k, v in base.items()}, CONFIG)
        (home / f"expert{i}" / "tokenizer.json").write_text(json.dumps({"of": i}))
    (home / "work").mkdir()
    return Place(home, warm, _files(home), {})
