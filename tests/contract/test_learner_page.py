"""The page on adding a learner: its code trains."""

import re
from pathlib import Path

import pytest
import ray

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "add-a-learner.md"


def test_the_learner_of_the_page_learns(capsys):
    ray.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    namespace = {"__name__": "page"}
    exec(code, namespace)
    losses = [float(line) for line in capsys.readouterr().out.split()]
    assert len(losses) == 3
    assert losses[-1] < losses[0]
    namespace["algorithm"].stop()
    ray.shutdown()
