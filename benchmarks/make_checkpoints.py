"""Write synthetic checkpoints of real shapes: a base and experts with heavy-tailed deltas, in bfloat16.

    python benchmarks/make_checkpoints.py OUT --size 0.5b --experts 3
    python benchmarks/make_checkpoints.py OUT --tensors 36000
    python benchmarks/make_checkpoints.py OUT --size 8b --sparse 2

Rows of the base are Gaussian with log-normal scales; an expert is the base plus a Student-t(3) delta of about 2 % of
the row's scale plus a part of rank 8. Every tensor depends on (seed, model, tensor name) alone. Random numbers are
re-read from one pool of 2²⁴ at random offsets, so that a billion parameters take seconds. Models that are complete are
kept: the same command with more experts adds those that are missing.

`--tensors N` writes N tiny matrices under the names of a mixture of experts instead of a Llama. `--sparse K` writes the
embedding, the norms, the head and the first K layers, and leaves the rest as holes: whole files of the whole shape on
little disk. A hole reads as zeros in base and experts alike, so such a model measures memory, and nothing else.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

SIZES = {
    "tiny": (256, 4, 4, 2, 688, 4096, True),
    "0.1b": (512, 12, 8, 2, 2048, 50304, True),
    "0.5b": (896, 24, 14, 2, 4864, 151936, True),
    "1b": (2048, 16, 32, 8, 8192, 128256, True),
    "8b": (4096, 32, 32, 8, 14336, 128256, False),
}
POOL = 1 << 24
SHARD = 2 << 30
TINY = 16
TINY_EXPERTS = 64
Shapes = list[tuple[str, tuple[int, ...]]]


def shapes(
    hidden: int, layers: int, heads: int, kv: int, ffn: int, vocab: int, tied: bool
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a Llama."""
    width = hidden // heads
    yield "model.embed_tokens.weight", (vocab, hidden)
    for i in range(layers):
        p = f"model.layers.{i}."
        yield p + "input_layernorm.weight", (hidden,)
        yield p + "self_attn.q_proj.weight", (hidden, hidden)
        yield p + "self_attn.k_proj.weight", (kv * width, hidden)
        yield p + "self_attn.v_proj.weight", (kv * width, hidden)
        yield p + "self_attn.o_proj.weight", (hidden, hidden)
        yield p + "post_attention_layernorm.weight", (hidden,)
        yield p + "mlp.gate_proj.weight", (ffn, hidden)
        yield p + "mlp.up_proj.weight", (ffn, hidden)
        yield p + "mlp.down_proj.weight", (hidden, ffn)
    yield "model.norm.weight", (hidden,)
    if not tied:
        yield "lm_head.weight", (vocab, hidden)


def tiny_shapes(count: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Names and shapes of a mixture of very many very small experts."""
    for i in range(count):
        layer, rest = divmod(i, 3 * TINY_EXPERTS)
        expert, kind = divmod(rest, 3)
        part = ("gate", "up", "down")[kind]
        yield f"model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight", (TINY, TINY)


@dataclass(frozen=True)
class Model:
    """What is written: tensors, their configuration, and which of them stay holes."""

    tensors: Shapes
    config: dict[str, Any]
    filled: int | None = None

    def hole(self, name: str) -> bool:
        """Whether a tensor is left out of a sparse file."""
        parts = name.split(".")
        return self.filled is not None and parts[1] == "layers" and int(parts[2]) >= self.filled


class Pool:
    """Random numbers drawn once and read from many offsets."""

    def __init__(self, seed: int) -> None:
        rng = torch.Generator().manual_seed(seed)
        self.normal = torch.randn(POOL, generator=rng)
        chi = torch.randn(3, POOL, generator=rng).square().mean(0).sqrt()
        self.heavy = torch.randn(POOL, generator=rng) / chi

    def take(self, pool: Tensor, key: str, count: int) -> Tensor:
        """Return `count` numbers for a key."""
        start = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=6).digest(), "little") % POOL
        if start + count <= POOL:
            return pool[start : start + count]
        return torch.cat([pool[start:], pool.repeat(1 + (count - POOL + start) // POOL)[: count - POOL + start]])


def base_tensor(pool: Pool, name: str, shape: tuple[int, ...]) -> Tensor:
    """One tensor of the base."""
    if len(shape) == 1:
        return 1 + 0.1 * pool.take(pool.normal, f"b{name}", shape[0])
    scales = torch.exp(0.3 * pool.take(pool.normal, f"s{name}", shape[0])) * shape[1] ** -0.5
    return pool.take(pool.normal, f"b{name}", shape[0] * shape[1]).view(shape) * scales[:, None]


def delta(pool: Pool, name: str, shape: tuple[int, ...], expert: int) -> Tensor:
    """What one expert changed."""
    key = f"{expert}{name}"
    count = int(torch.Size(shape).numel())
    change = 0.02 * pool.take(pool.heavy, f"d{key}", count).view(shape)
    if len(shape) == 1:
        return 0.1 * change
    u = pool.take(pool.normal, f"u{key}", shape[0] * 8).view(shape[0], 8)
    v = pool.take(pool.normal, f"v{key}", shape[1] * 8).view(8, shape[1])
    return torch.addmm(change, u, v, alpha=0.003) * shape[1] ** -0.5


def shards(tensors: Shapes) -> list[Shapes]:
    """Split into files of at most 2 GiB."""
    files: list[Shapes] = [[]]
    used = 0
    for name, shape in tensors:
        size = 2 * torch.Size(shape).numel()
        if used and used + size > SHARD:
            files.append([])
            used = 0
        files[-1].append((name, shape))
        used += size
    return files


def write_shard(path: Path, tensors: Shapes, model: Model, expert: int | None, pool: Pool) -> int:
    """Write one safetensors file, a tensor at a time."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in tensors:
        start, end = end, end + 2 * torch.Size(shape).numel()
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for name, shape in tensors:
            if model.hole(name):
                continue
            tensor = base_tensor(pool, name, shape)
            if expert is not None:
                tensor = tensor + delta(pool, name, shape, expert)
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(tensor.to(torch.bfloat16).view(torch.int16).numpy())
    return end


def write(out: Path, model: Model, expert: int | None, pool: Pool) -> None:
    """Write one model in shards of at most 2 GiB."""
    out.mkdir(parents=True, exist_ok=True)
    files = shards(model.tensors)
    count = len(files)
    names = [
        f"model-{i + 1:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors" for i in range(count)
    ]
    total = sum(write_shard(out / n, t, model, expert, pool) for n, t in zip(names, files, strict=True))
    if count > 1:
        where = {name: n for n, tensors in zip(names, files, strict=True) for name, _ in tensors}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    (out / "config.json").write_text(json.dumps(model.config, indent=2))


def llama(size: str, layers: int | None, filled: int | None = None) -> Model:
    """A Llama of a named size."""
    hidden, depth, heads, kv, ffn, vocab, tied = SIZES[size]
    depth = layers or depth
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }
    return Model(list(shapes(hidden, depth, heads, kv, ffn, vocab, tied)), config, filled)


def mixture(count: int) -> Model:
    """A mixture of experts of `count` tiny matrices."""
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "model_type": "qwen3_moe",
        "hidden_size": TINY,
        "moe_intermediate_size": TINY,
        "num_experts": TINY_EXPERTS,
        "num_hidden_layers": -(-count // (3 * TINY_EXPERTS)),
        "tie_word_embeddings": True,
        "dtype": "bfloat16",
    }
    return Model(list(tiny_shapes(count)), config)


def make(out: Path, model: Model, experts: int, seed: int = 0) -> None:
    """Write the base and the experts that are not there yet."""
    names = {"base": None} | {f"expert{i}": i for i in range(experts)}
    mark = hashlib.blake2b(repr((seed, model)).encode(), digest_size=16).hexdigest()
    marks = {name: out / f".{name}" for name in names}
    missing = {n: e for n, e in names.items() if not marks[n].is_file() or marks[n].read_text() != mark}
    pool = Pool(seed) if missing else None
    for name, expert in missing.items():
        assert pool is not None
        marks[name].unlink(missing_ok=True)
        write(out / name, model, expert, pool)
        marks[name].write_text(mark)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, help="another number of layers")
    parser.add_argument("--tensors", type=int, help="this many tiny matrices, instead of a Llama")
    parser.add_argument("--sparse", type=int, metavar="K", help="leave all layers but the first K as holes")
    arguments = parser.parse_args()
    if arguments.tensors:
        model = mixture(arguments.tensors)
    else:
        model = llama(arguments.size, arguments.layers, arguments.sparse)
    make(arguments.out, model, arguments.experts, arguments.seed)


if __name__ == "__main__":
    main()
