"""Fit the output lengths of the azure arrivals to the Azure LLM inference traces of 2023, and print fit against trace.

Run it:  python -m benchmarks.fit_azure AzureLLMInferenceTrace_conv.csv.gz AzureLLMInferenceTrace_code.csv.gz
Expect:  the quantiles of ``rllib_envs/workload/azure.py``, and the table of its docstring, in half a minute.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp, spearmanr

from rllib_envs.scenario import TraceFile
from rllib_envs.workload.azure import OUTPUT_FITS, AzureKind, OutputFit, azure_lengths, azure_prompt_tokens
from rllib_envs.workload.traces import read_trace

_DRAWS = 200_000
_TAIL_POINTS = 1001  # at which the quantile function is averaged
_KINDS: tuple[AzureKind, ...] = ("azure-conversation", "azure-code")


def fit_quantiles(prompt_tokens: NDArray[Any], output_tokens: NDArray[Any], shape: OutputFit) -> tuple[tuple[int, ...], ...]:
    """Quantiles of (M,) output tokens in each range of prompt tokens, at the edges and levels of ``shape``.

    The last of each range is set so as to keep the mean above the one before it: the longest answer of all is an outlier.
    """
    place = np.searchsorted(shape.edges, prompt_tokens, "right")
    return tuple(_row(output_tokens[place == row], shape.levels) for row in range(len(shape.edges) + 1))


def _row(tokens: NDArray[Any], levels: tuple[float, ...]) -> tuple[int, ...]:
    values = np.quantile(tokens, levels)
    above = np.quantile(tokens, np.linspace(levels[-2], 1, _TAIL_POINTS)).mean()
    values[-1] = max(2 * above - values[-2], values[-2])
    return tuple(round(float(value)) for value in values)


def main() -> None:
    """Print the fits, and draws from those shipped beside the traces."""
    if len(sys.argv) != 1 + len(_KINDS):
        raise SystemExit("usage: python -m benchmarks.fit_azure FILE_CONV FILE_CODE")
    for kind, path in zip(_KINDS, sys.argv[1:], strict=True):
        trace = read_trace(TraceFile(path=path))
        prompt, output = trace.prompt_tokens, trace.output_tokens
        if prompt is None or output is None:
            raise SystemExit(f"{path}: no token counts")
        fitted = fit_quantiles(prompt, output, OUTPUT_FITS[kind])
        print(f"{kind}: {'as shipped' if fitted == OUTPUT_FITS[kind].quantiles else 'NOT as shipped'}")
        for row in fitted:
            print(f"    {row}")
        rng = np.random.default_rng(0)
        drawn_prompt = azure_prompt_tokens(kind, _DRAWS, rng)
        drawn = azure_lengths(kind, drawn_prompt, rng).tokens
        for name, of in (("mean", np.mean), ("median", np.median), ("standard deviation", np.std)):
            print(f"{name:34} fit {float(of(drawn)):8.2f}   trace {float(of(output)):8.2f}")
        own, real = spearmanr(drawn_prompt, drawn)[0], spearmanr(prompt, output)[0]
        print(f"{'rank correlation with the prompt':34} fit {own:8.3f}   trace {real:8.3f}")
        test: Any = ks_2samp(drawn, output)
        print(f"{'largest difference in probability':34} {test.statistic:.3f}\n")


if __name__ == "__main__":
    main()
