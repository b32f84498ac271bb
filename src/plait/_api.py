"""The public verbs: merge into a folder, merge dictionaries of tensors, plan, reproduce."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from plait.adapters import merge_adapter
from plait.engine import Options, Plan, Progress, Result, compile_recipe, default_threads, execute, execute_in_memory
from plait.errors import RecipeError
from plait.recipes import Imported, import_documents, is_mergekit, parse_size, read_documents
from plait.reports import describe_output
from plait.tuning import Soup
from plait.tuning import greedy_soup as cook_greedily

__all__ = ["greedy_soup", "import_mergekit", "merge", "merge_state_dicts", "plan"]


def _options(memory: str | int, threads: int | None, device: str, **others: Any) -> Options:
    return Options(
        memory=parse_size(memory, "memory"),
        threads=default_threads(device) if threads is None else threads,
        device=device,
        **others,
    )


def plan(recipe: str | Path | Mapping[str, Any]) -> Plan:
    """Read a recipe and its models' headers, and return what a merge would do.

    Args:
        recipe: path of a YAML file, or the recipe as a mapping.

    Raises:
        PlaitError: everything that can be found without reading the tensors; see `plait.errors`.
    """
    return compile_recipe(recipe)


def import_mergekit(path: str | Path, *, stage: str | None = None, relative_to: str | Path | None = None) -> Imported:
    """Translate a mergekit recipe into one of plait's.

    `merge` and `plan` take mergekit recipes as they are; this shows what they make of one.

    Args:
        path: a YAML file of one document, or of several for mergekit-multi.
        stage: of several documents the name of the one whose result is wanted.
        relative_to: the folder that the recipe will stand in. Paths of models, which mergekit reads from the current
            folder, are rewritten so that they lead to the same places from there.

    Returns:
        The recipe as plain data, and notes on what is not exactly the same.

    Raises:
        RecipeError: for what mergekit would refuse, for probable typos, and for what plait cannot reproduce.
    """
    try:
        documents = read_documents(Path(path).read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"the recipe {path} cannot be read: {error}.") from None
    if not is_mergekit(documents):
        raise RecipeError(f"{path} is no mergekit recipe: it names no merge_method.")
    folder = Path(relative_to) if relative_to is not None else None

    def rebase(model: str) -> str:
        stays = folder is None or Path(model).is_absolute() or not Path(model).exists()
        return model if stays else os.path.relpath(model, folder)

    return import_documents(documents, stage, rebase)


def merge(
    recipe: str | Path | Mapping[str, Any] | Plan,
    out: str | Path,
    *,
    memory: str | int = "1GiB",
    threads: int | None = None,
    device: str = "cpu",
    overwrite: bool = False,
    block: int | None = None,
    factors: str | Path | None = None,
    compile: Literal["auto", "always", "never"] = "auto",
    progress: Progress | None = None,
    executor: str = "threads",
    address: str | None = None,
    spool: str | Path | None = None,
) -> Result:
    """Merge models into a new model folder.

    The folder appears only when it is complete. Killed at any moment, the same call continues where it stopped and
    gives the same bytes.

    Args:
        recipe: path of a YAML file, the recipe as a mapping, or a plan.
        out: the folder to make, or the URL of one (`s3://bucket/name`).
        memory: bound on bytes of tensors in flight, e.g. "512MiB"; with Ray, of each task.
        threads: worker threads; all cores by default, 4 on a GPU. With Ray, the CPUs of each task.
        device: "cpu", "cuda" or "cuda:N".
        overwrite: replace an existing model folder, once the new one is complete.
        block: elements per block of elementwise methods; chosen by the device by default.
        factors: a folder in which the factorisations of spectral methods are kept, by the content of their matrices,
            for later runs and sweeps; it grows to about twice the size of the deltas in float32.
        compile: whether elementwise methods run as loops made by the system's C compiler, with the same bits: "auto"
            for models of 16 M parameters or 250 tensors and more, "always" or "never".
        progress: told about phases and bytes.
        executor: "threads" of this process, or "ray".
        address: of the Ray cluster; by default RAY_ADDRESS, or a new one on this machine.
        spool: where shards are made before they are uploaded, if `out` is a URL; two of them at most.

    Returns:
        Hashes of the output and of the inputs.

    Raises:
        PlaitError: one subclass per cause; see `plait.errors`. Nothing is left behind unless a run can be continued.
    """
    compiled = recipe if isinstance(recipe, Plan) else compile_recipe(recipe)
    kept = Path(factors) if factors is not None else None
    room = Path(spool) if spool is not None else None
    options = _options(
        memory, threads, device, overwrite=overwrite, block=block, factors=kept, compile=compile, spool=room
    )
    if compiled.recipe.output is not None and compiled.recipe.adapters == "changes":
        if executor != "threads" or address is not None:
            raise RecipeError("adapters are merged by the threads of this process; leave executor and address out.")
        return merge_adapter(compiled, out, options, progress, describe_output)
    if executor == "threads" and address is None:
        return execute(compiled, out, options, progress, describe_output)
    if executor != "ray":
        wrong = "an address is for --executor ray" if executor == "threads" else f"there is no executor {executor!r}"
        raise RecipeError(f"{wrong}; executors are threads and ray.")
    from plait.engine._ray import RayExecutor

    with RayExecutor(address) as cluster:
        return execute(compiled, out, options, progress, describe_output, cluster)


def merge_state_dicts(
    method: str | Sequence[Any],
    experts: Sequence[Mapping[str, Tensor]] | Mapping[str, Mapping[str, Tensor]],
    base: Mapping[str, Tensor] | None = None,
    *,
    weights: Sequence[float] | None = None,
    seed: int = 0,
    dtype: str | None = None,
    memory: str | int = "1GiB",
    threads: int | None = None,
    device: str = "cpu",
    block: int | None = None,
    compile: Literal["auto", "always", "never"] = "auto",
    recipe: Mapping[str, Any] | None = None,
    replay: Callable[[str, str], Tensor] | None = None,
    **parameters: Any,
) -> dict[str, Tensor]:
    """Merge dictionaries of tensors in memory.

    Args:
        method: a method's name, or a list of steps.
        experts: the state dicts to merge, in order or by name (names of a list are expert0, expert1, …).
        base: the state dict they were fine-tuned from, for methods on task vectors.
        weights: one weight per expert.
        seed: seed of random methods.
        dtype: dtype of the result; by default the widest of the inputs.
        memory: bound on bytes of temporaries.
        threads: worker threads; all cores by default, 4 on a GPU.
        device: where to compute.
        block: elements per block of elementwise methods; chosen by the device by default.
        compile: as in `merge`.
        recipe: further keys of a recipe (`copy`, `drop`, `allow_nonfinite`, …).
        replay: called with (tensor, expert) for the uniform numbers of a random method, to repeat another program's.
        **parameters: the method's parameters; a trailing underscore is dropped (`lambda_`). A mapping gives one
            value per expert, a list is spread over depth.

    Returns:
        Name → merged tensor.

    Raises:
        PlaitError: one subclass per cause; see `plait.errors`.

    Example:
        >>> import torch, plait
        >>> base = {"w": torch.zeros(2)}
        >>> experts = [{"w": torch.tensor([1.0, 0.0])}, {"w": torch.tensor([0.0, 2.0])}]
        >>> plait.merge_state_dicts("task_arithmetic", experts, base, weights=[1.0, 0.5])["w"]
        tensor([1., 1.])
    """
    named = dict(experts) if isinstance(experts, Mapping) else {f"expert{i}": e for i, e in enumerate(experts)}
    if weights is not None and len(weights) != len(named):
        raise RecipeError(f"{len(weights)} weights are given for {len(named)} experts.")
    entries: dict[str, Any] = {name: {"model": f"memory:{name}"} for name in named}
    for entry, weight in zip(entries.values(), weights or (), strict=False):
        entry["weight"] = float(weight)
    content: dict[str, Any] = {
        **(recipe or {}),
        "method": method if isinstance(method, str) else list(method),
        "experts": entries,
        "seed": seed,
        "parameters": {key.rstrip("_"): value for key, value in parameters.items()},
    }
    if dtype is not None:
        content["dtype"] = dtype
    memories = {f"memory:{name}": state for name, state in named.items()}
    if base is not None:
        content["base"] = "memory:base"
        memories["memory:base"] = base
    compiled = compile_recipe(content, state_dicts=memories)
    return execute_in_memory(compiled, _options(memory, threads, device, block=block, compile=compile, replay=replay))


def greedy_soup(
    models: Mapping[str, str | Path],
    evaluate: Callable[[Path], float],
    out: str | Path,
    *,
    scores: Mapping[str, float] | None = None,
    recipe: Mapping[str, Any] | None = None,
    **options: Any,
) -> Soup:
    """Average the models that help, best first: see `plait.tuning.greedy_soup`.

    Args:
        models: name → model.
        evaluate: called with the folder of a candidate; returns its held-out score, higher is better.
        out: where the soup is written.
        scores: the models' own scores, where they are known.
        recipe: further keys of the recipe (`dtype`, `drop`, …).
        **options: as those of `merge`.

    Raises:
        PlaitError: as `merge`; RecipeError for a score that is not a finite number.
    """

    def write(content: Mapping[str, Any], folder: Path) -> None:
        merge(content, folder, **options)

    return cook_greedily(models, evaluate, out, write, scores=scores, recipe=recipe)
