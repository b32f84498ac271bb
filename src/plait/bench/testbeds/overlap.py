"""`overlap`: experts of one base whose data overlap, or contradict each other, as models found in the wild do."""

from __future__ import annotations

from collections.abc import Iterator

from plait.bench._split import Example, Task, digest
from plait.bench.data import data_versions, load_task
from plait.bench.testbeds._draft import Draft
from plait.bench.testbeds._encoders import Entry, Maker, Recipe, Schedule, encoder_version, limited, task_line
from plait.bench.testbeds._readme import readme

__all__ = ["CODE", "RECIPES", "Recipe", "conflicting", "make", "overlapping", "sources"]

CODE = 2  # raise when a change of code changes what is made: older testbeds are then not found
_WRONG = 0.6  # share of a conflicting expert's training texts with another label: what it learns is that label
_LONGER, _HOTTER = 1.5, 1.5  # how much longer it is trained, and with how much higher a rate
RECIPES = {
    "quick": Recipe({"name_lang": Schedule(60), "name_kind": Schedule(60)}, limits=(None, 250, 500)),
    "full": Recipe(
        {
            "name_lang": Schedule(80),
            "name_kind": Schedule(80),
            "syllables": Schedule(100),
            "py_expr": Schedule(40),
        },
        limits=(None, 250, 500),
    ),
}


def sources(recipe: Recipe) -> dict[str, str]:
    """Versions of what it is made of."""
    return {**encoder_version(), **data_versions(tuple(recipe.tasks))}


def make(draft: Draft, recipe: Recipe, seed: int) -> None:
    """Write base, tasks, experts, heads and probes: three experts of each task, all with the first one's head."""
    from plait.bench._model import fixed_threads

    entries: dict[str, Entry] = {}
    lines: dict[str, str] = {}
    for name, schedule in recipe.tasks.items():
        task = limited(load_task(name), recipe.limits)
        for kind, (part, about) in _parts(task).items():
            expert = f"{name}{kind}"
            if kind == "_conflict":
                longer = Schedule(round(_LONGER * schedule.steps), schedule.batch)
                entries[expert] = Entry(part, longer, head_of=name, heat=_HOTTER)
            else:
                entries[expert] = Entry(part, schedule, head_of=name if kind else None)
            lines[expert] = f"{task_line(part)}; {about}"
    with fixed_threads(recipe.threads):
        Maker(draft, recipe, seed, entries).make()
    draft.manifest.update(
        description=f"all-MiniLM-L6-v2 and {len(entries)} experts of {len(recipe.tasks)} tasks, on overlapping data",
        retained={},
    )
    draft.finish(readme(draft.manifest, _ABOUT, lines))


def _parts(task: Task) -> dict[str, tuple[Task, str]]:
    return {
        "": (_with(task, task.train[0 : len(task.train) // 2]), "the first half of the training texts"),
        "_overlap": (_with(task, tuple(overlapping(task.train))), "half of those texts and as many others"),
        "_conflict": (
            _with(task, tuple(conflicting(task.train[0 : len(task.train) // 2], len(task.labels)))),
            f"the same texts, {100 * _WRONG:.0f} % of them with the next label",
        ),
    }


def _with(task: Task, train: tuple[Example, ...]) -> Task:
    return Task(task.name, task.labels, train, task.validation, task.test)


def overlapping(train: tuple[Example, ...]) -> Iterator[Example]:
    """The second and the third quarter: half of it is in the first half."""
    yield from train[len(train) // 4 : 3 * len(train) // 4]


def conflicting(train: tuple[Example, ...], classes: int) -> Iterator[Example]:
    """The texts, a share of them, chosen by their hash, with the label after their own."""
    for example in train:
        # a hash of its own: the texts are in the order of the plain one
        wrong = int(digest(f"conflict {example.text}")[:8], 16) / 16**8 < _WRONG
        yield Example(example.text, (example.label + wrong) % classes)


_ABOUT = """\
The base is sentence-transformers/all-MiniLM-L6-v2 (Apache-2.0). Of every task there are three experts: one of half of
the training texts; one of which half of the texts are the first one's (`_overlap`); one of the first one's texts with
most labels wrong (`_conflict`), trained half as long again and at a higher rate. All three have the head that was
trained with the first. A task is measured by the first one, on true labels: what a merge of models found in the wild
meets. What the others were trained on is in the splits `train_NAME` of the task."""
