"""The plan on a Ray cluster: surveys in bundles, merges shard by shard; the driver adds up and keeps the journal."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from plait._versions import versions
from plait.checkpoints import Shard
from plait.engine._options import Options
from plait.engine._plan import Job, Plan
from plait.engine._ray_tasks import Spec, make_shard, stamps_of, survey_bundle
from plait.engine._scheduler import INTERPRETER
from plait.engine._workers import Finished, Workers
from plait.errors import ClusterError, MemoryBudgetError, MissingExtraError, PlaitError, RecipeError

if TYPE_CHECKING:
    from plait.engine._output import GrowingOutput
    from plait.engine._remote_output import RemoteOutput
    from plait.engine._run import Run

__all__ = ["RayExecutor"]

#: how often a task is begun anew when its worker or node is lost
RETRIES = 4
_PATIENCE = 10.0  # seconds for a cluster to answer at all
#: bytes that one survey task reads: small enough to spread, large enough to be worth a task
LEAST, MOST = 64 << 20, 1 << 30


def _ray() -> Any:
    try:
        import ray
    except ImportError:
        raise MissingExtraError("--executor ray needs Ray: pip install 'plait[ray]'") from None
    return ray


def _reach(address: str) -> None:
    """Find an address where nobody answers in seconds: Ray itself would ask for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", "local" and what a name service resolves
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE).close()
    except OSError as error:
        raise _not_joined(address, error) from None


def _not_joined(address: str, error: BaseException) -> ClusterError:
    return ClusterError(
        f"the Ray cluster {address} cannot be joined: {error}. Check the address, or leave --address out to begin one "
        "here."
    )


class RayExecutor:
    """Joins a cluster, or begins one on this machine, for as long as it is open.

    Attributes:
        address: of the cluster, as `ray.init` takes it; by default RAY_ADDRESS, or a new one on this machine.
    """

    def __init__(self, address: str | None = None) -> None:
        self.address = address
        self._ours = False

    def __enter__(self) -> RayExecutor:
        ray = _ray()
        if ray.is_initialized():
            return self
        address = self.address or os.environ.get("RAY_ADDRESS")
        if address:
            _reach(address)
        options = {"address": address} if address else {"address": "local", "include_dashboard": False}
        try:
            ray.init(**options, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise _not_joined(address or "on this machine", error) from None
        self._ours = True
        return self

    def __exit__(self, *_: object) -> None:
        if self._ours:
            self._ours = False
            _ray().shutdown()

    def check(self, plan: Plan, options: Options) -> None:
        """Refuse what workers elsewhere could not do.

        Raises:
            RecipeError: for models in memory and for replayed random numbers.
            ClusterError: if there is nobody to work.
            MemoryBudgetError: if no node has the memory that one task may take.
        """
        held = [name for name, c in plan.inputs.items() if any(t.source == "memory" for t in c.tensors.values())]
        if held:
            raise RecipeError(f"{held[0]!r} is a model in memory, which workers elsewhere cannot read; save it first.")
        if options.replay is not None:
            raise RecipeError("random numbers can be replayed only by the threads of this process.")
        self._fit(options)

    def _fit(self, options: Options) -> tuple[int, int]:
        """CPUs and bytes of one task, such that some node can run it."""
        nodes = [node["Resources"] for node in _ray().nodes() if node["Alive"]]
        cpus = max((int(node.get("CPU", 0)) for node in nodes), default=0)
        if not cpus:
            raise ClusterError(
                "the Ray cluster has no node with CPUs; start workers (ray start --address=…) and retry."
            )
        need = options.memory + INTERPRETER
        most = max(int(node.get("memory", 0)) for node in nodes)
        if need > most:
            raise MemoryBudgetError(
                f"one task may take {need / 2**20:,.0f} MiB, but no node of the cluster offers more than "
                f"{most / 2**20:,.0f} MiB: pass a smaller --memory."
            )
        return min(options.threads, cpus), need

    @contextmanager
    def start(self, run: Run) -> Iterator[Workers]:
        """Put the run's description where all workers find it."""
        threads, need = self._fit(run.options)
        options = replace(run.options, threads=threads)
        plan = run.plan
        fingerprint = plan.fingerprint(options.device)
        spec = Spec(plan.recipe, plan.source.folder, options, fingerprint, versions(), stamps_of(plan))
        workers = _RayWorkers(run, spec, need)
        try:
            yield workers
        finally:
            workers.stop()


class _RayWorkers:
    def __init__(self, run: Run, spec: Spec, memory: int) -> None:
        ray = _ray()
        self._run = run
        self._pending: set[Any] = set()
        self._spec = ray.put(spec)
        wanted: dict[str, Any] = {
            "num_cpus": spec.options.threads,
            "num_gpus": 1 if spec.options.device.startswith("cuda") else 0,
            "memory": memory,
            "max_retries": RETRIES,
            "retry_exceptions": False,
            "scheduling_strategy": "SPREAD",
        }
        self._survey = ray.remote(survey_bundle).options(**wanted, name="plait survey")
        self._shard = ray.remote(make_shard).options(**wanted, name="plait shard")
        self._slots = max(1, int(ray.cluster_resources().get("CPU", 1)) // spec.options.threads)

    def _facts(self) -> Any:
        return _ray().put([evaluator.facts for evaluator in self._run.evaluators])

    def survey(self, index: int, step: int, jobs: Sequence[Job]) -> Iterator[Any]:
        """Survey in bundles of bounded bytes."""
        facts = self._facts()
        tasks: dict[Any, list[Job]] = {}
        for bundle in self._bundles(jobs):
            names = [job.name for job in bundle]
            tasks[self._survey.remote(self._spec, facts, index, step, names)] = bundle
        for bundle, part in self._collect(tasks):
            self._run.progress.advance(sum(s.nbytes for job in bundle for s in job.sources))
            yield part

    def two_rounds(self, index: int, step: int, jobs: Sequence[Job]) -> tuple[Any, Any] | None:
        """Rounds are tasks of their own here."""
        return None

    def _bundles(self, jobs: Sequence[Job]) -> Iterator[list[Job]]:
        sizes = [sum(s.nbytes for s in job.sources) for job in jobs]
        limit = min(MOST, max(LEAST, sum(sizes) // (4 * self._slots)))
        bundle: list[Job] = []
        held = 0
        for job, size in zip(jobs, sizes, strict=True):
            if bundle and held + size > limit:
                yield bundle
                bundle, held = list[Job](), 0
            bundle.append(job)
            held += size
        if bundle:
            yield bundle

    def merge(
        self, jobs: Sequence[Job], output: GrowingOutput | RemoteOutput, done: Callable[[Sequence[Finished]], None]
    ) -> None:
        """Make each shard in one task."""
        facts, sink = self._facts(), output.sink
        tasks: dict[Any, tuple[Shard, dict[str, Job]]] = {}
        for shard in self._run.plan.layout.shards:
            places = {entry.name for entry in shard.entries}
            mine = {job.name: job for job in jobs if job.name in places}
            if mine:
                tasks[self._shard.remote(self._spec, facts, sink, shard.name, list(mine))] = (shard, mine)
        for (shard, mine), (made, receipt) in self._collect(tasks):
            for name, _, inputs in made:
                for leaf, digest in zip(self._run.leaves(mine[name]), inputs, strict=True):
                    self._run.hashes.restore(leaf, digest)
            done([Finished(mine[name], digest, inputs) for name, digest, inputs in made])
            output.delivered(shard, receipt)
            self._run.progress.advance(sum(s.nbytes for job in mine.values() for s in job.sources))

    def _collect(self, tasks: Mapping[Any, Any]) -> Iterator[tuple[Any, Any]]:
        """Yield (what a task was for, its answer) as answers come."""
        ray = _ray()
        from ray.exceptions import RayError, RayTaskError

        self._pending = set(tasks)
        while self._pending:
            done, _ = ray.wait(list(self._pending), num_returns=1)
            for ref in done:
                try:
                    answer = ray.get(ref)
                except RayTaskError:
                    raise  # a mistake of ours, with its traceback
                except RayError as error:
                    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
                    raise ClusterError(
                        f"the cluster lost a task {RETRIES + 1} times or could not run it ({type(error).__name__}: "
                        f"{reason}). What is finished is kept: run the same command again to continue."
                    ) from None
                self._pending.discard(ref)
                if isinstance(answer, PlaitError):
                    raise answer
                yield tasks[ref], answer

    def stop(self) -> None:
        """Stop what is still at work: it must not write into an output that is being cleared away."""
        ray = _ray()
        for ref in self._pending:
            ray.cancel(ref, force=True)
        if self._pending:
            ray.wait(list(self._pending), num_returns=len(self._pending), timeout=20)
