"""The files of ``gateway/deploy`` and the settings that pages show: they say what is true of the gateway."""

from __future__ import annotations

import configparser
import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

import gateway.serve
from gateway.config import Timeouts, load_config
from gateway.server.metrics import Metrics
from rllib_envs.yaml_files import parse_yaml
from tuning.specs.command_line import parse_arguments

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "gateway" / "deploy"


def read(name):
    return (DEPLOY / name).read_text(encoding="utf-8")


def manifests():
    return {part["kind"]: part for part in yaml.safe_load_all(read("kubernetes.yaml"))}


def pod():
    return manifests()["Deployment"]["spec"]["template"]["spec"]


def settings_on_pages():
    pages = [ROOT / "docs" / "serving.md", ROOT / "docs" / "how-to" / "put-it-before-your-vllm-servers.md"]
    found = [block for page in pages for block in re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)]
    return [*found, manifests()["ConfigMap"]["data"]["gateway.yaml"]]


@pytest.mark.parametrize("text", settings_on_pages())
def test_settings_that_are_shown_are_read(tmp_path, text):
    (tmp_path / "gateway.yaml").write_text(text, encoding="utf-8")
    loaded = load_config(tmp_path / "gateway.yaml")
    assert len(loaded.config.experts) == 2
    assert parse_yaml(text, "page")["policy"] == loaded.config.policy


def test_fields_and_defaults_of_the_page_are_those_of_the_settings():
    page = (ROOT / "docs" / "serving.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| `timeouts`"))
    told = dict(re.findall(r"`(\w+)` ([\d.]+)", row))
    assert {name: float(value) for name, value in told.items()} == {
        name: getattr(Timeouts(), name) for name in Timeouts.__dataclass_fields__
    }


def test_the_commands_are_ones_that_the_command_takes():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read_string(read("edgeroute.service"))
    commands = [
        shlex.split(unit["Service"]["ExecStart"]),
        json.loads(re.search(r"^CMD (.*)$", read("Containerfile"), re.MULTILINE)[1]),
    ]
    for program, name, *arguments in commands:
        assert Path(program).name == "edgeroute"
        assert name == "serve"
        assert isinstance(parse_arguments(gateway.serve, "edgeroute serve", arguments), gateway.serve.Options)
    assert float(unit["Service"]["TimeoutStopSec"]) > Timeouts().drain_s


def test_a_pod_may_do_little_and_has_time_to_drain():
    (container,) = pod()["containers"]
    assert pod()["automountServiceAccountToken"] is False
    assert pod()["securityContext"]["runAsNonRoot"] is True
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert pod()["terminationGracePeriodSeconds"] > Timeouts().drain_s + 5
    assert container["readinessProbe"]["httpGet"]["path"] == "/ready"


def names_of_metrics():
    page = Metrics(lambda: None, None)
    families = list(page._registry._names_to_collectors)
    at_a_scrape = {"edgeroute_inflight", "edgeroute_expert_ready", "edgeroute_breaker_state"}
    sometimes = {"edgeroute_log_lines_total", "edgeroute_log_lost_total", "edgeroute_worker_restarts_total"}
    return {*families, *at_a_scrape, *sometimes}


def test_the_dashboard_and_the_page_know_the_metrics():
    known = names_of_metrics()
    asked = set(re.findall(r"\bedgeroute_\w+", read("grafana.json")))
    assert asked
    assert asked <= known
    page = (ROOT / "docs" / "serving.md").read_text()
    assert set(re.findall(r"`(edgeroute_\w+)`", page)) <= known


def test_the_image_has_the_packages_of_the_wheel():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    shipped = {name.removesuffix(".*") for name in config["options.packages.find"]["include"].split()}
    assert set(re.findall(r"^COPY (\w+) \1$", read("Containerfile"), re.MULTILINE)) == shipped
