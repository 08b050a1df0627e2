"""Export the router of a training run as a bundle.

A bundle is a small folder with the weights (safetensors), their description (router.json) and an ONNX graph. It loads without Ray
and without pickle. Example:

    edgeroute export runs/mine --out bundles/mine
    edgeroute evaluate --load light moderate heavy --routers best bundle:bundles/mine
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from models.export.bundle import load_bundle, save_bundle
from models.export.onnx_scores import ONNX_FILE
from models.rllib.checkpoint import BUNDLE, find_checkpoint, read_checkpoint
from rllib_envs.errors import InputError
from tuning.evaluation.trained_on import UNKNOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options of the command."""

    run: Annotated[Path, tyro.conf.Positional]
    """Run directory, whose newest checkpoint counts, or one of its checkpoints."""
    out: Path
    """Folder of the bundle. One that is there already is replaced."""
    onnx: bool = True
    """Write router.onnx too (needs the extra onnx)."""


def run(options: Options) -> None:
    """Write the bundle and say what is in it.

    Raises:
        InputError: no checkpoint there, or a damaged one; --out is something else than a bundle, or cannot be written.
    """
    checkpoint = find_checkpoint(options.run)
    about = read_checkpoint(checkpoint)
    if options.out.exists() and not (options.out / "router.json").is_file():
        raise InputError(f"out = {str(options.out)!r}: there is something else than a bundle: name a new folder")
    bundle = load_bundle(checkpoint / BUNDLE)
    worst = save_bundle(
        options.out, bundle.router, bundle.observation, bundle.about, trained_on=bundle.trained_on, onnx=options.onnx
    )
    if options.onnx:
        print(f"{options.out / ONNX_FILE}: scores as torch's but for {worst:.1e}")
    size = sum(path.stat().st_size for path in options.out.iterdir())
    parameters = sum(p.numel() for p in bundle.router.parameters())
    print(
        f"{options.out}: {parameters:,} parameters, {size / 2**20:.2f} MiB; {bundle.about.get('algo')} on {about['scenario']}, "
        f"{about['steps']:,} decisions"
    )
    print(f"{options.out}: {UNKNOWN if bundle.trained_on is None else f'trained on scenarios with {bundle.trained_on}'}")
