"""Bundles of a trained router with one part of it switched off: what each part is worth to the whole as it was trained.

Run ``python -m benchmarks.ablation BUNDLE FOLDER`` from the repository root, then compare the bundles in FOLDER with ``edgeroute
evaluate --routers bundle:...``. A router that was trained without the part might make up for some of the loss; for that, train
one (``edgeroute train --help-all``: ``--encoder``, ``--no-correction``, ``--generations 0``, ``--no-future``, ``--no-drop``,
``--no-calibrate``). Takes a second.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from models.export.bundle import load_bundle, save_bundle
from models.price import Price
from models.router import Router


def zero(layer: nn.Linear) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def without_graph(router: Router) -> None:
    router.enable_encoder(False)


def without_correction(router: Router) -> None:
    assert router.estimator.correction is not None
    zero(router.estimator.correction.last)


def without_future_network(router: Router) -> None:
    assert router.future is not None
    zero(router.future.last)


def with_the_price_before_training(router: Router) -> None:
    assert router.price is not None
    router.price.load_state_dict(Price().state_dict())


def without_price(router: Router) -> None:
    without_future_network(router)
    router.price = None


def without_drop(router: Router) -> None:
    router.spec = replace(router.spec, drop=False)


def without_calibration(router: Router) -> None:
    """The observation goes without, below."""


CHANGES: dict[str, Callable[[Router], None]] = {
    function.__name__.replace("_", "-"): function
    for function in (
        without_graph,
        without_correction,
        without_future_network,
        with_the_price_before_training,
        without_price,
        without_drop,
        without_calibration,
    )
}


def main() -> None:
    """Write the bundles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    bundle = load_bundle(given.bundle)
    assert isinstance(bundle.router, Router), "the paper's policy has no such parts"
    for name, change in CHANGES.items():
        router = copy.deepcopy(bundle.router)
        with torch.no_grad():
            change(router)
        if router.price is None:  # a spec says so: weights and spec must fit
            router.spec = replace(router.spec, future=False)
            router.future = None
        observation = replace(bundle.observation, calibrate=bundle.observation.calibrate and change is not without_calibration)
        about = {**bundle.about, "ablation": name}
        save_bundle(given.folder / name, router, observation, about, trained_on=bundle.trained_on)
        print(given.folder / name)


if __name__ == "__main__":
    main()
