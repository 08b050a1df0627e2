"""Every script of examples/, in its small form and in this process: it says what it does, and what it prints is true."""

import ast
import re
import runpy
import sys
from pathlib import Path

import pytest

from rllib_envs.scenarios.load import load_scenario

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
PROCESSES = ("stock_ppo", "avl_under_tune")  # examples that start processes, and take long


@pytest.fixture
def played(request, tmp_path, monkeypatch, capsys):
    """What the small form prints, started as a script in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(request.param), "--smoke"])
    monkeypatch.setattr(sys, "path", list(sys.path))  # Ray adds to it
    try:
        runpy.run_path(str(request.param), run_name="__main__")
    finally:
        if "ray" in sys.modules:
            sys.modules["ray"].shutdown()  # a script's Ray ends with its process
    return capsys.readouterr().out


def qos(printed, pattern):
    """The QoS in each line that the pattern matches."""
    return [float(x) for x in re.findall(rf"^{pattern}.*QoS (\d\.\d+)", printed, re.MULTILINE)]


def heuristic_beats_the_shortest_queue(printed):
    own, shortest = qos(printed, "score_for_load"), qos(printed, "join-shortest-queue")
    assert own[0] > shortest[0] + 0.03


def both_arrivals_are_run(printed):
    assert len(qos(printed, "poisson")) == len(qos(printed, "waves")) == 2
    assert qos(printed, "poisson") != qos(printed, "waves")


def the_term_is_what_the_reward_lacks(printed):
    rows = re.findall(r"QoS (\S+) - cost (\S+) = reward (\S+)", printed)
    assert len(rows) == 2
    for score, cost, reward in rows:
        assert float(score) - float(cost) == pytest.approx(float(reward), abs=2e-4)
    assert float(rows[1][1]) < float(rows[0][1])  # who looks at the charge pays less
    assert float(rows[1][2]) > float(rows[0][2])


def the_fleet_can_be_loaded(printed):
    fleet = load_scenario("./my-fleet.yaml")
    assert [expert.name for expert in fleet.experts] == ["small", "large"]
    idle_ms = dict(re.findall(r"^(\w+): (\S+) ms an idle iteration", printed, re.MULTILINE))
    assert {name: float(x) for name, x in idle_ms.items()} == pytest.approx({"small": 24.0, "large": 14.0}, rel=0.02)
    assert len(qos(printed, "")) == 2


def the_shipped_router_is_the_better(printed):
    assert qos(printed, "shipped router")[0] > qos(printed, "impact-greedy")[0]


def it_learns(printed):
    assert qos(printed, "trained")[0] > qos(printed, "random")[0] + 0.05


def it_is_restored(printed):
    assert re.search(r"^iteration 1: entropy 0\.\d+, value loss \d", printed, re.MULTILINE)
    assert printed.endswith("restored: RouterModule\n")


def both_trials_have_a_qos(printed):
    found = re.findall(r"^lr (\S+): mean QoS (\S+)$", printed, re.MULTILINE)
    assert [rate for rate, _ in found] == ["0.0003", "0.001"]
    assert all(0 <= float(mean) <= 1 for _, mean in found)


CHECKS = {
    "stock_ppo": it_is_restored,
    "avl_under_tune": both_trials_have_a_qos,
    "own_heuristic": heuristic_beats_the_shortest_queue,
    "own_arrivals": both_arrivals_are_run,
    "own_reward_term": the_term_is_what_the_reward_lacks,
    "own_fleet": the_fleet_can_be_loaded,
    "bundle_from_python": the_shipped_router_is_the_better,
    "ppo_cleanrl": it_learns,
}


@pytest.mark.parametrize(
    "played",
    [pytest.param(path, marks=[pytest.mark.cluster] if path.stem in PROCESSES else [], id=path.stem) for path in EXAMPLES],
    indirect=True,
)
def test_an_example_does_what_it_says(played, request):
    name = request.node.callspec.id
    figures = [float(x) for x in re.findall(r"(?<![\w.])-?\d+\.\d+", played)]
    assert figures, played
    assert not re.search(r"\b(nan|inf)\b", played, re.IGNORECASE)
    if name in CHECKS:
        CHECKS[name](played)


def test_the_checks_are_of_examples_that_exist():
    assert set(CHECKS) <= {path.stem for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_opens_with_what_it_does_how_to_run_it_and_what_to_expect(path):
    text = ast.get_docstring(ast.parse(path.read_text()))
    assert text is not None
    parts = (r"What it does:", r"(?:Run it|How to run it):", rf"examples/{path.name}", r"Expect|What to expect")
    places = [found.start() if (found := re.search(part, text)) else -1 for part in parts]
    assert min(places) >= 0, dict(zip(parts, places, strict=True))
    assert places == sorted(places)


def test_examples_are_no_package():
    assert not (ROOT / "examples" / "__init__.py").exists()
