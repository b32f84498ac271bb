"""Folders of several models: pipelines, sentence-transformers, and diffusion checkpoints in one file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import plait
from models import read, tree
from plait.errors import IncompatibleModelsError, RecipeError, UnsafeFileError
from plait.reports import verify
from plait.reports._reproduce import reproduce

State = dict[str, Tensor]
UNET = "diffusion_pytorch_model.safetensors"


def _draw(seed: int, **shapes: tuple[int, ...]) -> State:
    rng = torch.Generator().manual_seed(seed)
    return {name.replace("__", "."): torch.randn(shape, generator=rng) for name, shape in shapes.items()}


def _put(folder: Path, state: State, file: str, config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(state, folder / file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))


def _pipe(folder: Path, seed: int) -> Path:
    """A folder in the layout of a diffusers pipeline."""
    unet = _draw(seed, conv_in__weight=(4, 4, 3, 3), down_blocks__0__attn__to_q__weight=(4, 4), conv_out__bias=(4,))
    _put(folder / "unet", unet, UNET, {"_class_name": "UNet2DConditionModel"})
    _put(folder / "vae", _draw(seed + 100, decoder__w=(3, 3)), UNET, {"_class_name": "AutoencoderKL"})
    text = _draw(seed + 200, text_model__w=(3, 3))
    _put(folder / "text_encoder", text, "model.safetensors", {"model_type": "clip_text_model", "dtype": "float32"})
    for name, file in (("scheduler", "scheduler_config.json"), ("tokenizer", "vocab.json")):
        (folder / name).mkdir()
        (folder / name / file).write_text("{}")
    index: dict[str, Any] = {"_class_name": "StableDiffusionPipeline", "safety_checker": [None, None]}
    for name in ("unet", "vae", "text_encoder", "scheduler", "tokenizer"):
        index[name] = ["diffusers", "Anything"]
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def _recipe(home: Path, **more: Any) -> dict[str, Any]:
    names = {name: str(_pipe(home / name, seed)) for seed, name in enumerate("ab")}
    return {"method": "linear", "experts": names, **more}


def test_a_pipeline_merges_its_unet_and_keeps_the_rest(tmp_path: Path) -> None:
    """The named component is merged, the others are copied byte for byte, small files too."""
    plait.merge(_recipe(tmp_path, components="unet"), tmp_path / "out", threads=1)
    a, b, out = tree(tmp_path / "a"), tree(tmp_path / "b"), tree(tmp_path / "out")
    assert set(out) - set(a) == {"README.md", "plait.json", "plait.yaml"} and set(a) <= set(out)
    assert {n for n in a if a[n] != out[n]} == {f"unet/{UNET}"} and a[f"vae/{UNET}"] != b[f"vae/{UNET}"]
    got, one, two = (load_file(tmp_path / d / "unet" / UNET) for d in ("out", "a", "b"))
    assert all(torch.allclose(got[n], (one[n] + two[n]) / 2) for n in one) and set(got) == set(one)
    found = verify(tmp_path / "out", load=False)
    assert found.ok and found.steps[0].sentence.startswith("5 tensors")
    assert reproduce(tmp_path / "out").identical


def test_several_components_in_shards_and_another_dtype(tmp_path: Path) -> None:
    """Each component has shards and an index of its own; configs that state a dtype state the new one."""
    recipe = _recipe(tmp_path, components=["unet", "text_encoder"], dtype="bfloat16", shard_size=64)
    plait.merge(recipe, tmp_path / "out", threads=2)
    files = set(tree(tmp_path / "out"))
    assert {f"unet/{UNET}.index.json", "unet/diffusion_pytorch_model-00001-of-00002.safetensors"} <= files
    assert json.loads((tmp_path / "out/text_encoder/config.json").read_text())["dtype"] == "bfloat16"
    index = json.loads((tmp_path / f"out/unet/{UNET}.index.json").read_text())
    assert set(index["weight_map"]) == set(load_file(tmp_path / "a/unet" / UNET))
    text = load_file(tmp_path / "out/text_encoder/model.safetensors")["text_model.w"]
    both = [load_file(tmp_path / d / "text_encoder/model.safetensors")["text_model.w"] for d in "ab"]
    assert torch.equal(text, ((both[0] + both[1]) / 2).bfloat16())
    assert tree(tmp_path / "out")[f"vae/{UNET}"] == tree(tmp_path / "a")[f"vae/{UNET}"]
    assert verify(tmp_path / "out", load=False).ok


def test_an_expert_may_be_the_component_alone(tmp_path: Path) -> None:
    """A fine-tuned U-Net in a folder of its own merges into a pipeline."""
    recipe = _recipe(tmp_path, components=["unet"])
    recipe["experts"]["b"] = str(tmp_path / "b" / "unet")
    plait.merge(recipe, tmp_path / "out", threads=1)
    got, one, two = (load_file(tmp_path / d / "unet" / UNET) for d in ("out", "a", "b"))
    assert all(torch.allclose(got[n], (one[n] + two[n]) / 2) for n in one)
    with pytest.raises(IncompatibleModelsError, match=r"b .* is a single model, and 2 components"):
        plait.plan({**recipe, "components": ["unet", "vae"]})


def test_another_component_may_be_taken_from_an_expert(tmp_path: Path) -> None:
    """A `copy` rule names it."""
    recipe = _recipe(tmp_path, components="unet", copy=[{"match": "vae/*", "from": "b"}])
    plait.merge(recipe, tmp_path / "out", threads=1)
    a, b, out = tree(tmp_path / "a"), tree(tmp_path / "b"), tree(tmp_path / "out")
    assert out[f"vae/{UNET}"] == b[f"vae/{UNET}"]
    assert out["text_encoder/model.safetensors"] == a["text_encoder/model.safetensors"]


def test_a_merge_of_pipelines_may_stand_in_a_recipe(tmp_path: Path) -> None:
    """A nested recipe is a pipeline, too."""
    inner = _recipe(tmp_path, components="unet")
    recipe = {"method": "linear", "experts": {"both": inner, "a": str(tmp_path / "a")}, "components": "unet"}
    plait.merge(recipe, tmp_path / "out", threads=1)
    got, one, two = (load_file(tmp_path / d / "unet" / UNET) for d in ("out", "a", "b"))
    assert all(torch.allclose(got[n], 0.75 * one[n] + 0.25 * two[n], atol=1e-6) for n in one)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, r"is a pipeline: say which.*components: \[unet\].*unet, vae, text_encoder"),
        ({"components": "untet"}, "no component 'untet'.*Did you mean 'unet'"),
        ({"components": "scheduler"}, "no component 'scheduler' with weights"),
    ],
)
def test_components_have_to_be_named_rightly(more: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Nothing is chosen in silence."""
    with pytest.raises(RecipeError, match=said):
        plait.plan(_recipe(tmp_path, **more))


def test_components_of_a_model_that_has_none(tmp_path: Path) -> None:
    """The word is for folders of several models."""
    recipe = _recipe(tmp_path)
    recipe["experts"] = {n: f"{path}/unet" for n, path in recipe["experts"].items()}
    assert plait.plan(recipe).jobs
    with pytest.raises(RecipeError, match="no folder of components"):
        plait.plan({**recipe, "components": "unet"})


def test_an_index_that_points_elsewhere_is_refused(tmp_path: Path) -> None:
    """Parts lie inside the folder."""
    recipe = _recipe(tmp_path, components="unet")
    index = tmp_path / "b" / "model_index.json"
    index.write_text(json.dumps({**json.loads(index.read_text()), "../a/unet": ["diffusers", "X"]}))
    with pytest.raises(UnsafeFileError, match="outside itself"):
        plait.plan(recipe)


def test_a_diffusers_pipeline_loads_and_keeps_the_rest(tmp_path: Path) -> None:
    """The same, made and loaded by the library."""
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from .pipelines import load_pipeline, pipeline

    a, b = pipeline(tmp_path / "a", 0), pipeline(tmp_path / "b", 1)
    recipe = {"method": "linear", "experts": {n: str(tmp_path / n) for n in "ab"}, "components": ["unet"]}
    plait.merge(recipe, tmp_path / "out", threads=1)
    out = load_pipeline(tmp_path / "out")
    for (name, got), mine, other in zip(
        out.unet.named_parameters(), a.unet.parameters(), b.unet.parameters(), strict=True
    ):
        torch.testing.assert_close(got, (mine + other) / 2, msg=name)
    for part in ("vae", "text_encoder"):
        pairs = zip(getattr(out, part).parameters(), getattr(a, part).parameters(), strict=True)
        assert all(torch.equal(got, mine) for got, mine in pairs)


def _sentences(folder: Path, seed: int, dense: bool = True) -> Path:
    state = _draw(seed, embeddings__word_embeddings__weight=(8, 4), encoder__layer__0__output__dense__weight=(4, 4))
    _put(folder, state, "model.safetensors", {"model_type": "bert"})
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    modules.append({"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"})
    if dense:
        _put(folder / "2_Dense", _draw(seed + 50, linear__weight=(2, 4)), "model.safetensors", {"in_features": 4})
        modules.append({"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "sentence_bert_config.json").write_text("{}")
    return folder


@pytest.mark.parametrize("dense", [True, False])
def test_sentence_transformers_merge_every_module(dense: bool, tmp_path: Path) -> None:
    """The encoder and the weights of later modules; poolings and the list of modules are carried over."""
    names = {name: str(_sentences(tmp_path / name, seed, dense)) for seed, name in enumerate("ab")}
    plait.merge({"method": "linear", "experts": names}, tmp_path / "out", threads=1)
    a, out = tree(tmp_path / "a"), tree(tmp_path / "out")
    assert set(a) <= set(out) and out["1_Pooling/config.json"] == a["1_Pooling/config.json"]
    for place in ("", "2_Dense")[: 1 + dense]:
        got, one, two = (load_file(tmp_path / d / place / "model.safetensors") for d in ("out", "a", "b"))
        assert set(got) == set(one) and all(torch.allclose(got[n], (one[n] + two[n]) / 2) for n in one)


def test_an_old_sentence_transformer_keeps_its_encoder_in_a_folder(tmp_path: Path) -> None:
    """`0_Transformer` holds config, tokenizer and weights."""
    for seed, name in enumerate("ab"):
        folder = tmp_path / name
        _put(folder / "0_Transformer", _draw(seed, w=(3, 3)), "model.safetensors", {"model_type": "bert"})
        (folder / "0_Transformer" / "vocab.txt").write_text("a\nb\n")
        (folder / "modules.json").write_text(json.dumps([{"idx": 0, "path": "0_Transformer", "type": "x"}]))
    plait.merge({"method": "linear", "experts": [str(tmp_path / "a"), str(tmp_path / "b")]}, tmp_path / "out")
    out = tree(tmp_path / "out")
    assert {"0_Transformer/model.safetensors", "0_Transformer/vocab.txt", "0_Transformer/config.json"} <= set(out)


def _single(path: Path, seed: int) -> Path:
    """A checkpoint in the names of the single-file Stable Diffusion layout."""
    unet = "model.diffusion_model."
    shapes: dict[str, tuple[int, ...]] = {f"{unet}time_embed.0.weight": (4, 4), f"{unet}out.2.weight": (4, 4)}
    for i in range(12):
        for side in ("input_blocks", "output_blocks"):
            shapes[f"{unet}{side}.{i}.1.transformer_blocks.0.attn1.to_q.weight"] = (4, 4)
    shapes[f"{unet}middle_block.1.proj_in.weight"] = (4, 4)
    shapes["cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj.weight"] = (4, 4)
    shapes["first_stage_model.decoder.conv_in.weight"] = (4, 4)
    rng = torch.Generator().manual_seed(seed)
    state = {name: torch.randn(shape, generator=rng) for name, shape in shapes.items()}
    state["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(4).unsqueeze(0)
    save_file(state, path)
    return path


def test_a_single_file_checkpoint_merges_with_block_weights(tmp_path: Path) -> None:
    """A weight for the base and for each input, middle and output block, as in weighted block merging."""
    a, b = _single(tmp_path / "a.safetensors", 0), _single(tmp_path / "b.safetensors", 1)
    inputs, outputs = [0.1 + 0.05 * i for i in range(12)], [0.9 - 0.05 * i for i in range(12)]
    share = [
        {"value": 0.25},
        {"match": "*.input_blocks.*", "value": inputs},
        {"match": "*.middle_block.*", "value": 0.5},
        {"match": "*.output_blocks.*", "value": outputs},
        {"match": "first_stage_model.*", "value": 0.0},
    ]
    recipe = {"method": "slerp", "experts": {"a": str(a), "b": str(b)}, "parameters": {"t": share}}
    chosen = {job.name: job.methods for job in plait.plan(recipe).jobs if job.methods}
    for i in range(12):
        for side, values in (("input_blocks", inputs), ("output_blocks", outputs)):
            name = f"model.diffusion_model.{side}.{i}.1.transformer_blocks.0.attn1.to_q.weight"
            assert chosen[name][0].t == pytest.approx(values[i], abs=1e-12)  # type: ignore[attr-defined]
    plait.merge(recipe, tmp_path / "out", threads=1)
    got, had = read(tmp_path / "out"), load_file(a)
    assert set(got) == set(had)
    torch.testing.assert_close(
        got["first_stage_model.decoder.conv_in.weight"], had["first_stage_model.decoder.conv_in.weight"]
    )


def test_a_ckpt_file_is_read_without_its_pickle(tmp_path: Path) -> None:
    """Weights only, wherever they lie in it; anything else is refused."""
    state = load_file(_single(tmp_path / "a.safetensors", 0))
    torch.save({"state_dict": state, "global_step": 5}, tmp_path / "a.ckpt")
    recipe = {"method": "linear", "experts": [str(tmp_path / "a.ckpt"), str(tmp_path / "a.safetensors")]}
    plait.merge(recipe, tmp_path / "out", threads=1)
    got = read(tmp_path / "out")
    assert set(got) == set(state) and all(torch.allclose(got[n], state[n]) for n in state)


def test_inspect_says_what_a_folder_consists_of(tmp_path: Path) -> None:
    """Components in the table and in the data."""
    from typer.testing import CliRunner

    from plait.cli import app

    folder = _pipe(tmp_path / "a", 0)
    shown = CliRunner().invoke(app, ["inspect", str(folder)])
    assert shown.exit_code == 0 and "components: unet, vae, text_encoder" in shown.output
    data = json.loads(CliRunner().invoke(app, ["inspect", str(folder), "--json"]).output)
    roles = {row["name"]: row["role"] for row in data["tensors"]}
    assert roles["unet/down_blocks.0.attn.to_q.weight"] == "attention" and data["components"][0] == "unet"


def test_pipelines_of_differing_components_name_what_is_missing(tmp_path: Path) -> None:
    """A pipeline without the component that is to be merged."""
    recipe = _recipe(tmp_path, components="unet")
    shutil.rmtree(tmp_path / "b" / "unet")
    with pytest.raises(IncompatibleModelsError, match="lacks components"):
        plait.plan(recipe)


def test_pipelines_behind_urls(tmp_path: Path) -> None:
    """Components are read by ranges and uploaded into their folders; the files are those of a local merge."""
    fsspec = pytest.importorskip("fsspec")
    recipe = _recipe(tmp_path, components="unet")
    plait.merge(recipe, tmp_path / "out", threads=1)
    store = fsspec.filesystem("memory")
    store.put(str(tmp_path / "b"), "/models/b", recursive=True)
    recipe["experts"]["b"] = "memory://models/b"
    plait.merge(recipe, "memory://models/out", threads=1, spool=tmp_path / "spool")
    here = {n: data for n, data in tree(tmp_path / "out").items() if not n.endswith((".json", ".yaml", ".md"))}
    there = {n: store.cat(f"/models/out/{n}") for n in here}
    assert here == there and len(here) == 3
    assert json.loads(store.cat("/models/out/model_index.json"))["unet"] == ["diffusers", "Anything"]
    assert not list((tmp_path / "spool").iterdir())
    store.rm("/models", recursive=True)


def test_a_worker_delivers_a_component_into_its_folder(tmp_path: Path) -> None:
    """A shard is made under a name without folders, and renamed into the one it belongs to."""
    from plait.engine._shard_file import FolderSink

    plan = plait.plan(_recipe(tmp_path, components="unet"))
    shard = next(s for s in plan.layout.shards if s.folder == "vae")
    (tmp_path / "partial" / "vae").mkdir(parents=True)
    sink = FolderSink(tmp_path / "partial", tmp_path / "work")
    file = sink.begin(shard)
    file.write("vae/decoder.w", 0, torch.arange(9.0))
    sink.deliver(file)
    assert torch.equal(load_file(tmp_path / "partial" / "vae" / UNET)["decoder.w"], torch.arange(9.0).view(3, 3))
    assert not list((tmp_path / "work").iterdir())
