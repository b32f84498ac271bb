"""The floor: read every input once, and write one of them out again, with the threads a merge has.

    python floor.py OUT THREADS MODEL MODEL…

Each thread preads into one buffer of its own that it uses again and again, and pwrites what belongs to the first
model; then the output is synced to its device. No merge of these inputs into one output can be much faster. Prints the
seconds and the processor seconds measured inside, without the start of the interpreter, as JSON.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

BLOCK = 8 << 20


def floor(models: list[Path], out: Path, threads: int) -> dict[str, float]:
    """Read and copy; return seconds and bytes."""
    out.mkdir(parents=True)
    sources: list[tuple[int, int]] = []
    targets: list[int] = []
    blocks: list[tuple[int, int, int | None, int]] = []
    for model in models:
        for path in sorted(model.glob("*.safetensors")):
            source = os.open(path, os.O_RDONLY)
            size = os.fstat(source).st_size
            sources.append((source, size))
            target = None
            if model == models[0]:
                target = os.open(out / path.name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
                os.ftruncate(target, size)
                targets.append(target)
            blocks += [(source, at, target, min(BLOCK, size - at)) for at in range(0, size, BLOCK)]
    blocks.sort(key=lambda b: b[1])  # all models at one place, as a merge goes; spreads the writes too
    queue = iter(blocks)
    lock = threading.Lock()

    def work() -> None:
        buffer = memoryview(bytearray(BLOCK))
        while True:
            with lock:
                block = next(queue, None)
            if block is None:
                return
            source, at, target, count = block
            if os.preadv(source, [buffer[:count]], at) != count:
                raise OSError("short read")
            if target is not None and os.pwrite(target, buffer[:count], at) != count:
                raise OSError("short write")

    start, cpu = time.perf_counter(), time.process_time()
    workers = [threading.Thread(target=work) for _ in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    for target in targets:
        os.fsync(target)
        os.close(target)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    for source, _ in sources:
        os.close(source)
    return {"work": seconds, "work_cpu": cpu, "bytes_read": sum(s for _, s in sources)}


if __name__ == "__main__":
    print(json.dumps(floor([Path(m) for m in sys.argv[3:]], Path(sys.argv[1]), int(sys.argv[2]))))
