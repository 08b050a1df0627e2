"""``edgeroute report``: from folders of runs to a page that a browser shows."""

import base64
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

import edgeroute
from tuning.metrics.statistics import Interval
from tuning.output.tables import show_interval
from tuning.reports.document import Document, Paragraph, Section, Table, to_html, to_markdown
from tuning.reports.run_folders import arms, read_run

pytestmark = pytest.mark.slow

HOSTILE = "<script>alert('price')</script> & <b>more</b> | all"
PICTURES = ("importance.png", "parallel.png", "pareto.png")
CHROMIUM = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)

PROBE = """
<script>
window.addEventListener("load", () => {
  const isOfTrials = table => table.tHead.rows[0].cells[0].textContent === "trial" && table.tBodies[0].rows.length > 2;
  const table = [...document.querySelectorAll("table")].find(isOfTrials);
  const column = [...table.tHead.rows[0].cells].findIndex(cell => cell.textContent === "QoS");
  const sorted = () => [...table.tBodies[0].rows].map(row => row.cells[column].textContent);
  table.tHead.rows[0].cells[column].click();
  const descending = sorted();
  table.tHead.rows[0].cells[column].click();
  const found = {
    widths: [...document.images].map(image => image.naturalWidth), descending, ascending: sorted(), errors: window.pageErrors,
    targets: [...document.querySelectorAll("nav a")].map(link => document.querySelector(link.getAttribute("href")) !== null),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  };
  const answer = document.createElement("pre");
  answer.id = "answer";
  answer.textContent = JSON.stringify(found);
  document.body.append(answer);
});
</script>
"""


def command(*arguments, code=0):
    assert edgeroute.main([str(argument) for argument in arguments]) == code


@pytest.fixture(scope="module")
def runs(tmp_path_factory, one_ray):
    """Two learner seeds of one arm, an evaluation of both, a sweep."""
    folder = tmp_path_factory.mktemp("runs")
    trained = [folder / f"train-{seed}" for seed in (0, 1)]
    for seed, run in enumerate(trained):
        command("train", "--smoke", "--fleets", "--no-variation", "--seed", seed, "--run-dir", run)
    evaluation = folder / "evaluation"
    routers = ["best", *(f"checkpoint:{run}" for run in trained)]
    command("evaluate", "--smoke", "--load", "light", "heavy", "--routers", *routers, "--jobs", 1, "--out", evaluation)
    sweep = folder / "sweep"
    sweep.mkdir()
    (sweep / "sweep.json").write_text(json.dumps(sweep_contents()))
    for name in PICTURES:
        shutil.copy(trained[0] / "training.png", sweep / name)
    return [*trained, evaluation, sweep]


def sweep_contents():
    trials = [
        {
            "id": f"trial-{i}",
            "settings": {"lr": 10.0**-i, "encoder": "han"},
            "status": "finished" if i else "failed",
            "iterations": 5,
            "steps": 320 * i,
            "seconds": 2.5,
            "qos": 0.6 + (7 * i % 12) / 100 if i else None,
            "late_share": 0.01,
            "gpu_s_per_request": None,
        }
        for i in range(12)
    ]
    ranking = [
        {"trial": f"trial-{i}", "qos": {"mean": 0.7, "half_width": 0.01}, "difference": {"mean": 0.002, "half_width": None}}
        for i in (5, 3)
    ]
    return {
        "format": 1,
        "name": HOSTILE,
        "space": {"lr": "log-uniform from 1e-12 to 1"},
        "scheduler": "asha",
        "search": "random",
        "trials": trials,
        "ranking": ranking,
        "ranking_seeds": 6,
        "reference": "trial-3",
        "best": "trial-5",
    }


@pytest.fixture(scope="module")
def report(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    command("report", *runs, "--out", out)
    return out


class Page(HTMLParser):
    """What a page has."""

    def __init__(self, text):
        super().__init__()
        self.images, self.headings, self.text, self.loaded = [], [], [], []
        self._heading = False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.loaded += [values[name] for name in ("src", "srcset", "data", "action") if name in values]
        self.loaded += [values["href"]] if tag == "link" else []
        if tag == "img":
            self.images.append(values["src"])
        self._heading = tag == "h2"

    def handle_data(self, data):
        self.text.append(data)
        if self._heading:
            self.headings.append(data)
            self._heading = False

    @property
    def words(self):
        return " ".join("".join(self.text).split())


@pytest.fixture(scope="module")
def page(report):
    return Page((report / "report.html").read_text())


def test_every_run_is_named(runs, report, page):
    markdown = (report / "report.md").read_text()
    for run in runs:
        assert str(run) in page.words
        assert str(run) in markdown


def test_all_sections_are_there(runs, report, page):
    assert page.headings == [
        "Runs",
        "How to read the intervals",
        f"Evaluation: {runs[2]}",
        "Training: edge6, load mixed",
        f"Sweep: {runs[3]}",
        "A minute of traffic",
        "Calibration of the impact estimator",
    ]
    assert re.findall(r"^## (.*)$", (report / "report.md").read_text(), re.MULTILINE) == page.headings


def test_every_image_is_a_picture_and_the_same_as_the_file_beside(report, page):
    files = re.findall(r"!\[[^]]*\]\(([^)]*)\)", (report / "report.md").read_text())
    assert len(files) == len(page.images) == len(set(files))
    assert set(files) == {path.name for path in report.glob("*.png")}
    assert {"timeline.png", "routing-shares.png", "calibration.png", "learning-1.png"} <= set(files)
    for file, source in zip(files, page.images, strict=True):
        content = base64.b64decode(source.removeprefix("data:image/png;base64,"), validate=True)
        assert content == (report / file).read_bytes()
        height, width, _ = matplotlib.image.imread(BytesIO(content)).shape
        assert min(height, width) > 200


def test_the_page_needs_no_network(report, page):
    assert all(source.startswith("data:") for source in page.loaded)
    text = re.sub(r"data:image/png;base64,[\w+/=]*", "", (report / "report.html").read_text())
    assert not re.search(r"https?://|@import|url\(", text)


def test_figures_are_those_of_the_evaluation_in_both_files(runs, report, page):
    markdown = " ".join((report / "report.md").read_text().split())
    for workload in json.loads((runs[2] / "results.json").read_text())["comparisons"]:
        for router in workload["routers"]:
            assert router["router"] in page.words
            for name in ("qos", "violation_rate", "qos_per_gpu_s"):
                metric = router["metrics"][name]
                shown = show_interval(name, Interval(mean=metric["mean"], half_width=metric["half_width"]))
                assert shown in markdown
                assert shown in page.words


def test_seeds_and_the_kind_of_interval_are_stated(page):
    assert "2 seeds (1,000,000 to 1,000,001)" in page.words
    assert "Student's t" in page.words
    assert "Bonferroni" in page.words
    assert "bootstrap" in page.words
    assert "Of the 12 differences to a baseline" in page.words  # seven routers on two workloads


def test_learner_seeds_are_summed_up_where_they_were_trained_and_where_they_were_evaluated(runs, report):
    markdown = (report / "report.md").read_text()
    tables = re.findall(r"\*\*Arms over learner seeds.*?\n\n(\|.*?)\n\n", markdown, re.DOTALL)
    assert len(tables) == 2
    results = json.loads((runs[2] / "results.json").read_text())["comparisons"]
    values = [
        router["metrics"]["qos"]["mean"]
        for workload in results
        for router in workload["routers"]
        if router["router"].startswith("checkpoint:")
    ]
    middle = np.mean(sorted(values)[1:-1])  # two seeds on two workloads
    assert f"| avl | {2:>13} | {middle:.4f} [" in tables[0]


def test_what_runs_hold_is_text_and_no_markup(report, page):
    html = (report / "report.html").read_text()
    assert "alert('price')" not in html
    assert "<b>" not in html
    assert HOSTILE in page.words
    for line in (report / "report.md").read_text().splitlines():
        if line.startswith("|") and "all" in line and "price" in line:
            assert "\\| all" in line


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium")
@pytest.mark.parametrize("width", [1300, 420])
def test_a_browser_shows_the_page(report, tmp_path, width):
    html = (report / "report.html").read_text()
    watch = "<script>window.pageErrors = []; window.addEventListener('error', e => pageErrors.push(e.message), true);</script>"
    (tmp_path / "page.html").write_text(html.replace("<head>", f"<head>{watch}").replace("</body>", f"{PROBE}</body>"))
    arguments = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--window-size={width},900",
        f"--user-data-dir={tmp_path / 'profile'}",
    ]
    logging = ["--enable-logging=stderr", "--v=0", "--dump-dom", (tmp_path / "page.html").as_uri()]
    shown = subprocess.run([CHROMIUM, *arguments, *logging], capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in shown.stderr
    answer = re.search(r'<pre id="answer">(.*?)</pre>', shown.stdout)
    assert answer is not None
    found = json.loads(answer[1])
    assert found["errors"] == []
    assert len(found["widths"]) == html.count("<img")
    assert min(found["widths"]) > 500
    assert found["targets"] == [True] * 7
    assert found["overflow"] <= 0  # wide tables scroll by themselves
    known = sorted(f"{trial['qos']:.4f}" for trial in sweep_contents()["trials"] if trial["qos"] is not None)
    assert found["ascending"] == [*known, "–"]
    assert found["descending"] == [*known[::-1], "–"]


def test_runs_that_hold_little_are_reported_too(runs, tmp_path):
    """A run that has just begun, an evaluation of one workload by an earlier version, a sweep without a ranking."""
    begun = tmp_path / "begun"
    begun.mkdir()
    shutil.copy(runs[0] / "config.yaml", begun)
    old = tmp_path / "old"
    old.mkdir()
    results = json.loads((runs[2] / "results.json").read_text())
    results["comparisons"], results["summaries"] = results["comparisons"][:1], []
    for router in results["comparisons"][0]["routers"]:
        del router["ttft_quantiles_s"]
    (old / "results.json").write_text(json.dumps(results))
    sweep = tmp_path / "sweep"
    sweep.mkdir()
    (sweep / "sweep.json").write_text(json.dumps(sweep_contents() | {"ranking": [], "best": None, "reference": None}))
    command("report", begun, old, sweep, "--minute", 0, "--load", "light", "--out", tmp_path / "out")
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "no iteration yet" in markdown
    assert "The router that comes with edgeroute on edge6" in markdown
    assert not (tmp_path / "out" / "learning-1.png").exists()
    assert not list((tmp_path / "out").glob("evaluation-1-load*.png"))


@pytest.mark.parametrize("content", [None, {}, {"notes.txt": "mine"}])
def test_a_folder_that_is_no_run_is_named_with_what_is_expected(tmp_path, capsys, content):
    folder = tmp_path / "mine"
    if content is not None:
        folder.mkdir()
        for name, text in content.items():
            (folder / name).write_text(text)
    command("report", folder, "--out", tmp_path / "out", code=2)
    message = capsys.readouterr().err
    assert str(folder) in message
    for name in ("config.yaml", "results.json", "sweep.json"):
        assert name in message
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("results.json", '{"format": 1}'),
        ("results.json", '{"format": 7}'),
        ("results.json", "{"),
        ("sweep.json", '{"format": 1, "name": "x", "space": []}'),
        ("config.yaml", "options: [1]"),
        ("config.yaml", "- ]"),
    ],
)
def test_a_damaged_file_is_named(tmp_path, capsys, name, text):
    (tmp_path / name).write_text(text)
    command("report", tmp_path, "--out", tmp_path / "out", code=2)
    assert str(tmp_path / name) in capsys.readouterr().err


def test_at_least_one_run_is_needed(tmp_path, capsys):
    command("report", "--out", tmp_path, code=2)
    assert "none given" in capsys.readouterr().err


def test_runs_are_of_one_arm_if_they_differ_in_the_seed_alone(runs, tmp_path):
    other = Path(shutil.copytree(runs[1], tmp_path / "other"))
    contents = yaml.safe_load((other / "config.yaml").read_text())
    contents["options"]["temperature"] = 0.5
    (other / "config.yaml").write_text(yaml.safe_dump(contents))
    groups = arms([read_run(path) for path in (runs[1], other, runs[0])])
    assert [[run.path for run in group] for group in groups] == [[runs[0], runs[1]], [other]]


@given(st.text(min_size=1, max_size=30))
def test_any_text_is_shown_as_it_is(tmp_path_factory, text):
    shown = " ".join(text.split())
    table = Table(caption="c", header=["a", "b"], rows=[[text, "1"]])
    document = Document(title="t", sections=[Section(title=text, blocks=[Paragraph(text=text), table])])
    if "\r" not in text and "\0" not in text:  # which no page can hold
        assert Page(to_html(document, Path())).words.count(shown) >= 3
    assert to_markdown(document).startswith("# t\n\n## ")
