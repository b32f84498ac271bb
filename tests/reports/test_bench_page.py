"""The page of a study: looked at in a real browser where one is installed."""

from __future__ import annotations

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from browser import CHROMIUM, Page, drive

pytest.importorskip("transformers")
pytest.importorskip("plotly")

from plait.bench.studies import StudyConfig, bench
from plait.reports import bench_page
from tiny_testbeds import write_testbed


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("study")
    beds = [str(write_testbed(home / f"tiny{seed}", seed)) for seed in (0, 1)]
    config = StudyConfig.model_validate(
        {
            "title": "A </script><b>title</b> & more",
            "arms": {"tiny": {"testbed": beds}},
            "methods": [
                "linear",
                {"name": "task_arithmetic", "grid": {"lambda": [0.3, 0.5]}},
                {"name": "broken", "method": "slerp", "parameters": {"t": 0.5}, "grid": {}},
                {"name": "wrong", "method": "ties", "parameters": {"density": 7}},
            ],
            "bootstrap": 50,
            "limit": {"validation": 20, "test": 40},
            "landscape": 4,
        }
    )
    bench(config, home / "out", report=lambda line: None)
    return home / "out"


def test_the_page_is_one_file_that_asks_for_nothing(study: Path) -> None:
    text = (study / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"<(?:script|link|img)[^>]+(?:src|href)=\"?https?:", text)
    assert "<b>title</b>" not in text.split("</title>")[0]
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    assert found
    data = json.loads(found.group(1))
    assert data["title"] == "A </script><b>title</b> & more"
    rows = {row["method"]: row for row in data["groups"][0]["rows"]}
    recipe = yaml.safe_load(data["recipes"][rows["task_arithmetic"]["runs"][1]["recipe"]])
    assert (
        recipe["method"] == "task_arithmetic"
        and recipe["parameters"]["lambda"] == rows["task_arithmetic"]["runs"][1]["setting"]["lambda"]
    )
    assert "density" in rows["wrong"]["error"] and len(rows["linear"]["runs"]) == 2
    results, costs = (json.loads((study / name).read_text()) for name in ("results.json", "costs.json"))
    assert bench_page(results, costs) == text


POINT = """(() => {
  const point = [...document.querySelectorAll('#p-ranking .points path.point')].at(-1).getBoundingClientRect();
  return [point.x + point.width / 2, point.y + point.height / 2];
})()"""


@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(study: Path, width: int, tmp_path: Path) -> None:
    async def steps(page: Page) -> dict[str, Any]:
        await page.until("document.body && document.body.dataset.ready === 'yes'")
        await page.until("document.querySelectorAll('.js-plotly-plot .main-svg').length >= 16")
        found = {
            "plots": await page.value("[...document.querySelectorAll('.js-plotly-plot')].map(p => p.id)"),
            "sizes": await page.value("[...document.querySelectorAll('.js-plotly-plot')].map(p => p.clientWidth)"),
            "wide": await page.value("document.documentElement.scrollWidth"),
            "hidden": await page.value("document.getElementById('drawer').hidden"),
        }
        await page.value("document.getElementById('p-ranking').scrollIntoView({block: 'start'})")
        await page.click(*await page.value(POINT))
        await page.until("!document.getElementById('drawer').hidden")
        await asyncio.sleep(0.3)
        found["recipe"] = await page.value("document.getElementById('drawer-text').textContent")
        found["note"] = await page.value("document.getElementById('drawer-note').textContent")
        found["hash"] = await page.value("location.hash")
        await page.picture(tmp_path / "page.png")
        await page.value("document.getElementById('figure').value = 'gain'")
        await page.value("document.getElementById('figure').dispatchEvent(new Event('change'))")
        await asyncio.sleep(0.3)
        found["axis"] = await page.value("document.getElementById('p-ranking').layout.xaxis.title.text")
        found["errors"] = page.errors
        return found

    found = drive(f"file://{study / 'report.html'}", width, 900, steps)
    assert found["errors"] == []
    wanted = ["ranking", "tasks", "cost", "sweeps", "lines", "plane", "norms", "conflict"]
    assert found["plots"] == [f"p-{name}" for name in wanted]
    assert min(found["sizes"]) > 0.75 * width / (2 if width > 760 else 1) * 0.8
    assert found["wide"] <= width
    assert found["hidden"] is True
    recipe = yaml.safe_load(found["recipe"])
    assert set(recipe["experts"]) == {"animals", "colours"} and recipe["method"]
    assert found["note"] == "Copied to the clipboard." and re.fullmatch(r"#recipe-\d+", found["hash"])
    assert found["axis"] == "% of the gain"
    assert (tmp_path / "page.png").stat().st_size > 20_000
