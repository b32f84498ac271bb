"""Write synthetic Llama-shaped checkpoints: a base and experts with heavy-tailed deltas, in bfloat16.

    python benchmarks/make_checkpoints.py OUT --size 0.5b --experts 3

Rows of the base are Gaussian with log-normal scales; an expert is the base plus a Student-t(3) delta of about 2 % of
the row's scale plus a part of rank 8. Every tensor depends on (seed, model, tensor name) alone. Random numbers are
re-read from one pool at random offsets, so that a billion parameters take seconds.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
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


def write(out: Path, size: str, expert: int | None, pool: Pool) -> None:
    """Write one model in shards of at most 2 GiB."""
    out.mkdir(parents=True, exist_ok=True)
    spec = SIZES[size]
    weight_map: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    files: list[Path] = []
    total = used = 0

    def flush() -> None:
        nonlocal used
        path = out / f"part-{len(files)}.safetensors"
        save_file(shard, path, metadata={"format": "pt"})
        files.append(path)
        weight_map.update(dict.fromkeys(shard, path.name))
        shard.clear()
        used = 0

    for name, shape in shapes(*spec):
        tensor = base_tensor(pool, name, shape)
        if expert is not None:
            tensor = tensor + delta(pool, name, shape, expert)
        low = tensor.to(torch.bfloat16)
        if used and used + low.nbytes > SHARD:
            flush()
        shard[name] = low
        used += low.nbytes
        total += low.nbytes
    flush()
    names = {
        p.name: "model.safetensors" if len(files) == 1 else f"model-{i + 1:05d}-of-{len(files):05d}.safetensors"
        for i, p in enumerate(files)
    }
    for path in files:
        path.rename(out / names[path.name])
    if len(files) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": {k: names[v] for k, v in weight_map.items()}}
        (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    hidden, layers, heads, kv, ffn, vocab, tied = spec
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }
    (out / "config.json").write_text(json.dumps(config, indent=2))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--experts", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, help="another number of layers")
    arguments = parser.parse_args()
    if arguments.layers:
        spec = list(SIZES[arguments.size])
        spec[1] = arguments.layers
        SIZES[arguments.size] = tuple(spec)  # type: ignore[assignment]
    pool = Pool(arguments.seed)
    write(arguments.out / "base", arguments.size, None, pool)
    for expert in range(arguments.experts):
        write(arguments.out / f"expert{expert}", arguments.size, expert, pool)


if __name__ == "__main__":
    main()
