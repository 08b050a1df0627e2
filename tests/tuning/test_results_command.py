"""The tables of docs/results.md: found by their marks, and nothing else changed."""

import pytest

from benchmarks.results import DOCUMENT, Results, called, put_tables

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
