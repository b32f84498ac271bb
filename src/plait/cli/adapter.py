"""`plait adapter …` and `plait recover`: what an adapter holds, and adapters from models and from other adapters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from plait.adapters import AdapterInfo, Kept

__all__ = ["register"]

Out = Annotated[Path, typer.Option("--output", "-o", help="The folder to make.")]
Rank = Annotated[int | None, typer.Option("--rank", "-r", min=1, help="Largest rank of a module.")]
Energy = Annotated[float | None, typer.Option(help="Share of each change's squared norm that is kept, e.g. 0.95.")]
Dtype = Annotated[str | None, typer.Option(help="Dtype of the factors.")]
For = Annotated[str | None, typer.Option("--for", help="Keep the limits of vllm.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing folder.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable.")]


def register(app: typer.Typer) -> None:
    """Add the verbs."""
    group = typer.Typer(
        help="Adapters: look at them, make them of models, convert and pack them.", no_args_is_help=True
    )
    app.add_typer(group, name="adapter")

    @group.command()
    def info(
        adapter: Annotated[str, typer.Argument(help="A PEFT folder or an adapter file.")], as_json: Json = False
    ) -> None:
        """Show ranks, scales and sizes of an adapter's changes, and what it has beside them."""
        from plait.adapters import adapter_info

        _print_info(adapter_info(adapter), adapter, as_json)

    @group.command()
    def extract(
        base: Annotated[str, typer.Argument(help="The model that the adapter will be put on.")],
        model: Annotated[str, typer.Argument(help="The full fine-tune.")],
        output: Out,
        rank: Rank = None,
        energy: Energy = None,
        match: Annotated[str, typer.Option(help="Only tensors whose names match this glob pattern.")] = "*",
        dtype: Dtype = None,
        target: For = None,
        overwrite: Overwrite = False,
    ) -> None:
        """Make the adapter that is closest to a full fine-tune, and say how close it is."""
        from plait.adapters import extract_adapter
        from plait.checkpoints import parse_dtype

        found = extract_adapter(
            base,
            model,
            output,
            rank=rank,
            energy=energy,
            match=match,
            dtype=parse_dtype(dtype or "float32"),
            target=_target(target),
            overwrite=overwrite,
        )
        _print_kept(found.kept)
        for name, share in found.left.items():
            typer.echo(f"left out: {name} (its change is {share:.2%} of the weight)")
        typer.echo(f"{output}: {len(found.kept)} modules; {found.error:.3%} of the whole change is left out")

    @group.command()
    def convert(
        adapter: Annotated[str, typer.Argument(help="A PEFT folder or an adapter file.")],
        output: Out,
        base: Annotated[str | None, typer.Option(help="The model it is for; Kohya's names need it.")] = None,
        rank: Rank = None,
        energy: Energy = None,
        dtype: Dtype = None,
        style: Annotated[str, typer.Option(help="Whose key style: peft, diffusers or kohya.")] = "peft",
        component: Annotated[str, typer.Option(help="Component of a pipeline, for diffusers and kohya.")] = "unet",
        target: For = None,
        overwrite: Overwrite = False,
    ) -> None:
        """Write an adapter in another rank, dtype or key style."""
        from plait.adapters import convert_adapter
        from plait.checkpoints import parse_dtype
        from plait.errors import RecipeError

        if style not in ("peft", "diffusers", "kohya"):
            raise RecipeError(f"--style {style}: styles are peft, diffusers and kohya.")
        kept = convert_adapter(
            adapter,
            output,
            base=base,
            rank=rank,
            energy=energy,
            dtype=parse_dtype(dtype) if dtype else None,
            style=cast(Any, style),
            component=component,
            target=_target(target),
            overwrite=overwrite,
        )
        _print_kept(kept)
        typer.echo(f"{output}: {len(kept)} modules")

    @group.command()
    def pack(
        adapters: Annotated[list[str], typer.Argument(help="Adapters: a path, or NAME=PATH.")],
        output: Out,
        basis: Annotated[int, typer.Option("--basis", "-p", min=1, help="Number of basis models that are kept.")],
        overwrite: Overwrite = False,
    ) -> None:
        """Keep several adapters as combinations of a few basis models (reversible merging); see `plait recover`."""
        from plait.adapters import pack_adapters

        errors = pack_adapters(_named(adapters), output, basis, overwrite=overwrite)
        for name, modules in errors.items():
            typer.echo(f"{name}: its changes are recovered to within {max(modules.values(), default=0.0):.3%}")

    @group.command()
    def start(
        base: Annotated[str, typer.Argument(help="The model to train on.")],
        output: Out,
        rank: Annotated[int, typer.Option("--rank", "-r", min=1, help="Rank of every module.")],
        index: Annotated[int, typer.Option(min=0, help="Which adapter this is: no two may have one number.")],
        target: Annotated[list[str], typer.Option(help="End of module names, e.g. q_proj; may be repeated.")],
        seed: Annotated[int, typer.Option(help="Seed of the bases, the same for all adapters.")] = 0,
        overwrite: Overwrite = False,
    ) -> None:
        """Make an adapter to train, whose frozen A shares no direction with those of other numbers."""
        from plait.adapters import start_adapter

        count = start_adapter(base, output, targets=target, rank=rank, index=index, seed=seed, overwrite=overwrite)
        typer.echo(f"{output}: {count} modules; keep lora_A frozen in training")

    @group.command()
    def overlap(
        first: Annotated[str, typer.Argument(help="An adapter.")],
        second: Annotated[str, typer.Argument(help="Another one.")],
    ) -> None:
        """Show how much two adapters read from the same inputs: 0 where their sum does not interfere."""
        from plait.adapters import overlap as run

        found = run(first, second)
        for module, share in found.items():
            typer.echo(f"{share:8.4f}  {module}")
        typer.echo(f"{sum(found.values()) / max(len(found), 1):8.4f}  mean of {len(found)} modules that both change")

    @app.command()
    def recover(
        packed: Annotated[Path, typer.Argument(help="A folder that `plait adapter pack` made.")],
        name: Annotated[str, typer.Argument(help="Which of the adapters.")],
        output: Out,
        overwrite: Overwrite = False,
    ) -> None:
        """Take one adapter out of a packed set."""
        from plait.adapters import recover_adapter

        kept = recover_adapter(packed, name, output, overwrite=overwrite)
        worst = max((k.error for k in kept.values()), default=0.0)
        typer.echo(f"{output}: {len(kept)} modules, recovered to within {worst:.3%}")


def _target(word: str | None) -> Any:
    from plait.errors import RecipeError

    if word not in (None, "vllm"):
        raise RecipeError(f"--for {word}: plait knows the limits of vllm.")
    return word


def _named(items: list[str]) -> dict[str, str]:
    from plait.errors import RecipeError

    named: dict[str, str] = {}
    for item in items:
        name, sign, path = item.partition("=")
        name, path = (name, path) if sign else (item.rstrip("/").rsplit("/", 1)[-1], item)
        if name in named:
            raise RecipeError(f"two adapters are called {name!r}; name them: NAME=PATH.")
        named[name] = path
    return named


def _print_kept(kept: Mapping[str, Kept]) -> None:
    width = max((len(module) for module in kept), default=0)
    for module, record in kept.items():
        typer.echo(f"{module:{width}}  rank {record.rank:4}  error {record.error:.3%}")


def _print_info(found: AdapterInfo, label: str, as_json: bool) -> None:
    import dataclasses
    import json

    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), indent=1))
        return
    width = max((len(module) for module in found.modules), default=0)
    for module, facts in found.modules.items():
        shape = " × ".join(str(n) for n in facts["shape"])
        typer.echo(
            f"{module:{width}}  {shape:>14}  rank {facts['rank']:4}  scale {facts['scale']:<7.4g}"
            f"  norm {facts['norm']:<9.4g}  99 % in rank {facts['rank99']}"
        )
    dtypes = ", ".join(f"{count} tensors in {dtype}" for dtype, count in found.dtypes.items())
    typer.echo(f"\n{label}: {found.style} names, {found.parameters:,} parameters, {dtypes}")
    typer.echo(f"base: {found.base or 'not said'}")
    if found.features:
        typer.echo(f"beside plain factors: {', '.join(found.features)}")
    for name in found.full:
        typer.echo(f"trained in full: {name}")
