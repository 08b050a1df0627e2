"""One name for one thing: a public class has its name alone in the project, a command's options aside."""

import re
from collections import defaultdict
from pathlib import Path

import edgeroute

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("rllib_envs", "models", "tuning", "cluster", "gateway")
CLASS = re.compile(r"^ *class ([A-Za-z]\w*)[(:\[]", re.MULTILINE)
OF_COMMANDS = "Options"  # the command line asks the module of a command for a class of this name


def shared_names(root):
    """Public classes that have their name in several modules, and those modules; of commands' options those that are none."""
    homes = defaultdict(list)
    for path in sorted(x for package in PACKAGES for x in (root / package).rglob("*.py")):
        module = ".".join(path.relative_to(root).with_suffix("").parts)
        for name in CLASS.findall(path.read_text(encoding="utf-8")):
            homes[name].append(module)
    commands = {module for module, _ in edgeroute.COMMANDS.values()}
    homes[OF_COMMANDS] = [module for module in homes[OF_COMMANDS] if module not in commands]
    return {name: modules for name, modules in homes.items() if len(modules) > (name != OF_COMMANDS)}


def test_no_two_public_classes_share_a_name():
    assert shared_names(ROOT) == {}


def test_a_second_class_of_a_name_is_found(tmp_path):
    planted = {
        "models/router.py": "class Router: ...\nclass _Part: ...\n",
        "models/paper/router.py": "class _Part: ...\n",
        "tuning/simulate.py": "class Options: ...\n",
        "tuning/evaluate.py": "class Options: ...\n",
        "tuning/sweeps/options.py": "class Options: ...\n",
        "cluster/node.py": "def build():\n    class Router: ...\n",
    }
    for name, text in planted.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert shared_names(tmp_path) == {"Router": ["cluster.node", "models.router"], "Options": ["tuning.sweeps.options"]}
