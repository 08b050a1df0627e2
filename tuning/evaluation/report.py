"""The files of an evaluation: tables in Markdown, everything in JSON, and figures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rllib_envs.scenario import Scenario
from tuning.evaluation.comparison import Comparison, to_json, to_markdown
from tuning.evaluation.figures import draw_differences, draw_latency, draw_qos_against_load
from tuning.evaluation.summary import Summary, summaries, summary_json, summary_markdown
from tuning.output.literal import markdown, slug
from tuning.run_dir.atomic import write_json, write_text
from tuning.run_dir.digests import code_digest
from tuning.specs.faults import NO_FAULT

FORMAT = 1


def write_report(
    out: Path,
    scenario: Scenario,
    seeds: Sequence[int],
    notes: Sequence[str],
    comparisons: Sequence[Comparison],
    baseline: str | None,
) -> None:
    """Print the tables, and write results.md, results.json and the figures.

    Args:
        out: folder.
        scenario: what was evaluated.
        seeds: of the episodes.
        notes: what a reader must know beside the tables, a paragraph each.
        comparisons: one for each workload.
        baseline: name of the router that differences are to; None to choose it.

    Raises:
        InputError: a file cannot be written.
    """
    title = f"# {markdown(scenario.name)}: SLO {1e3 * scenario.slo_s_per_token:g} ms per token, seeds {seeds[0]} to {seeds[-1]}"
    groups = summaries(comparisons, baseline)
    tables = [*(summary_markdown(summary) for summary, _ in groups), *map(to_markdown, comparisons)]
    text = "\n\n".join([title, *notes, *tables])
    print(text)
    figures = _draw(out, comparisons, groups)
    write_text(out / "results.md", "\n\n".join([text, *(f"![{name}]({name})" for name in figures)]) + "\n")
    write_json(
        out / "results.json",
        {
            "format": FORMAT,
            "code": code_digest(),
            "scenario": scenario.name,
            "slo_s_per_token": scenario.slo_s_per_token,
            "seeds": seeds,
            "notes": notes,
            "summaries": [summary_json(summary) for summary, _ in groups],
            "comparisons": [to_json(comparison) for comparison in comparisons],
        },
    )
    print(f"\nWritten: {', '.join(str(out / name) for name in ('results.json', 'results.md', *figures))}")


def _draw(out: Path, comparisons: Sequence[Comparison], groups: Sequence[tuple[Summary, list[Comparison]]]) -> list[str]:
    """Draw what there is to draw; the names of the files. With a fault a workload shows in the differences alone."""
    figures: list[str] = []
    for summary, group in groups:
        if len(summary.rows) > 1:
            figures.append(f"differences-{slug(summary.title)}.png")
            draw_differences(out / figures[-1], summary, group)
    clean = [c for c in comparisons if c.workload.fault == NO_FAULT]
    for arrivals in dict.fromkeys(c.workload.arrivals for c in clean):
        points = [c for c in clean if c.workload.arrivals == arrivals and c.workload.rate_rps is not None]
        if len(points) >= 2:
            figures.append(f"qos-{slug(arrivals)}.png")
            draw_qos_against_load(out / figures[-1], points)
    for comparison in clean:
        figures.append(f"latency-{slug(comparison.workload.name)}.png")
        draw_latency(out / figures[-1], comparison)
    return figures
