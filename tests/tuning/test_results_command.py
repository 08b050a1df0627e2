"""The tables of docs/results.md: found by their marks, and nothing else changed."""

import pytest

from benchmarks.results import CLEAN, DOCUMENT, Results, called, put_tables

pytestmark = pytest.mark.slow

NAMES = ["priced", "myopic", "plain", "gpu", "faults", "graph", "graph-faults", "parts", "arms", "fleets", "truth"]


def test_the_document_has_a_place_for_every_table_and_keeps_its_text():
    before = DOCUMENT.read_text()
    after = put_tables(before, {name: f"| {name} |" for name in NAMES})
    assert all(f"<!-- table {name} -->\n| {name} |\n<!-- end -->" in after for name in NAMES)
    assert after.count("<!-- table ") == before.count("<!-- table ") == len(NAMES)
    text = [line for line in before.splitlines() if not line.startswith("|")]
    assert [line for line in after.splitlines() if not line.startswith("|")] == text
    assert put_tables(after, {name: f"| {name} |" for name in NAMES}) == after


def test_a_table_without_a_place_is_named():
    with pytest.raises(SystemExit, match="no place for table absent"):
        put_tables("text", {"absent": "| a |"})


def test_a_router_goes_by_another_name():
    comparisons = [{"workload": "w", "routers": [{"router": "bundle:a", "x": 1}, {"router": "b", "x": 2}]}]
    assert called(comparisons, "bundle:a", "a") == [
        {"workload": "w", "routers": [{"router": "a", "x": 1}, {"router": "b", "x": 2}]}
    ]
    assert comparisons[0]["routers"][0]["router"] == "bundle:a"


def test_a_step_that_fails_ends_it_with_its_exit_code(tmp_path, capfd):
    with pytest.raises(SystemExit) as error:
        Results(tmp_path, smoke=True, jobs=1).edgeroute("evaluate", "--scenario", "absent.yaml")
    assert error.value.code == 2
    assert "absent.yaml" in capfd.readouterr().err


class Asked(Results):
    """Notes the evaluations that it is to run, and runs nothing."""

    def __init__(self, out):
        super().__init__(out, smoke=False, jobs=1)
        self.evaluations = {}

    def edgeroute(self, *arguments, log=None):
        pass

    def evaluate(self, name, *arguments, routers):
        self.evaluations[name] = ([str(argument) for argument in arguments], list(routers))


def values(arguments, option):
    """What stands between an option and the next one."""
    if option not in arguments:
        return []
    after = arguments[arguments.index(option) + 1 :]
    return after[: next((i for i, argument in enumerate(after) if argument.startswith("--")), len(after))]


@pytest.mark.parametrize("name", ["priced", "myopic"])
def test_a_table_of_clean_worlds_has_the_workloads_that_are_measured_for_it(name, tmp_path):
    results = Asked(tmp_path)
    results.compare()
    asked = [results.evaluations[evaluation] for evaluation in CLEAN]
    measured = {
        f"{arrivals} at {load}"
        for arguments, _ in asked
        for load in values(arguments, "--load")
        for arrivals in values(arguments, "--arrivals") or ["poisson"]
    }
    table = DOCUMENT.read_text().split(f"<!-- table {name} -->")[1].split("<!-- end -->")[0]
    rows = [line.split("|")[1].strip(" †") for line in table.strip().splitlines()[2:]]
    assert set(rows) - {"mean over all", "worst mean"} == measured
    assert len(rows) == len(measured) + 2
    assert all({"impact-greedy", "myopic-impact-greedy", *results.routers} <= set(routers) for _, routers in asked)
