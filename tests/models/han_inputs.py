"""Random clusters for the graph encoder, and encoders for them."""

import torch

from models.han import HANEncoder

WIDTHS = EXPERT, REQUEST, ARRIVED = 5, 4, 3
HIDDEN, HEADS = 8, 2
EMPTY = 1  # the expert that ``draw`` leaves without requests
REQUESTS = ("running", "waiting")


def draw(seed, batch=3, n=4, slots=(5, 3), dtype=torch.float64, scale=1.0):
    """Arrays of the encoder by name; anything where the mask is 0."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return scale * torch.randn(batch, n, *shape, generator=generator, dtype=dtype)

    arrays = {"experts": normal(EXPERT), "arrived": normal(ARRIVED)}
    for name, count in zip(REQUESTS, slots, strict=True):
        mask = (torch.rand(batch, n, count, generator=generator) < 0.6).to(dtype)
        mask[:, EMPTY] = 0
        arrays |= {name: normal(count, REQUEST), f"{name}_mask": mask}
    return arrays


def make_encoder(layers, dtype=torch.float64, **options):
    torch.manual_seed(2)
    return HANEncoder(*WIDTHS, HIDDEN, HEADS, layers, **options).to(dtype)


def assert_same(ours, theirs, **tolerance):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **tolerance)
