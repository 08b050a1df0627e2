"""Figures can be told apart and draw whatever there is."""

import dataclasses

import matplotlib.image
import pytest

import tuning.evaluation.figures as figures
from rllib_envs.scenarios.load import load_scenario
from tuning.evaluation.comparison import compare
from tuning.evaluation.figures import draw_differences, draw_latency, draw_qos_against_load
from tuning.evaluation.matrix import CellResult
from tuning.evaluation.summary import summarise
from tuning.metrics.episode import METRICS
from tuning.output.plot_style import canvas, save, short
from tuning.specs.routers import HEURISTICS, parse_router
from tuning.specs.workloads import TraceOptions, make_workloads

pytestmark = pytest.mark.slow

ROUTERS = [parse_router(name) for name in [*HEURISTICS, *(f"quality-greedy:cap={cap}" for cap in range(1, 6))]]


def result(router, qos, finished=1.0, quantiles=(0.01, 0.05, 0.2)):
    metrics = {name: [0.5] * len(qos) for name in METRICS} | {"qos": qos, "completion_rate": [finished] * len(qos)}
    return CellResult(
        key=router.text,
        router=router.text,
        seeds=list(range(len(qos))),
        metrics=metrics,
        shares=[[1 / 7] * 7] * len(qos),
        latency_quantiles_s=list(quantiles),
        ttft_quantiles_s=list(quantiles),
        groups={},
    )


def comparison(load="light", qos=(0.5, 0.6), **kwargs):
    (workload,) = make_workloads(load_scenario("edge6"), [load], [], TraceOptions(), None)
    return compare(workload, ROUTERS, [result(router, list(qos), **kwargs) for router in ROUTERS], None)


@pytest.fixture
def drawn(monkeypatch):
    """Axes of the figures that were written, before they were."""
    axes_of = []
    save = figures.save
    monkeypatch.setattr(figures, "save", lambda figure, axes, path: axes_of.append(axes) or save(figure, axes, path))
    return axes_of


def test_no_two_routers_look_alike_and_each_looks_the_same_everywhere():
    first, second = comparison(), comparison("heavy", (0.3, 0.2))
    styles = figures._styles([first])
    assert len({(style["color"], style["linestyle"]) for style in styles.values()}) == len(ROUTERS)
    assert styles == figures._styles([second])
    assert styles == figures._styles([first, second])


def test_a_latency_curve_ends_at_the_share_that_finished(tmp_path, drawn):
    draw_latency(tmp_path / "latency.png", comparison(finished=0.4))
    for line in drawn[0].get_lines()[: len(ROUTERS)]:
        x, y = line.get_data()
        assert (x[1:] >= x[:-1]).all()
        assert (y[1:] >= y[:-1]).all()
        assert y[-1] == pytest.approx(40)
        assert x[-1] >= drawn[0].get_xlim()[1]


@pytest.mark.parametrize("qos", [(0.5,), (0.5, 0.6)])
def test_qos_is_drawn_against_load(tmp_path, drawn, qos):
    points = [comparison(load, qos) for load in ("heavy", "light", "50%")]
    draw_qos_against_load(tmp_path / "qos.png", points)
    for line in drawn[0].get_lines():
        assert line.get_xdata() == pytest.approx([30, 50, 100])
    assert len(drawn[0].get_legend().get_texts()) == len(ROUTERS)


def test_nothing_finished_can_be_drawn(tmp_path):
    draw_latency(tmp_path / "latency.png", comparison(finished=0.0, quantiles=()))
    assert matplotlib.image.imread(tmp_path / "latency.png").shape[2] in (3, 4)


def test_the_legend_stays_within_the_figure(tmp_path, drawn):
    base = comparison()
    long = dataclasses.replace(base.rows[0].router, name="checkpoint:" + "a/long/path/" * 8 + "best")
    rows = [dataclasses.replace(base.rows[0], router=long), *base.rows[1:]]
    draw_latency(tmp_path / "latency.png", dataclasses.replace(base, rows=rows))
    axes = drawn[0]
    legend, canvas = axes.get_legend().get_window_extent(), axes.figure.bbox
    assert legend.x1 <= canvas.x1 + 1  # a pixel: texts are measured to fractions of one
    assert legend.y0 >= canvas.y0
    assert legend.y1 <= canvas.y1
    assert legend.x0 > axes.get_window_extent().x1


def test_differences_are_drawn_on_each_workload_and_in_the_mean(tmp_path, drawn):
    points = []
    for i, load in enumerate(("light", "heavy")):
        base = comparison(load)
        results = [result(router, [0.1 * (i + 1) * j, 0.2 * j]) for j, router in enumerate(ROUTERS)]
        points.append(compare(base.workload, ROUTERS, results, "random"))
    summary = summarise("both", points, "random")
    draw_differences(tmp_path / "differences.png", summary, points)
    axes = drawn[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == [*(p.workload.name for p in points), "mean over workloads"]
    shown = {text.get_text() for text in axes.get_legend().get_texts()}
    # The reference and plain ones would set the scale.
    published = {"route-balance", "slo-headroom", "polyserve", "lodestar"}
    assert shown == {"impact-greedy", "myopic-impact-greedy", "calibrated-impact-greedy", *published}
    for container in axes.containers:
        (row,) = [row for row in summary.rows if row.router.name == container.get_label()]
        expected = [*(interval.mean for interval in row.differences), row.difference.mean]
        assert container[0].get_xdata() == pytest.approx(expected)
        assert sorted(container[0].get_ydata()) == list(container[0].get_ydata())


def test_plain_heuristics_are_drawn_where_there_are_no_others(tmp_path, drawn):
    plain = [router for router in ROUTERS if router.is_plain]
    base = comparison()
    point = compare(base.workload, plain, [result(router, [0.5, 0.1 * j]) for j, router in enumerate(plain)], None)
    draw_differences(tmp_path / "differences.png", summarise("two", [point, point], None), [point, point])
    assert 1 < len(drawn[0].get_legend().get_texts()) < len(plain)


def test_a_trained_router_is_drawn_before_plain_heuristics(tmp_path, drawn):
    routers = [parse_router(text) for text in ("least-work", "quality-greedy", f"checkpoint:{tmp_path}")]
    point = compare(comparison().workload, routers, [result(router, [0.5, 0.1]) for router in routers], None)
    draw_differences(tmp_path / "differences.png", summarise("two", [point, point], None), [point, point])
    assert [container.get_label() for container in drawn[0].containers] == [short(routers[2].name)]


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("impact-greedy", "impact-greedy"),
        ("bundle:bundles/mine", "bundle:bundles/mine"),
        ("bundle:tuning/presets/edge6-router", "bundle:…/presets/edge6-router"),
        ("checkpoint:/home/somebody/runs/2026/mine", "checkpoint:…/runs/2026/mine"),
        ("python:examples/own/mine.py:cheapest:cap=8", "python:…/mine.py:cheapest:cap=8"),
        ("bundle:a-folder-with-a-very-long-name-of-its-own", "…ith-a-very-long-name-of-its-own"),
    ],
)
def test_a_long_name_is_cut_between_folders(name, shown):
    assert short(name) == shown
    assert len(shown) <= 32


def test_a_legend_of_long_names_lies_within_the_picture(tmp_path, drawn):
    names = [f"bundle:{'folder/' * 12}router-{i}" for i in range(3)] + ["checkpoint:" + "x" * 200]
    figure, axes = canvas()
    for name in names:
        axes.plot([0, 1], [0, 1], label=short(name))
    save(figure, axes, tmp_path / "long.png")
    figure.canvas.draw()
    box, page = axes.get_legend().get_window_extent(), figure.bbox
    assert page.x0 <= box.x0 < box.x1 <= page.x1
    assert page.y0 <= box.y0 < box.y1 <= page.y1
    assert len({text.get_text() for text in axes.get_legend().get_texts()}) == len(names)
