"""What ``edgeroute submit`` makes of its command line, without a cluster."""

import pytest

from cluster.submit import defaults, entrypoint, own_arguments, run
from rllib_envs.errors import InputError

OWN = ([], ["--no-wait"], ["--address", "http://head:8265"], ["--address=http://head:8265", "--no-wait", "--job-id", "train"])
COMMANDS = (["train", "--run-dir", "a b"], ["evaluate", "--routers", "train", "all"], ["sweep"])


@pytest.mark.parametrize("own", OWN)
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("dashes", [[], ["--"]])
def test_the_command_begins_where_our_options_end(own, command, dashes):
    line = [*own, *dashes, *command]
    assert own_arguments(line) == own
    assert list(defaults(line).command) == command


@pytest.mark.parametrize("command", [[], ["report", "runs/mine"]])
def test_what_uses_no_cluster_is_not_sent(command):
    with pytest.raises(InputError, match="train, sweep, evaluate, preflight"):
        run(defaults(command))


class Given:
    address = "local"


def test_the_shell_on_the_head_takes_the_words_as_they_are_and_the_home_as_its_own():
    line = entrypoint(["train", "--scenario", "my $file"], Given, '"$HOME"/edgeroute/runs')
    assert line == "exec python edgeroute.py train --scenario 'my $file' --address auto --run-dir \"$HOME\"/edgeroute/runs"
