"""The page on adding a learner: its code trains."""

import re
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow

PAGE = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "add-a-learner.md"


def test_the_learner_of_the_page_trains(one_ray, capsys):
    code = "\n".join(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
    namespace = {"__name__": "page"}
    exec(code, namespace)
    losses = [float(line) for line in capsys.readouterr().out.split()]
    assert len(losses) == 3
    assert all(0 < loss < 100 for loss in losses)
    algorithm = namespace["algorithm"]
    trained = algorithm.get_module().router.state_dict()
    begun = namespace["config"].build_algo()
    assert any(not torch.equal(value, trained[name]) for name, value in begun.get_module().router.state_dict().items())
    for one in (algorithm, begun):
        one.stop()
