"""The folder of a run that continues a bundle on a log: ``world/`` (what was fitted, and the log), ``base/``, ``candidate/``.

``base/`` is the bundle before, so the run needs neither log nor bundle any more. At the end ``candidate/`` is the new one, and
``promoted/`` is a copy of it if it is better on the later part of the log.
"""

from __future__ import annotations

import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from models.export.bundle import load_bundle, save_bundle
from models.export.description import WEIGHTS, describe_bundle
from models.export.files import staged_folder
from models.router import Router
from rllib_envs.decision_log.reader import read_log
from rllib_envs.decision_log.table import LoggedTable, cut, table_of
from rllib_envs.errors import InputError
from rllib_envs.scenario import Reward, Scenario
from tuning.logged_worlds.compare import LEAST_WINDOW
from tuning.logged_worlds.fit import LEAST_REQUESTS, fit_worlds
from tuning.logged_worlds.promotion import judge, write_promotion
from tuning.logged_worlds.snapshot import write_snapshot
from tuning.output.literal import printable

WORLD, BASE, CANDIDATE, PROMOTED, PROMOTION = "world", "base", "candidate", "promoted", "promotion.json"
"""Folders and file of such a run."""

_LOG = "log"  # folder of WORLD
_CONTINUES = "continues"  # entry of what a bundle says of itself


def begin_from_log(
    log: Path, bundle: Path, run_dir: Path, *, held_out: float, requests: int, reward: Reward, seed: int
) -> tuple[Scenario, Scenario]:
    """Copy log and bundle into the folder of a run, fit worlds to the earlier part of the log, and say so.

    Args:
        log: folder or file of a decision log.
        bundle: to continue.
        run_dir: folder of the run.
        held_out: share of the log, its last part, that nothing is fitted to.
        requests: in a training episode.
        reward: of training.
        seed: of the lengths that nobody saw.

    Returns:
        Two scenarios of the log's cluster, with fitted and with replayed arrivals, and with the bundle's observation.

    Raises:
        InputError: the log or the bundle cannot be read, the log is too short, or the folder cannot be written to.
    """
    described, found = describe_bundle(bundle), read_log(log)
    shutil.rmtree(run_dir / WORLD / _LOG, ignore_errors=True)  # of a start that was killed before its first checkpoint
    write_snapshot(found, run_dir / WORLD / _LOG)
    earlier, later = _parts(run_dir, held_out, log)
    with staged_folder(run_dir / BASE) as staged:
        shutil.copytree(bundle, staged, dirs_exist_ok=True)
    worlds = fit_worlds(earlier, found.scenario, run_dir / WORLD, requests=requests, seed=seed)
    print(
        f"{printable(str(log))}: worlds are fitted to {len(earlier.requests):,} requests, and {len(later.requests):,} later ones "
        f"are held out"
    )
    for line in worlds.said:
        print(printable(line))
    observation = replace(described.observation, counterfactual=True)
    fitted, replayed = (replace(x, reward=reward, observation=observation) for x in (worlds.fitted, worlds.replayed))
    return fitted, replayed


def router_to_continue(run_dir: Path) -> Router:
    """The router of the bundle before.

    Raises:
        InputError: it cannot be read.
    """
    router = load_bundle(run_dir / BASE).router
    if not isinstance(router, Router):
        raise InputError(f"{run_dir / BASE}: a router of the paper, which no log continues")
    return router


def finish(run_dir: Path, trained: Path, held_out: float, seed: int) -> bool:
    """Write the candidate, compare it with the bundle before, promote it if it is better, and say so.

    Args:
        run_dir: folder of the run.
        trained: bundle of its last checkpoint.
        held_out: as it began with.
        seed: of the lengths that nobody saw.

    Returns:
        Whether it was promoted.

    Raises:
        InputError: a bundle cannot be read or written.
    """
    bundle, base = load_bundle(trained), describe_bundle(run_dir / BASE)
    about = bundle.about | {_CONTINUES: base.manifest.sha256[WEIGHTS][:12]}
    onnx = find_spec("onnx") is not None
    save_bundle(run_dir / CANDIDATE, bundle.router, bundle.observation, about, trained_on=bundle.trained_on, onnx=onnx)
    _, later = _parts(run_dir, held_out, run_dir / WORLD / _LOG)
    scenario = read_log(run_dir / WORLD / _LOG).scenario
    promotion = judge(later, scenario, run_dir / BASE, run_dir / CANDIDATE, seed)
    write_promotion(promotion, run_dir / PROMOTION)
    print(promotion.table())
    if promotion.promoted:
        with staged_folder(run_dir / PROMOTED) as staged:
            shutil.copytree(run_dir / CANDIDATE, staged, dirs_exist_ok=True)
        print(f"Promoted: {promotion.figures}: {run_dir / PROMOTED}")
    else:
        print(f"Not promoted: {promotion.figures}, not above 0: the candidate is {run_dir / CANDIDATE}")
    return promotion.promoted


def _parts(run_dir: Path, held_out: float, log: Path) -> tuple[LoggedTable, LoggedTable]:
    """The earlier and the later part of the log in a run's folder; ``log``: what to call it."""
    table = table_of(read_log(run_dir / WORLD / _LOG))
    least = max(LEAST_REQUESTS / (1 - held_out), 2 * LEAST_WINDOW / held_out)
    if len(table.requests) < least:
        raise InputError(
            f"log {log}: {len(table.requests):,} requests of it went to an expert: at least {least:,.0f} are needed, "
            "to learn from the earlier ones and to compare on the later"
        )
    return cut(table, 1 - held_out)
