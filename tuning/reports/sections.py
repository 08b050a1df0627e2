"""Sections of a report on training runs, evaluations, sweeps and the replay of an episode."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tuning.metrics.statistics import CONFIDENCE, RESAMPLES, Bounds, Interval, family_interval, interquartile_mean
from tuning.output.tables import ABSENT, columns_with_figures, metric_title, show, show_interval
from tuning.reports.document import Block, Paragraph, Picture, Section, Table
from tuning.reports.episode_replay import OUTCOMES, EpisodeReplay
from tuning.reports.explanations import notable_decisions
from tuning.reports.figures import (
    CLOSE,
    FAILURES,
    MOST_PANELS,
    draw_against_load,
    draw_calibration,
    draw_distributions,
    draw_failures,
    draw_forest,
    draw_learning,
    draw_shares_over_time,
    draw_timeline,
)
from tuning.reports.run_folders import Evaluation, RouterResult, Run, Sweep, TrainingRun, WorkloadResult, arms
from tuning.run_dir.atomic import write_atomically
from tuning.specs.faults import NO_FAULT

_COLUMNS = (
    "violation_rate",
    "drop_rate",
    "rejected_rate",
    "too_long_rate",
    "latency_per_token_p50_s",
    "latency_per_token_p99_s",
    "ttft_p50_s",
    "ttft_p99_s",
)
_GPU = "qos_per_gpu_s"
_LAST = 10  # iterations that the final figures of a training run are means over
_CHECKPOINT = "checkpoint:"
_FEW_SEEDS = 5


def overview(runs: Sequence[Run]) -> Section:
    """List every run and its kind."""
    rows = [[str(run.path), *_about(run)] for run in runs]
    table = Table(caption="What this report is made from.", header=["run", "kind", "scenario", "what"], rows=rows, names=4)
    return Section(title="Runs", blocks=[table])


def _about(run: Run) -> list[str]:
    match run:
        case TrainingRun():
            steps = f"{run.records[-1].steps:,} steps in {len(run.records)} iterations" if run.records else "no iteration yet"
            what = f"{run.options.get('algo')}, load {run.options.get('load')}, seed {run.seed}, {steps}"
            return ["training", run.scenario, what]
        case Evaluation():
            routers = {router.name for workload in run.workloads for router in workload.routers}
            return ["evaluation", run.scenario, f"{len(routers)} routers, {len(run.workloads)} workloads, {len(run.seeds)} seeds"]
        case Sweep():
            best = "" if run.best is None else f", best {run.best}"
            return ["sweep", ABSENT, f"{run.name}: {len(run.trials)} trials{best}"]


def reading() -> Section:
    """Explain the intervals."""
    texts = [
        f"Figures of evaluations are means over episodes, one for each seed, ± half of their {CONFIDENCE:.0%} interval "
        "(Student's t). All routers meet the same episodes, and differences are taken within seeds before they are averaged.",
        "Each interval misses what it estimates once in twenty times, so of many that are looked at together some do. A "
        "difference with an asterisk excludes zero even when the intervals of all differences of its table are widened so far "
        "that they hold together with that confidence (Bonferroni). One without should not be picked out as a finding because "
        "it alone looks clear.",
        "Over learner seeds, figures are interquartile means with percentile bootstrap intervals "
        f"({RESAMPLES:,} draws, within each task; Agarwal et al. 2021, arXiv 2108.13264), written with their ends in brackets. "
        f"With fewer than {_FEW_SEEDS} seeds they are too narrow and no more than a hint; of one seed there is none.",
        "QoS is the score of an answer that comes within the SLO, and 0 for one that comes later or not at all.",
    ]
    return Section(title="How to read the intervals", blocks=[Paragraph(text=text) for text in texts])


def training(runs: Sequence[TrainingRun], out: Path, rng: np.random.Generator) -> list[Section]:
    """Learning curves and final figures, a section for each scenario and load that was trained on.

    Args:
        runs: training runs.
        out: folder for the pictures.
        rng: the bootstrap draws from it.
    """
    places: dict[tuple[str, str], list[TrainingRun]] = {}
    for run in runs:
        places.setdefault((run.scenario, str(run.options.get("load"))), []).append(run)
    return [
        _training_section(scenario, load, group, out / f"learning-{i}.png", rng)
        for i, ((scenario, load), group) in enumerate(places.items(), start=1)
    ]


def _training_section(scenario: str, load: str, runs: list[TrainingRun], file: Path, rng: np.random.Generator) -> Section:
    named = _named_arms(runs)
    blocks: list[Block] = []
    begun = [(name, [run for run in group if run.records]) for name, group in named]
    begun = [(name, group) for name, group in begun if group]
    if begun:
        draw_learning(file, begun, rng)
        caption = (
            f"Training on {scenario}, load {load}. Lines: interquartile mean over learner seeds, smoothed over up to {_LAST} "
            f"iterations; bands: its pointwise {CONFIDENCE:.0%} bootstrap interval, where there are two seeds or more. Training "
            "explores and has faults drawn for it; the comparison with tuned impact-greedy does not, and is rough."
        )
        blocks.append(Picture(file=file.name, caption=caption))
    if any(len(group) > 1 for _, group in begun):
        blocks.append(_arms_table(begun, rng))
    blocks.append(_runs_table(named))
    return Section(title=f"Training: {scenario}, load {load}", blocks=blocks)


def _named_arms(runs: Sequence[TrainingRun]) -> list[tuple[str, list[TrainingRun]]]:
    """Name arms by what differs between them: options, or the algorithm."""
    groups = arms(runs)
    keys = sorted({key for group in groups for key in group[0].options} - {"seed"})
    differing = [key for key in keys if len({repr(group[0].options.get(key)) for group in groups}) > 1]
    named = [
        (", ".join(f"{key} {group[0].options.get(key)}" for key in differing) or str(group[0].options.get("algo")), group)
        for group in groups
    ]
    names = [name for name, _ in named]
    return [  # the same options on other versions of a scenario
        (name if names.count(name) == 1 else f"{name}, world {group[0].fingerprint[:6]}", group) for name, group in named
    ]


def _arms_table(named: Sequence[tuple[str, Sequence[TrainingRun]]], rng: np.random.Generator) -> Table:
    rows: list[list[str]] = []
    for name, runs in named:
        qos = interquartile_mean([[_final(run)["qos"] for run in runs]], rng)
        validated = [found for run in runs if (found := _last_validation(run))]
        over = [[found[load]["mean"] for found in validated] for load in (validated[0] if validated else {})]
        shown = show_bounds(interquartile_mean(over, rng), signed=True) if over else ABSENT
        rows.append([name, str(len(runs)), show_bounds(qos), shown])
    return Table(
        caption="Arms over learner seeds: interquartile means at the end of training, with their intervals.",
        header=["arm", "seeds", f"QoS in training, last {_LAST} iterations", "QoS over tuned impact-greedy, over loads"],
        rows=rows,
    )


def _runs_table(named: Sequence[tuple[str, Sequence[TrainingRun]]]) -> Table:
    loads = list(dict.fromkeys(load for _, runs in named for run in runs for load in _last_validation(run)))
    rows: list[list[str]] = []
    for name, runs in named:
        for run in runs:
            final, last = _final(run), _last_validation(run)
            steps, hours = (run.records[-1].steps, run.records[-1].elapsed_s / 3600) if run.records else (0, 0.0)
            over = [
                show_interval("qos", Interval(mean=last[load]["mean"], half_width=last[load]["error"]), signed=True)
                if load in last
                else ABSENT
                for load in loads
            ]
            figures = [show("qos", final["qos"]), show("violation_rate", final["late"]), show("drop_rate", final["drop"])]
            rows.append([str(run.path), name, str(run.seed), f"{steps:,}", f"{hours:.2f}", *figures, *over])
    return Table(
        caption=f"Runs at their ends: means of training over the last {_LAST} iterations, and the last comparison with tuned "
        f"impact-greedy at each load, ± half of its {CONFIDENCE:.0%} interval over a few episodes.",
        header=["run", "arm", "seed", "steps", "hours", "QoS", "late, %", "dropped, %", *(f"over, {load}" for load in loads)],
        rows=rows,
        names=2,
    )


def _final(run: TrainingRun) -> dict[str, float]:
    last = run.records[-_LAST:]
    values = {"qos": [r.qos for r in last], "late": [r.late_share for r in last], "drop": [r.drop_share for r in last]}
    return {name: float(np.mean(found)) if found else math.nan for name, found in values.items()}


def _last_validation(run: TrainingRun) -> Mapping[str, dict[str, float]]:
    return next((record.validation for record in reversed(run.records) if record.validation), {})


def evaluation(run: Evaluation, trained: Sequence[TrainingRun], out: Path, number: int, rng: np.random.Generator) -> Section:
    """Tables and figures of one evaluation.

    Args:
        run: the evaluation.
        trained: training runs of the same report: where the evaluation has several that differ in the seed alone, it is summed up
            over them.
        out: folder for the pictures.
        number: of the evaluation in the report, which its pictures are named by.
        rng: the bootstrap draws from it.
    """
    comparisons = sum(len(workload.routers) - 1 for workload in run.workloads)
    seeds = f"{len(run.seeds)} seeds ({run.seeds[0]:,} to {run.seeds[-1]:,})"
    about = (
        f"Scenario {run.scenario}, SLO {1e3 * run.slo_s_per_token:g} ms per token, {seeds}, {len(run.workloads)} workloads. Of "
        f"the {comparisons} differences to a baseline, each with an interval of its own, about "
        f"{comparisons * (1 - CONFIDENCE):.1f} would exclude zero if no router differed from it."
    )
    blocks: list[Block] = [Paragraph(text=text) for text in (about, *run.notes)]
    blocks += [_summary_table(run, i) for i in range(len(run.summaries))]
    blocks += _learner_table(run, trained, rng)
    blocks += _evaluation_pictures(run, out, f"evaluation-{number}")
    blocks += [_workload_table(workload, len(run.seeds), len(run.workloads) > 1) for workload in run.workloads]
    return Section(title=f"Evaluation: {run.path}", blocks=blocks)


def _summary_table(run: Evaluation, index: int) -> Table:
    summary, n = run.summaries[index], len(run.seeds)
    rows = [
        [
            name,
            show_interval("qos", qos),
            _difference(summary.difference[name], n, len(summary.qos) - 1, is_baseline=name == summary.baseline),
            show_interval(_GPU, summary.qos_per_gpu_s[name]),
        ]
        for name, qos in summary.qos.items()
    ]
    return Table(
        caption=f"Mean over {summary.title}, {n} seeds. Difference: to {summary.baseline}.",
        header=["router", "QoS", "difference", metric_title(_GPU)],
        rows=rows,
    )


def _workload_table(workload: WorkloadResult, n: int, folded: bool) -> Table:
    rate = "" if workload.rate_rps is None else f" ({workload.rate_rps:.2f} requests/s)"
    columns = columns_with_figures((*_COLUMNS, _GPU), [router.metrics for router in workload.routers])
    rows = [_router_row(router, workload, n, columns) for router in workload.routers]
    return Table(
        caption=f"{workload.name}{rate}, {n} seeds. Difference: QoS to {workload.baseline}.",
        header=["router", "QoS", "difference", *map(metric_title, columns)],
        rows=rows,
        folded=folded,
    )


def _router_row(router: RouterResult, workload: WorkloadResult, n: int, columns: Sequence[str]) -> list[str]:
    others = len(workload.routers) - 1
    return [
        router.ran_as,
        show_interval("qos", router.metrics["qos"]),
        _difference(router.difference, n, others, is_baseline=router.name == workload.baseline),
        *(show_interval(name, router.metrics[name]) for name in columns),
    ]


def _difference(interval: Interval, n: int, comparisons: int, *, is_baseline: bool) -> str:
    """With an asterisk where it is clear beside all others of its table."""
    if is_baseline:
        return ABSENT
    clear = family_interval(interval, n, max(comparisons, 1)).excludes_zero
    return show_interval("qos", interval, signed=True) + ("*" if clear else "")


def _learner_table(run: Evaluation, trained: Sequence[TrainingRun], rng: np.random.Generator) -> list[Block]:
    """Arms whose learner seeds were evaluated, two or more of one."""
    names = {router.name for router in run.workloads[0].routers}
    found = [
        (arm, [name for name in sorted(names) if any(_is_of(name, learner) for learner in group)])
        for arm, group in _named_arms(trained)
    ]
    rows: list[list[str]] = []
    for arm, members in found:
        if len(members) > 1:
            qos = [[workload.router(name).metrics["qos"].mean for name in members] for workload in run.workloads]
            over = [[workload.router(name).difference.mean for name in members] for workload in run.workloads]
            bounds = [show_bounds(interquartile_mean(qos, rng)), show_bounds(interquartile_mean(over, rng), signed=True)]
            rows.append([arm, str(len(members)), *bounds])
    if not rows:
        return []
    caption = f"Arms over learner seeds: interquartile means over seeds and {len(run.workloads)} workloads, with their intervals."
    return [Table(caption=caption, header=["arm", "learner seeds", "QoS", "difference to the baselines"], rows=rows)]


def _is_of(router: str, run: TrainingRun) -> bool:
    """Whether a router is a checkpoint of the run."""
    path = Path(router.removeprefix(_CHECKPOINT)).resolve()
    return router.startswith(_CHECKPOINT) and run.path.resolve() in (path, *path.parents)


def _evaluation_pictures(run: Evaluation, out: Path, prefix: str) -> list[Block]:
    blocks: list[Block] = []
    interval = f"95 % intervals over {len(run.seeds)} seeds"
    clean = [workload for workload in run.workloads if workload.fault == NO_FAULT]
    for i, arrivals in enumerate(dict.fromkeys(workload.arrivals for workload in clean), start=1):
        points = [w for w in clean if w.arrivals == arrivals and w.share_of_capacity is not None]
        if len(points) > 1:
            file = out / f"{prefix}-load-{i}.png"
            draw_against_load(file, run, points)
            caption = f"QoS, and QoS per second that a GPU is busy, against the load, {arrivals} arrivals; bands: {interval}."
            blocks.append(Picture(file=file.name, caption=caption))
    few = run.workloads[:MOST_PANELS]
    which = "" if len(few) == len(run.workloads) else f" The first {len(few)} of {len(run.workloads)} workloads; tables have all."
    if any(len(workload.routers) > 1 for workload in few):
        draw_forest(out / f"{prefix}-differences.png", run, few)
        caption = (
            f"Difference of QoS of every router to the baseline, paired by seed, with {interval}; coloured where they exclude "
            f"zero. Where some are large, the axis is linear up to {CLOSE} on either side and logarithmic beyond.{which}"
        )
        blocks.append(Picture(file=f"{prefix}-differences.png", caption=caption))
    if any(router.metrics[name].mean > 0 for workload in few for router in workload.routers for name in FAILURES):
        draw_failures(out / f"{prefix}-failures.png", few)
        caption = f"Requests that were late, dropped by the router or refused by a full expert.{which}"
        blocks.append(Picture(file=f"{prefix}-failures.png", caption=caption))
    else:
        blocks.append(Paragraph(text=f"No request was late, dropped by the router or refused by a full expert.{which}"))
    if any(router.latency_quantiles_s for workload in few for router in workload.routers):
        draw_distributions(out / f"{prefix}-latency.png", run, few)
        caption = f"Requests that finished within each latency per token, and had their first token within each time.{which}"
        blocks.append(Picture(file=f"{prefix}-latency.png", caption=caption))
    return blocks


def sweep(run: Sweep, out: Path, number: int) -> Section:
    """Tables of one sweep, and the pictures it has.

    Args:
        run: the sweep.
        out: folder for the pictures.
        number: of the sweep in the report, which its pictures are named by.
    """
    statuses = [trial.status for trial in run.trials]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
    best = "" if run.best is None else f" The best is {run.best}."
    about = f"{run.name}: search {run.search}, scheduler {run.scheduler}; {len(run.trials)} trials ({counts}).{best}"
    space = [[key, domain] for key, domain in run.space.items()]
    blocks: list[Block] = [
        Paragraph(text=about),
        Table(caption="What was searched.", header=["option", "drawn from"], rows=space, names=2),
    ]
    if run.ranking:
        blocks.append(_ranking_table(run))
    for picture in run.pictures:
        file = out / f"sweep-{number}-{picture.name}"
        content = picture.read_bytes()
        write_atomically(file, lambda staged, content=content: _write_bytes(staged, content))
        blocks.append(Picture(file=file.name, caption=f"{run.name}: {picture.stem}."))
    blocks.append(_trials_table(run))
    return Section(title=f"Sweep: {run.path}", blocks=blocks)


def _ranking_table(run: Sweep) -> Table:
    rows = [
        [
            row.trial,
            show_interval("qos", row.qos),
            ABSENT if row.trial == run.reference else show_interval("qos", row.difference, signed=True),
        ]
        for row in run.ranking
    ]
    to = "" if run.reference is None else f" Difference: to {run.reference}, paired by seed."
    caption = (
        f"The best trials on {run.ranking_seeds} other episodes, with {CONFIDENCE:.0%} intervals.{to} Each setting was trained "
        f"once: how learner seeds differ is not in them. The best of {len(run.ranking)} looks better than it is."
    )
    return Table(caption=caption, header=["trial", "QoS", "difference"], rows=rows)


def _trials_table(run: Sweep) -> Table:
    keys = list(dict.fromkeys([*run.space, *(key for trial in run.trials for key in trial.settings)]))
    trials = sorted(run.trials, key=lambda trial: -trial.qos if math.isfinite(trial.qos) else math.inf)
    rows = [
        [
            trial.id,
            trial.status,
            *(_setting(trial.settings.get(key)) for key in keys),
            show("qos", trial.qos),
            show("violation_rate", trial.late_share),
            _known(trial.gpu_s_per_request, ".3f"),
            *(_known(figure, ",.0f") for figure in (trial.iterations, trial.steps, trial.seconds)),
        ]
        for trial in trials
    ]
    figures = ["QoS", "late, %", "GPU-seconds a request", "iterations", "steps", "seconds"]
    return Table(caption="All trials, by QoS.", header=["trial", "status", *keys, *figures], rows=rows, names=2, folded=True)


def _setting(value: Any) -> str:
    return ABSENT if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def replay_sections(replay: EpisodeReplay, out: Path) -> list[Section]:
    """The replay of an episode, and how accurate the router's predictions were.

    Args:
        replay: the episode.
        out: folder for the pictures.
    """
    question, rate_rps = replay.question, replay.workload.rate_rps
    rate = "" if rate_rps is None else f" ({rate_rps:.2f} requests/s)"
    share = [f"{100 * float((replay.outcome == i).mean()):.2f} % {name}" for i, name in enumerate(OUTCOMES)]
    about = (
        f"{question.router} on {replay.workload.scenario.name}, {replay.workload.name}{rate}, seed {question.seed:,}: "
        f"{replay.choice.size:,} requests, {', '.join(share)}; mean QoS {float(replay.records.qos.mean()):.4f}."
    )
    draw_shares_over_time(out / "routing-shares.png", replay)
    draw_timeline(out / "timeline.png", replay)
    draw_calibration(out / "calibration.png", replay)
    start_s, end_s = replay.window_s
    timeline = (
        f"Minute {question.minute}, from {start_s:.0f} s to {end_s:.0f} s: a bar for each request, from its arrival to its "
        "finish, at the expert that it was sent to. Bars above one another are requests that are there at the same time."
    )
    calibration = (
        "Left: what the impact estimator expected an action to add to the QoS of all requests present, against what it would "
        "add with the true lengths and scores if nobody else arrived; means of groups of equal size. Where those chosen lie "
        "lower than all, it is because who takes the best of several estimates takes the most hopeful ones. Right: of the "
        "requests that were sent, the share in time by the predicted chance of it; those who come later may make a request late "
        "that would have been in time. Decisions of one episode are not independent: the intervals are somewhat too narrow."
    )
    return [
        Section(
            title="A minute of traffic",
            blocks=[
                Paragraph(text=about),
                Picture(file="routing-shares.png", caption="Share of the arrivals that each expert got, and of those dropped."),
                Picture(file="timeline.png", caption=timeline),
                _decisions_table(replay),
            ],
        ),
        Section(title="Calibration of the impact estimator", blocks=[Picture(file="calibration.png", caption=calibration)]),
    ]


def _decisions_table(replay: EpisodeReplay) -> Table:
    slo_ms = 1e3 * replay.workload.scenario.slo_s_per_token
    rows = [
        [
            f"{d.time_s:.2f}",
            d.choice,
            d.outcome,
            d.why,
            _known(100 * d.in_time, ".0f"),
            _known(slo_ms * d.latency_slo, ".1f"),
            _known(slo_ms * d.realised_slo, ".1f"),
            _known(d.newly_late, ".0f"),
            f"{d.qos:.3f}",
        ]
        for d in notable_decisions(replay)
    ]
    caption = (
        "Decisions of this minute that stand out, in the router's own terms: the largest losses of answer quality that it "
        "accepted, the best answers that it dropped, and requests that came late against its expectation."
    )
    header = ["time, s", "sent to", "outcome", "why", "chance in time, %", "expected ms/token", "realised ms/token"]
    return Table(caption=caption, header=[*header, "others late by it", "QoS"], rows=rows, names=4)


def _known(value: float, form: str) -> str:
    return ABSENT if math.isnan(value) else f"{value:{form}}"


def show_bounds(bounds: Bounds, *, signed: bool = False) -> str:
    """``estimate [low, high]`` of a QoS; the estimate alone where there is no interval."""
    form = "+.4f" if signed else ".4f"
    if math.isnan(bounds.low):
        return f"{bounds.estimate:{form}}"
    return f"{bounds.estimate:{form}} [{bounds.low:{form}}, {bounds.high:{form}}]"
