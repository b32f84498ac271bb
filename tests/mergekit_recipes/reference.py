"""What a mergekit recipe means, written a second time and plainly: per tensor, in torch, nothing shared with plait.

It reads the YAML by itself, resolves every parameter for every tensor, and computes each method from its definition
in float64 on float32 task vectors. Random masks are numbers that the caller gives.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

State = dict[str, Tensor]
Uniform = Callable[[str, str], Tensor]

NAMES = {
    "dtype": {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64},
    "normalize": {"linear": True, "ties": True, "della": True},
}
_LAYER = re.compile(r"(.*?layers\.)(\d+)(\..*)")


def merge(text: str, folder: Path, uniform: Uniform) -> State:
    """Run a recipe; of several documents the one without a name, or the last."""
    documents = list(yaml.safe_load_all(text))
    named = {d["name"]: d for d in documents if "name" in d}
    last = next((d for d in documents if "name" not in d), documents[-1])

    @cache
    def load(name: str) -> State:
        return run(named[name]) if name in named else read(folder, name)

    def run(document: dict[str, Any]) -> State:
        return _Run(document, load, uniform, folder).state()

    return run(last)


@cache
def read(folder: Path, name: str) -> State:
    """A model's tensors, an adapter's product added."""
    name, _, adapter = name.partition("+")
    state = load_file(folder / name / "model.safetensors")
    if adapter:
        low = load_file(folder / adapter / "adapter_model.safetensors")
        for key in [k for k in low if k.endswith("lora_A.weight")]:
            target = key.removeprefix("base_model.model.").replace("lora_A.weight", "weight")
            update = low[key.replace("lora_A", "lora_B")].double() @ low[key].double()
            state[target] = (state[target].double() + 2.0 * update).to(state[target].dtype)  # alpha 8, r 4
    return state


class _Run:
    def __init__(self, document: dict[str, Any], load: Callable[[str], State], uniform: Uniform, folder: Path) -> None:
        self.document, self.load, self.uniform, self.folder = document, load, uniform, folder
        self.method = document["merge_method"]
        content = next(iter(document["modules"].values())) if "modules" in document else document
        self.module = content.get("parameters") if "modules" in document else None
        self.base = _name(document.get("base_model"))
        if "models" in content:
            sources = [dict(m) for m in content["models"]]
            if self.base and all(_name(s["model"]) != self.base for s in sources):
                sources.append({"model": self.base})
            for source in sources:
                depth = max(int(m.group(2)) for n in self.load(_name(source["model"])) if (m := _LAYER.match(n))) + 1
                source["layer_range"] = [0, depth]
            self.slices: list[dict[str, Any]] = [{"sources": sources}]
        else:
            self.slices = content["slices"]

    def state(self) -> State:
        out: State = {}
        first, last = self.slices[0], self.slices[-1]
        donor = self.load(_name(first["sources"][0]["model"]))
        outside = [n for n in donor if not _LAYER.match(n)]
        for name in outside:
            if "embed" in name:
                self.tensor(out, first, name, [name] * len(first["sources"]), 0.0)
        index = 0
        for part in self.slices:
            begin = [s["layer_range"][0] for s in part["sources"]]
            count = part["sources"][0]["layer_range"][1] - begin[0]
            for i in range(count):
                t = i / (count - 1) if count > 1 else 1.0
                for suffix in [m.group(3) for n in donor if (m := _LAYER.match(n)) and m.group(2) == "0"]:
                    names = [f"model.layers.{b + i}{suffix}" for b in begin]
                    self.tensor(out, part, f"model.layers.{index}{suffix}", names, t)
                index += 1
        for name in outside:
            if "embed" not in name:
                self.tensor(out, last, name, [name] * len(last["sources"]), 0.0)
        return out

    def tensor(self, out: State, part: dict[str, Any], name: str, names: list[str], t: float) -> None:
        sources = part["sources"]
        base = _name(part.get("base_model")) or self.base
        models = [_name(s["model"]) for s in sources]
        tensors = [self.load(m)[n] for m, n in zip(models, names, strict=True)]
        wanted = self.document.get("tokenizer") or {"source": self.document.get("tokenizer_source")}
        if wanted["source"] is not None and name in ("model.embed_tokens.weight", "lm_head.weight"):
            tensors = _aligned(dict(zip(models, tensors, strict=True)), wanted, base, self.folder)
        scopes = [part.get("parameters"), self.module, self.document.get("parameters")]

        def shared(key: str, default: Any = None) -> Any:
            return _resolve(key, scopes, name, t, default)

        def own(key: str, default: Any = None, with_base: bool = False) -> list[Any]:
            return [
                _resolve(key, [s.get("parameters"), *scopes], n, t, default)
                for s, m, n in zip(sources, models, names, strict=True)
                if with_base or m != base
            ]

        others = [x.float() for x, m in zip(tensors, models, strict=True) if m != base]
        origin = next((x.float() for x, m in zip(tensors, models, strict=True) if m == base), None)
        labels = [m for m in models if m != base]
        everything = [x.float() for x in tensors]
        if self.method in METHODS_OF_ALL:
            found = METHODS_OF_ALL[self.method](everything, origin, lambda k, d=None: own(k, d, True), shared)
        else:
            draws = [lambda label=label: self.uniform(name, label) for label in labels]
            found = METHODS_OF_DELTAS[self.method](self.method, others, origin, own, shared, draws)
        kind = self.document.get("out_dtype") or self.document.get("dtype")
        wide = torch.promote_types(tensors[0].dtype, tensors[-1].dtype)
        out[name] = found.to(NAMES["dtype"][kind.removeprefix("torch.")] if kind else wide)


def _aligned(tables: dict[str, Tensor], wanted: dict[str, Any], base: Any, folder: Path) -> list[Tensor]:
    """The models' tables in the order of one vocabulary."""

    def words(model: str) -> dict[str, int]:
        whole = json.loads((folder / model / "tokenizer.json").read_text())
        return {**whole["model"]["vocab"], **{e["content"]: e["id"] for e in whole["added_tokens"]}}

    ids = {model: {w: i for w, i in words(model).items() if i < len(table)} for model, table in tables.items()}
    rules = wanted.get("tokens") or {}
    source = base if wanted["source"] in ("union", "base") else wanted["source"]
    out = dict(words(source))
    others = [w for model in tables for w in ids[model]] if wanted["source"] == "union" else []
    for word in (*others, *rules):
        out.setdefault(word, len(out))
    found = []
    for model, table in tables.items():
        new = torch.zeros(len(out), table.shape[1])
        for word, row in out.items():
            rule = rules.get(word)
            owners = [m for m in tables if word in ids[m]]
            if model in owners and not (rule and rule.get("force")):
                new[row] = table[ids[model][word]]
            elif rule:
                told = rule["source"]
                if isinstance(told, str):
                    new[row] = tables[told][ids[told][word]]
                elif told["kind"] == "model_token":
                    number = told["token_id"] if "token_id" in told else ids[told["model"]][told["token"]]
                    new[row] = tables[told["model"]][number]
            elif len(owners) == 1 or base in owners:
                owner = owners[0] if len(owners) == 1 else base
                new[row] = tables[owner][ids[owner][word]]
            elif owners:
                new[row] = sum(tables[m][ids[m][word]] for m in owners) / len(owners)
        missing = -len(out) % (wanted.get("pad_to_multiple_of") or 1)
        if missing:
            new = torch.cat([new, new.mean(0).expand(missing, -1)])
        found.append(new)
    return found


def _name(reference: Any) -> Any:
    if isinstance(reference, dict):
        path = reference["model"]
        path = path["path"] if isinstance(path, dict) else path
        return path + ("+" + reference["lora"]["path"] if reference.get("lora") else "")
    return reference


def _resolve(key: str, scopes: list[Any], name: str, t: float, default: Any) -> Any:
    for scope in scopes:
        if scope and key in scope:
            found = _evaluate(scope[key], name, t)
            if found is not None:
                return found
    assert default is not None, f"{key} of {name}"
    return default


def _evaluate(setting: Any, name: str, t: float) -> Any:
    if isinstance(setting, dict):
        setting = [setting]
    if not isinstance(setting, list):
        return float(setting) if isinstance(setting, str) else setting
    if isinstance(setting[0], dict):
        for item in setting:
            if item.get("filter") in (None, "*") or item["filter"] in name:
                return _evaluate(item["value"], name, t)
        return None
    place = t * (len(setting) - 1)
    left = int(place)
    right = min(left + 1, len(setting) - 1)
    return (1 - place + left) * setting[left] + (place - left) * setting[right]


# --- methods of all models alike -----------------------------------------------------------------------------------


def linear(x: list[Tensor], base: Any, own: Any, shared: Any) -> Tensor:
    w = own("weight")
    total = sum(a * b.double() for a, b in zip(w, x, strict=True))
    return total / sum(w) if shared("normalize", True) else total


def slerp(x: list[Tensor], base: Tensor, own: Any, shared: Any) -> Tensor:
    (other,) = [v for v in x if not torch.equal(v, base)] or [base]
    a, b, t = base.double(), other.double(), shared("t")
    cosine = float((a * b).sum() / (a.norm() * b.norm()))
    if abs(cosine) > 0.9995:
        return (1 - t) * a + t * b
    angle = math.acos(cosine)
    return (math.sin((1 - t) * angle) * a + math.sin(t * angle) * b) / math.sin(angle)


def karcher(x: list[Tensor], base: Any, own: Any, shared: Any) -> Tensor:
    units = [v.double().flatten() / v.double().norm() for v in x]
    mean = sum(units) / len(units)
    mean = mean / mean.norm()
    for _ in range(int(shared("max_iter", 10))):
        step = torch.zeros_like(mean)
        for u in units:
            angle = torch.acos((mean @ u).clamp(-1, 1))
            if float(angle) > 1e-12:
                step += angle / angle.sin() * (u - (mean @ u) * mean) / len(units)
        if float(step.norm()) < shared("tol", 1e-5):
            break
        mean = step.norm().cos() * mean + step.norm().sin() * step / step.norm()
    return (sum(v.double().norm() for v in x) / len(x) * mean).reshape(x[0].shape)


def passthrough(x: list[Tensor], base: Any, own: Any, shared: Any) -> Tensor:
    (only,) = x
    return only.double() * own("scale", 1.0)[0]


METHODS_OF_ALL: dict[str, Any] = {"linear": linear, "slerp": slerp, "karcher": karcher, "passthrough": passthrough}


# --- methods of task vectors ---------------------------------------------------------------------------------------


def _l1(before: Tensor, after: Tensor) -> Tensor:
    return after * (before.abs().sum() / after.abs().sum()) if float(after.abs().sum()) > 0 else after


def _sparse(method: str, d: Tensor, density: float, gamma: float, epsilon: float, draw: Any) -> Tensor:
    n, size = d.numel(), d.abs().flatten()
    if density >= 1 or method == "task_arithmetic":
        return d
    if method == "ties":
        keep = size.argsort(descending=True)[: max(1, int(density * n))]
    elif method.startswith("breadcrumbs"):
        kept, top = int(density * n), int(gamma * n)
        low = max(0, n - kept - top)
        keep = size.argsort()[low : low + kept]
    elif method.startswith("dare"):
        return d * (draw().reshape(d.shape) < density)
    else:
        rows = d.reshape(1, -1) if d.ndim < 2 else d
        rank = rows.abs().argsort(dim=1).argsort(dim=1).double()
        chance = density - epsilon + 2 * epsilon * rank / (rows.shape[1] - 1)
        return d * (draw().reshape(rows.shape) < chance).reshape(d.shape)
    mask = torch.zeros(n, dtype=d.dtype)
    mask[keep] = 1
    return d * mask.reshape(d.shape)


def deltas(method: str, x: list[Tensor], base: Tensor, own: Any, shared: Any, draws: Any) -> Tensor:
    normalize = shared("normalize", method in ("ties", "della"))
    rescale = shared("rescale", method.startswith(("dare", "della")))
    w, parts = own("weight"), []
    for v, density, gamma, epsilon, draw in zip(
        x, own("density", 1.0), own("gamma", 0.01), own("epsilon", 0.15), draws, strict=True
    ):
        d = (v - base).double()
        kept = _sparse(method, d, density, gamma, epsilon, draw)
        parts.append(_l1(d, kept) if rescale and method != "task_arithmetic" else kept)
    weighted = torch.stack([a * d for a, d in zip(w, parts, strict=True)])
    share = torch.tensor(w, dtype=torch.float64).reshape(-1, *[1] * base.ndim)
    if method in ("ties", "dare_ties", "breadcrumbs_ties", "della"):
        sign = torch.where(weighted.float().sum(0) >= 0, 1.0, -1.0)
        agree = weighted.sign() == sign
        total, divisor = (weighted * agree).sum(0), (share * agree).sum(0)
        divisor = torch.where(divisor == 0, 1.0, divisor)
    else:
        total, divisor = weighted.sum(0), share.sum(0)
    return base.double() + shared("lambda", 1.0) * (total / divisor if normalize else total)


def nuslerp(method: str, x: list[Tensor], base: Any, own: Any, shared: Any, draws: Any) -> Tensor:
    w = own("weight")
    t = w[1] / sum(w)
    a, b = (v.double() - (base.double() if base is not None else 0.0) for v in x)
    shape = a.shape
    if shared("nuslerp_flatten", True):
        a, b = a.reshape(1, -1), b.reshape(1, -1)
    turn = shared("nuslerp_row_wise", False) and not shared("nuslerp_flatten", True) and a.ndim > 1
    a, b = (v.transpose(0, -1) if turn else v for v in (a, b))
    cosine = ((a * b).sum(-1, keepdim=True) / (a.norm(dim=-1, keepdim=True) * b.norm(dim=-1, keepdim=True))).clamp(
        -1, 1
    )
    angle = cosine.acos()
    out = (((1 - t) * angle).sin() * a + (t * angle).sin() * b) / angle.sin()
    out = torch.where(angle.sin().abs() < 1e-6, (1 - t) * a + t * b, out)
    out = out.transpose(0, -1) if turn else out
    return out.reshape(shape) + (base.double() if base is not None else 0.0)


def multislerp(method: str, x: list[Tensor], base: Any, own: Any, shared: Any, draws: Any) -> Tensor:
    w = torch.tensor(own("weight"), dtype=torch.float64)
    w = w / w.sum() if shared("normalize_weights", True) else w
    vectors = [v.double().flatten() - (base.double().flatten() if base is not None else 0.0) for v in x]
    mean = sum(a * v / v.norm() for a, v in zip(w, vectors, strict=True))
    length = sum(a * v.norm() for a, v in zip(w, vectors, strict=True))
    return (length * mean / mean.norm()).reshape(x[0].shape) + (base.double() if base is not None else 0.0)


def model_stock(method: str, x: list[Tensor], base: Tensor, own: Any, shared: Any, draws: Any) -> Tensor:
    rows = shared("filter_wise", False) and base.ndim > 1
    flat = [(v - base).double().reshape((base.shape[0], -1) if rows else (1, -1)) for v in x]
    pairs = [
        (a * b).sum(-1) / (a.norm(dim=-1) * b.norm(dim=-1)).clamp(min=1e-6)
        for i, a in enumerate(flat)
        for b in flat[i + 1 :]
    ]
    c = sum(pairs) / len(pairs)
    t = (len(x) * c / (1 + (len(x) - 1) * c)).unsqueeze(-1)
    return base.double() + (t * sum(flat) / len(x)).reshape(base.shape)


def sce(method: str, x: list[Tensor], base: Tensor, own: Any, shared: Any, draws: Any) -> Tensor:
    d, share = torch.stack([(v - base).double() for v in x]), shared("select_topk", 1.0)
    if share < 1:
        spread = d.var(0, unbiased=False)
        mask = torch.zeros(spread.numel())
        mask[spread.flatten().argsort(descending=True)[: int(share * int((spread > 0).sum()))]] = 1
        d = d * mask.reshape(base.shape)
    mass = d.square().flatten(1).mean(1)
    w = mass / mass.sum() if float(mass.sum()) >= 1e-6 else torch.full_like(mass, 1 / len(x))
    agree = d.sign() == torch.where(d.sum(0) >= 0, 1.0, -1.0)
    share_of = w.reshape(-1, *[1] * base.ndim) * agree
    return base.double() + (d * share_of).sum(0) / share_of.sum(0).clamp(min=1e-6)


def arcee(method: str, x: list[Tensor], base: Tensor, own: Any, shared: Any, draws: Any) -> Tensor:
    (v,) = x
    p, q = (torch.softmax(m.double(), -1) for m in (v, base))
    importance = (v - base).abs().double() * (p * (p / q).log()).sum(-1, keepdim=True)
    ordered = importance.flatten().sort().values
    low, middle, high = (ordered[int(s * (ordered.numel() - 1))] for s in (0.25, 0.5, 0.75))
    return torch.where(importance >= middle + 1.5 * (high - low), v.double(), base.double())


def nearswap(method: str, x: list[Tensor], base: Tensor, own: Any, shared: Any, draws: Any) -> Tensor:
    (v,) = x
    share = (shared("t") / (v - base).double().abs()).clamp(0, 1)
    return share * v.double() + (1 - share) * base.double()


def ram(method: str, x: list[Tensor], base: Tensor, own: Any, shared: Any, draws: Any) -> Tensor:
    d = [v - base for v in x]
    moved = torch.stack([v.abs() > shared("epsilon", 1e-5) for v in d])
    count = moved.sum(0)
    total = torch.zeros_like(base, dtype=torch.float64)
    for v, m in zip(d, moved, strict=True):
        ratio = float((m & (count > 1)).sum()) / max(float((m & (count == 1)).sum()), 1e-30)
        boost = 1 + shared("r", 0.1) * min(shared("alpha", 0.2), ratio) if method == "ramplus_tl" else 1.0
        total += v.double() * m * torch.where(count == 1, boost, 1 / count.clamp(min=1))
    return base.double() + total


_DELTAS = ("task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs", "breadcrumbs_ties", "della")
METHODS_OF_DELTAS: dict[str, Any] = {
    **dict.fromkeys([*_DELTAS, "della_linear"], deltas),
    "nuslerp": nuslerp,
    "multislerp": multislerp,
    "model_stock": model_stock,
    "sce": sce,
    "arcee_fusion": arcee,
    "nearswap": nearswap,
    "ram": ram,
    "ramplus_tl": ram,
}
