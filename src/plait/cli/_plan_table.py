"""The plan, as a person reads it before saying yes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from plait.engine import Plan

__all__ = ["print_plan"]


def print_plan(
    plan: Plan,
    output: str | None,
    *,
    memory: str,
    threads: int | None,
    device: str,
    overwrite: bool,
    spool: Path | None = None,
) -> None:
    """Print shapes, sizes, passes, memory and disk; check what a run would check."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from plait._api import _options
    from plait.engine import check_memory, check_output, resident_memory, room_at

    options = _options(memory, threads, device, overwrite=overwrite, spool=spool)
    options.check()
    block = check_memory(plan, options)
    if output is not None:
        check_output(plan, output, options)
    table = Table(show_header=False, box=None, padding=(0, 2))
    table.add_column(style="bold")
    table.add_column()
    steps = " → ".join(step.cls.name for step in plan.chain.steps)
    table.add_row("method", steps)
    for name, checkpoint in plan.inputs.items():
        table.add_row(
            escape(name), f"{escape(checkpoint.label)}: {len(checkpoint)} tensors, {checkpoint.nbytes / 1e6:,.1f} MB"
        )
    merged = sum(not job.copies for job in plan.jobs)
    table.add_row("tensors", f"{len(plan.jobs)}: {merged} merged, {len(plan.jobs) - merged} copied")
    table.add_row("parameters", f"{plan.parameters:,}")
    dtypes = Counter(str(job.entry.dtype).removeprefix("torch.") for job in plan.jobs)
    table.add_row("dtype", ", ".join(f"{name} ({count})" for name, count in dtypes.most_common()))
    table.add_row("output", f"{plan.layout.nbytes / 1e6:,.1f} MB in {len(plan.layout.shards)} file(s)")
    table.add_row(
        "reads", f"{plan.read_bytes / 1e6:,.1f} MB, {plan.model_rounds} pass(es) over the models before merging"
    )
    peak = plan.memory(block, options.threads, options.memory)
    whole = resident_memory(plan, options)
    how = f"{options.threads} thread(s), blocks of {block:,}"
    table.add_row("memory", f"{peak / 2**20:,.0f} MiB of tensors in flight, {how}")
    table.add_row("", f"about {whole / 2**20:,.0f} MiB for the whole process")
    home, free = room_at(output, options)
    table.add_row("disk", f"{free / 1e9:,.1f} GB free at {home}")
    for note in plan.notes:
        table.add_row("note", note)
    Console().print(table)
