"""Writes what the shipped router was trained on into its bundle, which was saved before bundles said so.

Run ``python -m benchmarks.trained_on`` from the repository root. It takes the environment variants of the default options of
``edgeroute train``, with answer lengths of the catalogue under the Azure arrivals, as they were when it was trained. The
weights stay. It takes some ten seconds.
"""

from __future__ import annotations

import json
from dataclasses import replace

from models.envelope import Envelope
from models.export.bundle import load_bundle
from models.export.description import TRAINED_ON
from rllib_envs.scenario import with_workload
from tuning.run_dir.atomic import write_text
from tuning.specs.routers import SHIPPED_ROUTER
from tuning.training.options import TrainOptions, complete
from tuning.training.setup import envelope_of, variant_options
from tuning.training.variants import base_scenario, training_groups


def shipped_envelope() -> Envelope:
    options = complete(TrainOptions())
    variants = variant_options(options)
    scenario = base_scenario(variants)
    scenario = with_workload(scenario, arrivals=replace(scenario.workload.arrivals, lengths="catalogue"))
    return envelope_of(training_groups(scenario, variants, options.envs_per_runner))


def main() -> None:
    """Write it."""
    path = SHIPPED_ROUTER / "router.json"
    contents = json.loads(path.read_text(encoding="utf-8"))
    files = contents.pop("sha256")
    rounded = {name: [float(f"{value:.4g}") for value in limits] for name, limits in shipped_envelope().to_json().items()}
    contents = {**contents, TRAINED_ON: rounded, "sha256": files}
    write_text(path, json.dumps(contents, indent=1) + "\n")
    print(load_bundle(SHIPPED_ROUTER).trained_on)


if __name__ == "__main__":
    main()
