"""The measurement of headroom: resumable, one file a world, the same for a seed, and its report."""

from __future__ import annotations

import csv
import math
from dataclasses import replace

import pytest

from benchmarks import headroom
from rllib_envs.errors import InputError
from tuning.headroom import measure as measure_module
from tuning.headroom.episodes import Improved
from tuning.headroom.measure import WorldHeadroom
from tuning.headroom.report import conclusion, summarise
from tuning.headroom.rollout import Search
from tuning.many_worlds.worlds import worlds

SEARCH = Search(copies=12, batches=1, horizon=5, gap=1.0)
SMALL = headroom.Options(
    cells=2, episodes=2, requests=20, experts=2, tuning_episodes=1, tuning_requests=20, every=10, search=SEARCH, jobs=1
)
FILES = ("headroom.md", "headroom.csv", "headroom.png")


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    folder = tmp_path_factory.mktemp("headroom")
    headroom.main(replace(SMALL, out=folder))
    return folder


def contents(folder):
    return {name: (folder / name).read_bytes() for name in FILES}


def test_each_world_has_a_file_a_row_and_its_episodes(out):
    assert len(list((out / "worlds").iterdir())) == SMALL.cells
    text = (out / "headroom.md").read_text()
    for world in worlds(count=SMALL.cells):
        assert f"| {world.name} " in text
    rows = list(csv.DictReader((out / "headroom.csv").read_text().splitlines()))
    assert len(rows) == SMALL.cells * SMALL.episodes
    for row in rows:
        assert int(row["changed"]) <= int(row["compared"]) <= 2
        assert int(row["decisions"]) == SMALL.requests


def test_an_interrupted_run_goes_on_to_the_same_files(out, tmp_path, monkeypatch, capsys):
    improve, done = measure_module.improve, []

    def interrupted(*arguments, **keywords):
        if done:
            raise KeyboardInterrupt
        done.append(improve(*arguments, **keywords))
        return done[0]

    (tmp_path / "fleets").symlink_to(out / "fleets")
    options = replace(SMALL, out=tmp_path)
    monkeypatch.setattr(measure_module, "improve", interrupted)
    with pytest.raises(KeyboardInterrupt):
        headroom.main(options)
    assert "1 of 2 are finished" in capsys.readouterr().err
    headroom.main(replace(options, only_kept=True))
    assert worlds(count=2)[1].name not in (tmp_path / "headroom.md").read_text()
    monkeypatch.setattr(measure_module, "improve", lambda *a, **k: done.append(improve(*a, **k)) or done[-1])
    headroom.main(options)
    assert len(done) == SMALL.cells
    assert contents(tmp_path) == contents(out)


def test_a_report_of_nothing_is_refused(out, tmp_path):
    (tmp_path / "fleets").symlink_to(out / "fleets")
    with pytest.raises(InputError, match="no world of this measurement is done yet"):
        headroom.main(replace(SMALL, out=tmp_path, only_kept=True, every=3))


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"every": 0}, "every"), ({"search": Search(copies=5)}, r"search.copies"), ({"first_seed": 3}, "first-seed")],
)
def test_an_option_out_of_range_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        headroom.main(replace(SMALL, out=tmp_path, **changes))


def result(gains, errors):
    episodes = [
        Improved(
            base=0.5, improved=0.5 + g, decisions=100, compared=50, changed=10, gain=g, gain_error=e, futures=64
        )
        for g, e in zip(gains, errors, strict=True)
    ]  # fmt: skip
    parameters = {"price": 0.0, "shrink": 1.0, "tau": 0.1}
    return WorldHeadroom(world=worlds(count=1)[0], experts=2, parameters=parameters, episodes=episodes)


def test_errors_of_episodes_add_up_and_the_conclusion_counts_worlds():
    row = summarise(result([0.01, 0.03], [0.003, 0.004]))
    assert row.expected.mean == pytest.approx(0.02)
    assert row.expected.half_width == pytest.approx(1.96 * math.hypot(0.003, 0.004) / 2)
    assert row.realised.mean == pytest.approx(0.02)
    assert (row.compared, row.changed) == (0.5, 0.1)
    told = conclusion([result([0.006], [0.004]), result([0.02], [0.001]), result([0.0], [0.001])])
    assert "2 of 3 worlds, 1 of them" in told
