"""The help of every command: what a first user needs by default, everything with --help-all."""

import dataclasses
import importlib
import re
import shlex
import types
import typing

import pytest
import tyro

import edgeroute
from tests.contract.test_prose import sentences, words
from tuning.specs.command_line import parse_arguments

LONGEST_PAGE = 45  # lines at 100 columns: what a full-height terminal shows without scrolling
MOST_WORDS = 20
MODULES = {name: module for name, (module, _) in edgeroute.COMMANDS.items()}
LONG = [name for name, module in MODULES.items() if hasattr(importlib.import_module(module), "HELP")]


@pytest.fixture
def page(capsys, monkeypatch):
    """The help of a command, as printed."""
    monkeypatch.setenv("COLUMNS", "100")

    def show(module, *arguments, name="command"):
        with pytest.raises(SystemExit) as stop:
            parse_arguments(module, f"edgeroute {name}", arguments)
        assert stop.value.code == 0
        return capsys.readouterr().out

    return show


def module_of(name):
    return importlib.import_module(MODULES[name])


def shown(text):
    """The names of the options in a page, in order; each with its negation beside it."""
    rows = re.findall(r"^  (--?[^ ].*)$", text, re.MULTILINE)
    return [re.match(r"(--[\w.-]+)", row)[1] for row in rows]


def leaves(kind):
    """The names of the options of a record, without the records they are in."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        if "Suppress" in repr(hint) or "Positional" in repr(hint):
            continue
        inner = typing.get_args(hint)[0] if typing.get_origin(hint) is typing.Annotated else hint
        if dataclasses.is_dataclass(inner):
            flat = typing.get_origin(hint) is typing.Annotated
            yield from (name if flat else f"{field.name}.{name}" for name in leaves(inner))
        else:
            yield field.name


@pytest.mark.parametrize("name", MODULES)
def test_each_option_is_shown_once_in_all_of_the_help(page, name):
    found = shown(page(module_of(name), "--help-all", name=name))
    assert sorted(found) == sorted(f"--{option.replace('_', '-')}" for option in leaves(module_of(name).Options))


@pytest.mark.parametrize("name", MODULES)
def test_the_basic_help_fits_a_window_and_names_the_rest(page, name):
    text = page(module_of(name), "--help", name=name)
    assert len(text.splitlines()) <= LONGEST_PAGE
    assert text.splitlines()[-1] == f"edgeroute {name} --help-all shows every option."
    assert page(module_of(name), "-h", name=name) == text
    everything = shown(page(module_of(name), "--help-all", name=name))
    assert [option for option in everything if option in shown(text)] == shown(text)
    assert (shown(text) != everything) == (name in LONG)


@pytest.mark.parametrize("name", LONG)
def test_every_option_has_a_group_and_every_group_an_option(page, name):
    text = page(module_of(name), "--help-all", name=name)
    titles = re.findall(r"\n\n([^:\n]*):\n  -", text)
    assert titles == list(module_of(name).HELP)


@pytest.mark.parametrize("name", LONG)
def test_a_group_names_options_that_there_are(name):
    module = module_of(name)
    own = {field.name for field in dataclasses.fields(module.Options)}
    named = [word for group in module.HELP.values() for options in group for word in options.split()]
    assert len(named) == len(set(named))
    for word in named:
        first, _, rest = word.partition(".")
        assert first in own
        assert not rest or rest in {field.name for field in dataclasses.fields(type(getattr(module.Options(), first)))}


@pytest.mark.parametrize("name", LONG)
def test_what_the_help_says_is_plain_english(page, name):
    text = page(module_of(name), "--help-all", name=name)
    about, *groups = re.split(r"\n\n[^:\n]*:\n(?=  -)", text)
    options = [row for group in groups for row in re.split(r"^  --", group, flags=re.MULTILINE)[1:]]
    texts = [re.sub(r"\(default: .*?\)$", "", " ".join(re.split(r" {2,}", row, maxsplit=1)[-1].split())) for row in options]
    found = [sentence for part in (about.split("\n", 1)[1], *texts) for sentence in sentences(part)]
    assert len(found) > len(options) / 2
    assert not [f"{words(s)} words: {s}" for s in found if words(s) > MOST_WORDS]


def command(help_groups):
    """A command of its own with three options."""

    @dataclasses.dataclass(frozen=True)
    class Options:
        count: int | None = None
        """How many: 70% or more of semi-detached ones."""
        fast: bool = False
        """Fast."""
        hidden: tuple[str, ...] = ()
        """Names."""

    about = "A command.\n\nExample:\n\n    edgeroute command  --fast\n"
    return types.SimpleNamespace(Options=Options, __doc__=about, **help_groups)


def test_one_word_says_whether_an_option_is_basic(page):
    basic = command({"HELP": {"what": ("count hidden", "fast")}})
    advanced = command({"HELP": {"what": ("count", "fast hidden")}})
    assert shown(page(basic, "--help")) == ["--count", "--hidden"]
    assert shown(page(advanced, "--help")) == ["--count"]
    assert page(basic, "--help-all") == page(advanced, "--help-all")
    assert shown(page(basic, "--help-all")) == ["--count", "--fast", "--hidden"]


def test_an_option_that_no_group_names_is_advanced_and_stands_apart(page):
    module = command({"HELP": {"what": ("count", "fast")}})
    assert shown(page(module, "--help")) == ["--count"]
    assert re.search(r"other options:\n  --hidden", page(module, "--help-all"))


def test_a_page_keeps_examples_and_per_cents_as_they_are(page):
    text = page(command({}), "--help")
    assert "\n    edgeroute command  --fast\n" in text
    assert "How many: 70% or more of semi-detached ones." in text
    assert "None" not in text


@pytest.mark.parametrize("arguments", ["--count 3 --fast --hidden a b", "--count None --no-fast", "--hidden --count=4", ""])
def test_what_is_parsed_does_not_depend_on_the_groups(arguments):
    plain, grouped = command({}), command({"HELP": {"what": ("fast", "count hidden")}})
    given = shlex.split(arguments)
    expected = tyro.cli(plain.Options, args=given)
    for module in (plain, grouped):
        found = parse_arguments(module, "edgeroute command", given)
        assert dataclasses.asdict(found) == dataclasses.asdict(expected)


def test_a_wrong_option_ends_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        parse_arguments(command({}), "edgeroute command", ["--count", "many"])
    assert stop.value.code == 2
    assert "count" in capsys.readouterr().err


def test_a_command_that_is_submitted_shows_its_own_help(capsys):
    from cluster import submit

    with pytest.raises(SystemExit) as stop:
        submit._parse_command(["train", "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith("usage: edgeroute submit train [options]")
    assert submit.own_arguments(["--help-all", "train", "--help"]) == ["--help-all"]
