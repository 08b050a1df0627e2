"""Speed of the graph encoder: its dense form against the sparse one (PyG message passing), the same numbers from both.

Run ``python -m benchmarks.han``. States of 6 experts with 16 + 8 slots, half of them taken, hidden 32, 4 heads; milliseconds of
one core for B states, best of five; making the sparse graph of the arrays is counted apart. Expect the dense form to be about
twice as fast, with or without gradients, less for few states, and two layers to cost three to five times one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.timing import cpu_s
from models.han import HANEncoder
from models.han_graph import cluster_graph, embed_graph
from rllib_envs.sim.rows import ARRIVED_FEATURES, EXPERT_FEATURES, REQUEST_FEATURES

N, SLOTS, HIDDEN, HEADS = 6, (16, 8), 32, 4
WIDTHS = len(EXPERT_FEATURES), len(REQUEST_FEATURES), len(ARRIVED_FEATURES)


def draw_states(batch: int) -> list[Tensor]:
    """The arrays that the encoder takes."""
    generator = torch.Generator().manual_seed(0)
    arrays = [torch.randn(batch, N, width, generator=generator) for width in (WIDTHS[0], WIDTHS[2])]
    for slots in SLOTS:
        mask = (torch.rand(batch, N, slots, generator=generator) < 0.5).float()
        arrays += [torch.randn(batch, N, slots, WIDTHS[1], generator=generator) * mask.unsqueeze(-1), mask]
    return arrays


def forward_ms(embed: Callable[[], tuple[Tensor, Tensor]]) -> float:
    """CPU milliseconds of a forward pass."""
    with torch.inference_mode():
        return 1e3 * cpu_s(embed)


def training_ms(embed: Callable[[], tuple[Tensor, Tensor]]) -> float:
    """CPU milliseconds of a forward and a backward pass."""

    def both() -> None:
        one, other = embed()
        (one.square().mean() + other.square().mean()).backward()

    return 1e3 * cpu_s(both)


def row(encoder: HANEncoder, batch: int) -> tuple[float, ...]:
    """The figures of a line of the table."""
    arrays = draw_states(batch)
    graph = cluster_graph(*arrays)

    def dense() -> tuple[Tensor, Tensor]:
        return encoder(*arrays)

    def sparse() -> tuple[Tensor, Tensor]:
        return embed_graph(encoder, graph)

    figures: list[float] = []
    for measure in (forward_ms, training_ms):
        ours, theirs = measure(dense), measure(sparse)
        figures += [ours, theirs, theirs / ours]
    return *figures, 1e3 * cpu_s(lambda: cluster_graph(*arrays))


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    columns = ("dense", "sparse", "ratio", "dense+grad", "sparse+grad", "ratio", "to graph")
    print(f"{'layers':>6}{'B':>6}" + "".join(f"{name:>13}" for name in columns))
    for layers in (1, 2):
        torch.manual_seed(0)
        encoder = HANEncoder(*WIDTHS, HIDDEN, HEADS, layers)
        for batch in (64, 256, 2048):
            print(f"{layers:6}{batch:6}" + "".join(f"{figure:13.2f}" for figure in row(encoder, batch)))


if __name__ == "__main__":
    main()
