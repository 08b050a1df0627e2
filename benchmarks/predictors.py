"""Time and memory of predictions from text, as they are served: one prompt at a time, NumPy against torch.

Run ``OMP_NUM_THREADS=1 python -m benchmarks.predictors [--catalogue FILE]`` from the repository root. The predictors are of the
default size for six models. The prompts are those of the file, or the paragraphs of ``docs/``. *statistics* is the text's part,
*NumPy* the served network, *torch* the same network as it is fitted. *longest shown* are prompts put together to the most
characters that are looked at, *huge* texts of 10 MB. Milliseconds of the one thread, median and 99th percentile over the prompts.
*At best* is the least processor time of a prompt's passes, which other processes disturb little. Then follow the processor time
of all passes and the time by the clock. Memory is what a process that serves has beyond one that has imported NumPy. Expect less
than .3 ms, a few tens of MB, and torch to take longer than NumPy.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from models.predictors.calibration import fit_corrections
from models.predictors.fit import Outcomes, fit_weights
from models.predictors.network import FitSettings, PredictorNetwork
from models.predictors.served import Predictors
from models.predictors.text import MAX_CHARS, STATISTICS, statistics_of, text_statistics
from rllib_envs.workload.prompt_files import read_prompt_file

NETWORKS = FitSettings(epochs=1).networks
MODELS = tuple(f"model {i}" for i in range(6))
PASSES = 5
AIM_MS, AIM_MB = 0.3, 80
HUGE = ["The 3 cats. " * 870_000, "1,2.3 " * 1_700_000, "A) x\n" * 2_100_000, "what is " * 1_300_000]
_SERVE = """
import sys
import numpy
import psutil
before = psutil.Process().memory_info().rss
from pathlib import Path
from models.predictors.served import Predictors
predictors = Predictors.load(Path(sys.argv[1]))
for _ in range(100):
    predictors.predict([sys.argv[2]])
print((psutil.Process().memory_info().rss - before) / 2**20)
"""


def paragraphs() -> list[str]:
    """The paragraphs of the documents: from ten characters to some thousand."""
    pages = sorted((Path(__file__).parents[1] / "docs").rglob("*.md"))
    return [part for page in pages for part in re.split(r"\n\n+", page.read_text(encoding="utf-8")) if len(part) > 10]


def fitted(texts: list[str]) -> Predictors:
    """Predictors of the default size; what they say does not matter here."""
    rng = np.random.default_rng(0)
    shape = (len(texts), len(MODELS))
    score, length = (rng.random(shape) < 0.5).astype(np.float64), 5 + rng.standard_normal(shape)
    weights = fit_weights(Outcomes(statistics=statistics_of(texts), score=score, log_length=length), "network", 0)
    raw = weights.outputs(weights.standardise(statistics_of(texts)))
    corrections = fit_corrections(raw.logit, raw.log_length, raw.log_sd, score, length)
    return Predictors(models=MODELS, weights=weights, corrections=corrections, usual_novelty=1.5, about={})


def prompts_of(path: Path) -> list[str]:
    """The texts of a file of prompts."""
    return [str(text) for text in read_prompt_file(str(path)).texts]


def together(texts: list[str]) -> list[str]:
    """Texts as long as is looked at, of as many of the prompts as that takes; at most twenty."""
    joined = "\n".join(texts)
    return [joined[i : i + MAX_CHARS] for i in range(0, max(len(joined) - MAX_CHARS, 1), MAX_CHARS)][:20]


def measured(act: Callable[[int], object], count: int) -> NDArray[np.float64]:
    """(3, 2) median and 99th percentile in ms of calls with the numbers below ``count``.

    Of the least processor time of each number, of the processor time of all calls, and by the clock.
    """
    for i in range(count // 10):
        act(i)
    times = np.empty((PASSES, count, 2))
    for i in range(times[..., 0].size):
        begin_s = time.thread_time(), time.perf_counter()
        act(i % count)
        times.reshape(-1, 2)[i] = time.thread_time() - begin_s[0], time.perf_counter() - begin_s[1]
    return 1e3 * np.array([np.percentile(x, [50, 99]) for x in (times[..., 0].min(axis=0), times[..., 0], times[..., 1])])


def main(catalogue: Annotated[Path | None, tyro.conf.arg(help="file of prompts")] = None) -> None:
    """Print the table."""
    torch.set_num_threads(1)
    texts = paragraphs() if catalogue is None else prompts_of(catalogue)
    predictors = fitted(paragraphs()[:200])
    generator = torch.Generator().manual_seed(0)
    networks = [PredictorNetwork(len(STATISTICS), len(MODELS), 0.0, generator).eval() for _ in range(NETWORKS)]
    rows = statistics_of(texts)
    inputs = torch.from_numpy(predictors.weights.standardise(rows))
    longest = together(texts)

    def by_torch(i: int) -> None:
        with torch.inference_mode():
            for network in networks:
                network(inputs[i][None])

    cases: dict[str, tuple[Callable[[int], object], int]] = {
        "statistics": (lambda i: text_statistics(texts[i]), len(texts)),
        "NumPy": (lambda i: predictors.predict_from(rows[i][None]), len(texts)),
        "torch": (by_torch, len(texts)),
        "text to predictions": (lambda i: predictors.predict([texts[i]]), len(texts)),
        "longest shown": (lambda i: predictors.predict([longest[i]]), len(longest)),
        "huge": (lambda i: predictors.predict([HUGE[i]]), len(HUGE)),
    }
    found = {name: measured(*case) for name, case in cases.items()}
    characters = [len(text) for text in texts]
    print(f"{len(texts)} prompts of {np.median(characters):.0f} characters in the median, {max(characters)} at most")
    print(f"{'at best':>34}{'processor time':>24}{'by the clock':>24}")
    print(f"{'':<22}{'median ms':>12}{'99 %':>12}{'median':>12}{'99 %':>12}{'median':>12}{'99 %':>12}")
    for name, figures in found.items():
        print(f"{name:<22}{''.join(f'{figure:>12.3f}' for figure in figures.ravel())}")
    print(f"torch / NumPy: {found['torch'][0, 0] / found['NumPy'][0, 0]:.1f}")
    with tempfile.TemporaryDirectory() as home:
        predictors.save(Path(home) / "p")
        command = [sys.executable, "-c", _SERVE, str(Path(home) / "p"), texts[0]]
        memory_mb = float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    print(f"memory beyond NumPy: {memory_mb:.0f} MB (at most {AIM_MB} wanted)")
    print(f"text to predictions, 99 %: {found['text to predictions'][1, 1]:.3f} ms (at most {AIM_MS} wanted)")


if __name__ == "__main__":
    tyro.cli(main)
