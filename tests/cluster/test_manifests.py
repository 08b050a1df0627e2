"""The files in ``cluster/`` that other programs read: they say what is true, in words that those programs know."""

import configparser
import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import jsonschema
import pytest
import tyro
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

import edgeroute
from cluster.submit import own_arguments

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
PINS = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#"))
LAUNCHED = ("ray-cluster.yaml", "ray-cluster-aws.yaml")
SCRIPTS = [CLUSTER / "setup-node.sh", CLUSTER / "slurm.sbatch"]
COMMANDS = {"ray-cluster.yaml": 2, "ray-cluster-aws.yaml": 2, "kuberay-rayjob.yaml": 1, "slurm.sbatch": 4, "skypilot.yaml": 5}
"""File -> how many commands of ours there are in it."""


def read(name):
    return (CLUSTER / name).read_text(encoding="utf-8")


def shell(value):
    """Every text in a YAML file; of other files all of it."""
    if isinstance(value, dict):
        return "\n".join(shell(part) for part in value.values())
    if isinstance(value, list):
        return "\n".join(shell(part) for part in value)
    return str(value)


def commands(text):
    """The commands of ours in a shell text, with 7 for all that the shell fills in."""
    text = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE).replace("\\\n", " ")
    for filled_in in (r"\$\(\(.*?\)\)", r"\\?\$\([^)]*\)", r"\$\{?\w+\}?"):
        text = re.sub(filled_in, "7", text)
    parts = re.split(r"[;&|\n]", text.replace('"', ""))
    return [shlex.split(found[1]) for part in parts if (found := re.search(r"(?:^|\s)edgeroute (\S.*)", part))]


def parsed(arguments):
    name, *rest = arguments
    module = importlib.import_module(edgeroute.COMMANDS[name][0])
    default = {"default": module.defaults(rest)} if hasattr(module, "defaults") else {}
    return tyro.cli(module.Options, args=rest, **default)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_the_options_it_is_given(name):
    found = commands(shell(list(yaml.safe_load_all(read(name)))) if name.endswith(".yaml") else read(name))
    assert len(found) == COMMANDS[name], found
    for arguments in found:
        parsed(arguments)  # or SystemExit


def test_the_documentation_gives_commands_that_there_are():
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    lines = "\n".join(re.findall(r"^    (.*?)(?:  +# .*)?$", text, re.MULTILINE)).replace("'", "")
    found = commands(re.sub(r"edgeroute\.py( --)?", "; edgeroute", lines))
    assert {arguments[0] for arguments in found} == {"train", "sweep", "node", "preflight", "submit", "job"}
    for arguments in found:
        if arguments[0] == "submit":
            own = own_arguments(arguments[1:])
            parsed(["submit", *own])
            arguments = arguments[1 + len(own) :]
        parsed(arguments)


def test_a_misspelt_option_would_be_noticed(capsys):
    (arguments,) = commands('FOO=1 edgeroute node start --heda --node-ip "$(hostname -I)" && echo')
    with pytest.raises(SystemExit):
        parsed(arguments)
    assert "--heda" in capsys.readouterr().err


@pytest.mark.parametrize("name", [*COMMANDS, "setup-node.sh", "Containerfile", "runtime_env.yaml"])
def test_nothing_ends_the_ray_of_others_or_holds_a_secret(name):
    text = read(name)
    assert not re.search(r"\bray (stop|down)\b(?! deletes)", text)
    assert not re.search(r"(TOKEN|KEY|SECRET)\w*\s*[=:]\s*[\w\"'-]{8,}", text)


@pytest.mark.parametrize("name", LAUNCHED)
def test_ray_accepts_a_launched_cluster(name):
    config = prepare_config(yaml.safe_load(read(name)))
    validate_config(config)
    types = config["available_node_types"]
    # What Ray does not ask.
    assert all(0 <= kind["min_workers"] <= kind["max_workers"] <= config["max_workers"] for kind in types.values())
    assert sum(kind["min_workers"] for kind in types.values()) <= config["max_workers"]
    assert config["max_workers"] > 0
    (start,) = config["head_start_ray_commands"]
    head = parsed(commands(start)[0])
    assert (head.head, head.num_cpus, head.num_gpus) == (True, 0, 0)
    assert head.dashboard_host == "127.0.0.1"
    assert str(head.autoscaling_config) == "~/ray_bootstrap_config.yaml"
    (start,) = config["worker_start_ray_commands"]
    assert parsed(commands(start)[0]).address == f"7:{head.port}"


@pytest.mark.parametrize("name", LAUNCHED)
def test_a_launched_cluster_has_the_whole_project(name):
    mounts = yaml.safe_load(read(name))["file_mounts"]
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    packages = {package.removesuffix(".*") for package in setup["options.packages.find"]["include"].split()}
    assert packages | {"edgeroute.py", "setup.cfg", "pyproject.toml", "constraints.txt"} <= set(mounts.values())
    for there, here in mounts.items():
        assert there == (f"~/edgeroute/{here}" if "~" not in here else here)
        assert "~" in here or (ROOT / here).exists()


def test_both_launched_clusters_get_the_same():
    mine, cloud = (yaml.safe_load(read(name)) for name in LAUNCHED)
    assert mine["file_mounts"] == cloud["file_mounts"]


@pytest.mark.cluster
def test_an_upload_is_small_and_runs(tmp_path):
    """In a tree with all that gathers in one."""
    tree, upload = tmp_path / "tree", tmp_path / "upload"
    shutil.copytree(ROOT, tree, ignore=shutil.ignore_patterns(".*", "runs", "wandb", "__pycache__"))
    for folder in (".venv/lib", ".git/objects", "runs/mine", "wandb/run", "docs/figures", "dist"):
        (tree / folder).mkdir(parents=True, exist_ok=True)
        (tree / folder / "large.bin").write_bytes(os.urandom(6 << 20))
    environment = yaml.safe_load(read("runtime_env.yaml"))
    package = tmp_path / "upload.zip"
    create_package(str(tree), package, include_gitignore=False, excludes=environment["excludes"])
    assert package.stat().st_size < 5 << 20
    with zipfile.ZipFile(package) as archive:
        archive.extractall(upload)
    assert not list(upload.rglob("large.bin"))
    command = [sys.executable, "edgeroute.py", "sweep", "--help"]
    subprocess.run(command, cwd=upload, stdout=subprocess.DEVNULL, check=True)
    assert (upload / "tuning" / "presets" / "spaces" / "reward-weights.yaml").is_file()


def test_the_environment_of_a_job_is_text():
    variables = yaml.safe_load(read("runtime_env.yaml"))["env_vars"]
    assert variables["OMP_NUM_THREADS"] == "1"
    assert all(isinstance(value, str) for value in variables.values())


# The fields used here of KubeRay's API reference, and Kubernetes' own as far as they are used: a word that is none of them is an
# error here, where the operator would leave it out silently.
def exactly(required=(), **properties):
    return {"type": "object", "properties": properties, "required": list(required), "additionalProperties": False}


TEXT, COUNT = {"type": "string"}, {"type": "integer", "minimum": 0}
NAME = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 47}  # longer ones are cut in names of pods
QUANTITIES = exactly(cpu={"type": "string", "pattern": r"^\d+m?$"}, memory={"type": "string", "pattern": r"^\d+[KMG]i$"})
CONTAINER = exactly(
    ("name", "image", "resources", "securityContext"),
    name=NAME,
    image=TEXT,
    securityContext=exactly(
        ("allowPrivilegeEscalation", "capabilities"),
        allowPrivilegeEscalation={"const": False},
        capabilities=exactly(("drop",), drop={"const": ["ALL"]}),
    ),
    resources=exactly(("requests", "limits"), requests=QUANTITIES, limits=QUANTITIES),
    ports={"type": "array", "items": exactly(("containerPort", "name"), containerPort=COUNT, name=NAME)},
    volumeMounts={"type": "array", "items": exactly(("name", "mountPath"), name=NAME, mountPath=TEXT)},
)
POD = exactly(
    ("spec",),
    spec=exactly(
        ("containers", "securityContext", "automountServiceAccountToken"),
        automountServiceAccountToken={"const": False},
        restartPolicy={"enum": ["Never", "OnFailure"]},
        securityContext=exactly(
            ("runAsNonRoot", "runAsUser", "runAsGroup", "seccompProfile"),
            runAsNonRoot={"const": True},
            runAsUser={"type": "integer", "minimum": 1},
            runAsGroup={"type": "integer", "minimum": 1},
            fsGroup={"type": "integer", "minimum": 1},
            seccompProfile=exactly(("type",), type={"const": "RuntimeDefault"}),
        ),
        containers={"type": "array", "items": CONTAINER, "minItems": 1, "maxItems": 1},
        volumes={"type": "array", "items": exactly(name=NAME, persistentVolumeClaim=exactly(("claimName",), claimName=NAME))},
    ),
)
PARAMETERS = {"type": "object", "additionalProperties": TEXT}  # of ray start: text, numbers too
GROUP = exactly(
    ("groupName", "rayStartParams", "template"),
    groupName=NAME, replicas=COUNT, minReplicas=COUNT, maxReplicas=COUNT, rayStartParams=PARAMETERS, template=POD,
)  # fmt: skip
RAY_JOB = exactly(
    ("apiVersion", "kind", "metadata", "spec"),
    apiVersion={"const": "ray.io/v1"},
    kind={"const": "RayJob"},
    metadata=exactly(("name",), name=NAME),
    spec=exactly(
        ("entrypoint", "rayClusterSpec", "submitterPodTemplate"),
        entrypoint=TEXT,
        submitterPodTemplate=POD,
        backoffLimit=COUNT,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=COUNT,
        rayClusterSpec=exactly(
            ("rayVersion", "headGroupSpec"),
            rayVersion=TEXT,
            authOptions=exactly(("mode",), mode={"enum": ["token", "disabled"]}),
            headGroupSpec=exactly(("rayStartParams", "template"), rayStartParams=PARAMETERS, template=POD),
            workerGroupSpecs={"type": "array", "items": GROUP},
        ),
    ),
)


def test_the_job_on_kubernetes_is_one_that_kuberay_knows():
    claim, job = yaml.safe_load_all(read("kuberay-rayjob.yaml"))
    jsonschema.validate(job, RAY_JOB)
    spec = job["spec"]["rayClusterSpec"]
    head, (workers,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert spec["rayVersion"] == PINS["ray"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]
    pods = [head["template"]["spec"], workers["template"]["spec"], job["spec"]["submitterPodTemplate"]["spec"]]
    images = {pod["containers"][0]["image"] for pod in pods}
    assert images == {f"edgeroute:{edgeroute.__version__}"}
    assert images == set(re.findall(r"-t (\S+)", read("Containerfile")))
    for pod in pods[:2]:
        assert [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"]] == [claim["metadata"]["name"]]
    for pod in pods:
        assert pod["securityContext"]["runAsUser"] == int(re.search(r"--uid (\d+)", read("Containerfile"))[1])


LOOSENED = {
    "privileges": lambda pod, container: container["securityContext"].update(allowPrivilegeEscalation=True),
    "privileged": lambda pod, container: container["securityContext"].update(privileged=True),
    "capabilities": lambda pod, container: container["securityContext"]["capabilities"].update(add=["NET_ADMIN"]),
    "not dropped": lambda pod, container: container["securityContext"]["capabilities"].update(drop=["KILL"]),
    "none said": lambda pod, container: container.pop("securityContext"),
    "no seccomp": lambda pod, container: pod["securityContext"].pop("seccompProfile"),
    "unconfined": lambda pod, container: pod["securityContext"]["seccompProfile"].update(type="Unconfined"),
    "root": lambda pod, container: pod["securityContext"].update(runAsUser=0),
    "roots group": lambda pod, container: pod["securityContext"].update(runAsGroup=0),
    "perhaps root": lambda pod, container: pod["securityContext"].pop("runAsNonRoot"),
    "token": lambda pod, container: pod.pop("automountServiceAccountToken"),
    "host network": lambda pod, container: pod.update(hostNetwork=True),
    "host folder": lambda pod, container: pod.update(volumes=[{"name": "host", "hostPath": {"path": "/"}}]),
}


@pytest.mark.parametrize("loosen", LOOSENED.values(), ids=LOOSENED)
@pytest.mark.parametrize("which", ["submitter", "head", "workers"])
def test_a_pod_that_may_more_than_it_needs_would_be_noticed(which, loosen):
    _, job = json.loads(json.dumps(list(yaml.safe_load_all(read("kuberay-rayjob.yaml")))))  # what is an alias becomes a copy
    jsonschema.validate(job, RAY_JOB)
    cluster = job["spec"]["rayClusterSpec"]
    groups = {"head": cluster["headGroupSpec"]["template"], "workers": cluster["workerGroupSpecs"][0]["template"]}
    pod = (groups | {"submitter": job["spec"]["submitterPodTemplate"]})[which]["spec"]
    loosen(pod, pod["containers"][0])
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(job, RAY_JOB)


def digest_check():
    """The shell of the image's first step, which looks at the name of its base."""
    (step,) = re.findall(r"^RUN (case .*? esac)", read("Containerfile").replace("\\\n", " "), re.MULTILINE)
    return step


@pytest.mark.parametrize(
    ("base", "taken"),
    [
        (f"docker.io/library/python@sha256:{'0a' * 32}", True),
        (f"docker.io/library/python:3.11.13-slim-bookworm@sha256:{'0a' * 32}", True),
        ("docker.io/library/python:3.11.13-slim-bookworm", False),
        (f"docker.io/library/python@sha256:{'0a' * 31}", False),
        ("docker.io/library/python@sha256:...", False),
        ("", False),
    ],
)
def test_an_image_is_built_on_a_base_that_a_digest_names(base, taken):
    instructions = read("Containerfile")
    (base_of_all,) = re.findall(r"^FROM (.*)$", instructions, re.MULTILINE)
    assert base_of_all == "${BASE_IMAGE}"
    assert not re.search(r"^ARG BASE_IMAGE=", instructions, re.MULTILINE), "a default is a tag, or a digest that nobody looked at"
    done = subprocess.run(["sh", "-c", digest_check()], env={"BASE_IMAGE": base}, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == taken
    assert taken or "NAME@sha256:" in done.stderr


@pytest.mark.parametrize("name", ["kuberay-rayjob.yaml", "slurm.sbatch", "skypilot.yaml"])
def test_what_is_tried_again_goes_on_where_it_was(name):
    text = shell(list(yaml.safe_load_all(read(name)))) if name.endswith(".yaml") else read(name)
    (sweep,) = [arguments for arguments in commands(text) if arguments[0] == "sweep"]
    options = parsed(sweep)
    assert options.auto_resume
    assert "7" not in str(options.run_dir), "the same folder every time"
    if name == "kuberay-rayjob.yaml":
        job = list(yaml.safe_load_all(text := read(name)))[1]["spec"]
        assert job["backoffLimit"] > 0
        assert job["shutdownAfterJobFinishes"]
        assert "mountPath: /mnt/runs" in text
        assert str(options.run_dir).startswith("/mnt/runs/")


def test_the_words_of_the_sky_file_are_known():
    task = yaml.safe_load(read("skypilot.yaml"))
    assert set(task) <= {"name", "num_nodes", "workdir", "resources", "secrets", "file_mounts", "setup", "run"}
    assert set(task["resources"]) <= {"cpus", "memory", "use_spot", "accelerators", "infra"}
    assert set(task["secrets"].values()) == {None}
    for part in ("setup", "run"):
        subprocess.run(["bash", "-n"], input=task[part], text=True, check=True)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_scripts_are_sound(script):
    subprocess.run(["bash", "-n", script], check=True)
    if shutil.which("shellcheck") is None:
        pytest.skip("shellcheck: not found (Debian, Ubuntu: apt-get install shellcheck)")
    done = subprocess.run(["shellcheck", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_image_has_all_that_a_run_reads(tmp_path):
    """Its last step, on what its context lets through: the wheel has the data of the packages, and nothing else is copied."""
    instructions = read("Containerfile")
    sources = [source for line in re.findall(r"^COPY (.*) \S+$", instructions, re.MULTILINE) for source in line.split()]
    ignore = (ROOT / ".containerignore").read_text()
    assert (ROOT / ".dockerignore").read_text() == ignore
    assert sorted(re.findall(r"^!(\S+)$", ignore, re.MULTILINE)) == sorted(sources)
    assert "-c constraints.txt" in instructions
    assert re.findall(r"^USER (\S+)$", instructions, re.MULTILINE) == ["edgeroute"]
    context = tmp_path / "context"
    context.mkdir()
    for source in sources:
        copy = shutil.copytree if (ROOT / source).is_dir() else shutil.copy
        copy(ROOT / source, context / source)
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--wheel-dir", tmp_path, context], check=True)
    (wheel,) = tmp_path.glob("edgeroute-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    for pattern in ("rllib_envs/scenarios/*.yaml", "tuning/presets/**/*.*", "tuning/templates/*.j2"):
        assert {str(file.relative_to(ROOT)) for file in ROOT.glob(pattern)} <= set(names)
