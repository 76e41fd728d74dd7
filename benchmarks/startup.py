"""Startup time: `import avgrad` beside `import torch`, and the stages of `avgrad localize`.

Every time is of a new process with a warm page cache; medians over processes, after one that warms the cache.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from benchmarks.tables import markdown

_ROOT = Path(__file__).parents[1]

# what `avgrad localize` imports first
_PARTS = """
import avgrad.cli, avgrad.engine.attribute, avgrad.localizer, avgrad.media, avgrad.models.checkpoints
import avgrad.models.imagebind, avgrad.models.registry, avgrad.panels
"""

_IMPORTS = f"""
import json, time
start = time.perf_counter()
import torch
torch_done = time.perf_counter()
import avgrad
avgrad_done = time.perf_counter()
{_PARTS}
parts_done = time.perf_counter()
print(json.dumps({{
    "import torch": torch_done - start,
    "import avgrad, beyond torch": avgrad_done - torch_done,
    "imports of `avgrad localize`, beyond torch": parts_done - torch_done,
}}))
"""

_LOCALIZE = f"""
import time
began = time.time()
import json, sys
out, *sys.argv[1:] = sys.argv[1:]
start = time.perf_counter()
import torch
torch_done = time.perf_counter()
{_PARTS}
parts_done = time.perf_counter()
try:
    avgrad.cli.main()
except SystemExit as done:
    assert not done.code, done
ended = time.perf_counter()
stages = json.load(open(out + "/result.json"))["seconds"]
known = sum(stages[name] for name in ("load", "image", "prompts", "heatmaps"))
json.dump({{
    "began": began,
    "import torch": torch_done - start,
    "import avgrad": parts_done - torch_done,
    "load the model": stages["load"],
    "decode the image": stages["image"],
    "encode the prompt": stages["prompts"],
    "forward pass and heatmap": stages["heatmaps"],
    "overlay, write and print": ended - parts_done - known,
    "ended": time.time(),
}}, open(out + "/stages.json", "w"))
"""


@dataclass(frozen=True)
class StartupReport:
    """Seconds, medians over processes.

    Attributes:
        imports: `import torch`, and what avgrad adds to it.
        localize: the stages of `avgrad localize` on the bundled model, in order.
        whole: the command `avgrad localize`.
        packages: import time of each package in that command without its dependencies, largest first, by one run under
            `python -X importtime`, which is slower itself.
    """

    imports: dict[str, float]
    localize: dict[str, float]
    whole: float
    packages: dict[str, float]

    def tables(self) -> str:
        """Three Markdown tables."""
        total = sum(self.localize.values())
        stages = [(name, f"{1e3 * value:.0f}", f"{value / total:.0%}") for name, value in self.localize.items()]
        stages += [("sum of the stages", f"{1e3 * total:.0f}", "100%"), ("the command", f"{1e3 * self.whole:.0f}", "")]
        imports, packages = (
            [(name, f"{1e3 * value:.0f}") for name, value in seconds]
            for seconds in (self.imports.items(), list(self.packages.items())[:12])
        )
        return "\n\n".join(
            (
                markdown(("import, in a new process", "ms"), imports),
                markdown(("`avgrad localize`, bundled model, new process", "ms", "share"), stages),
                markdown(("imports of that command, by package (-X importtime)", "ms"), packages),
            )
        )


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )


def _command(out: str) -> list[str]:
    from avgrad.scenes.samples import samples

    scene = samples()[0]
    sound = str(scene.objects[0].sound)
    return ["localize", str(scene.image), "--audio", sound, "--model", "mini", "--out", out]


def _stages(out: str) -> dict[str, float]:
    start = time.time()
    _python("-c", _LOCALIZE, out, *_command(out))
    end = time.time()
    stages: dict[str, float] = json.loads((Path(out) / "stages.json").read_text())
    began, ended = stages.pop("began"), stages.pop("ended")
    return {"start Python": began - start, **stages, "end Python": end - ended}


def _whole(out: str) -> float:
    start = time.perf_counter()
    _python("-m", "avgrad.cli", *_command(out))
    return time.perf_counter() - start


def packages(log: str) -> dict[str, float]:
    """Seconds of each top-level package's own imports, largest first, from the output of `python -X importtime`.

    >>> packages("import time: self [us] | cumulative | imported package\\nimport time:  2000 |  2500 |   torch.nn")
    {'torch': 0.002}
    """
    seconds: dict[str, float] = defaultdict(float)
    for line in log.splitlines():
        own, _, name = line.removeprefix("import time:").replace("|", " ", 1).strip().partition("|")
        if line.startswith("import time:") and own.split()[0].isdecimal():
            seconds[name.strip().partition(".")[0]] += int(own.split()[0]) / 1e6
    return dict(sorted(seconds.items(), key=lambda item: -item[1]))


def _medians(runs: list[dict[str, float]]) -> dict[str, float]:
    return {name: statistics.median(run[name] for run in runs) for name in runs[0]}


def measure_startup(rounds: int) -> StartupReport:
    """Startup times.

    Args:
        rounds: processes of each kind that count.
    """
    imports, localize, whole = [], [], []
    with tempfile.TemporaryDirectory() as out:
        for _ in range(rounds + 1):
            imports.append(json.loads(_python("-c", _IMPORTS).stdout))
            localize.append(_stages(out))
            whole.append(_whole(out))
        log = _python("-X", "importtime", "-m", "avgrad.cli", *_command(out)).stderr
    return StartupReport(_medians(imports[1:]), _medians(localize[1:]), statistics.median(whole[1:]), packages(log))
