"""Names show as they are, in every format that they are written in."""

import re

import pytest

import edgeroute
from rllib_envs.errors import InputError
from rllib_envs.scenarios.load import load_scenario, parse_scenario
from tuning.output.literal import code, markdown, printable, slug
from tuning.output.plot_style import band, canvas, write_figure
from tuning.output.tables import markdown_table

NAMES = [
    "$\\frac$",
    "$x",
    "_x_",
    "a|b",
    "*b* **c**",
    "<b>&lt;",
    "[x](y)",
    "`c``d`",
    "50 %^2",
    "\"q\", 'r'",
    "漢字",
    "-rf",
    "{x}",
    "~~s~~",
]
NAME = " ".join(NAMES)


def shown(text):
    """Markdown of one line as a reader shows it: escapes gone."""
    return re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", text)


@pytest.mark.parametrize("name", [*NAMES, NAME])
def test_markdown_shows_a_name_as_it_is(name):
    assert shown(markdown(name)) == name
    assert len(re.findall(r"(?<!\\)\|", markdown_table(["a", "b"], [[name, "1"]]).splitlines()[2])) == 3
    inner = re.fullmatch(r"(`+)(.*)\1", code(name)).group(2)
    assert inner.strip() == name
    assert not re.search(rf"(?<!`){re.match('`+', code(name)).group()}(?!`)", inner)
    assert re.fullmatch(r"[\w.=%-]+", slug(name))


@pytest.mark.parametrize("name", ["a b", "edge6", "bundle:runs/mine_1", "impact-greedy:tokens_price=0.5", "0.51 ± 0.01", "–"])
def test_usual_names_are_not_touched(name):
    assert markdown(name) == name


def test_figures_draw_every_name(tmp_path):
    names = [*NAMES, NAME, "two\nlines", "\x1b[31mred"]
    figure, axes = canvas(9.0)
    for name in names:
        band(axes, [0, 1], [0, 1], [0, 0], [1, 1], name, color="0.5")
    axes.set_title(NAME)
    axes.set_yticks(range(len(names)), names)
    axes.legend()
    entries = axes.get_legend().get_texts()
    assert [entry.get_text().strip() for entry in entries] == names
    write_figure(figure, tmp_path / "x.png")
    assert not any(entry.get_parse_math() for entry in entries)


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31mred", "tab\t", "\u202eright to left", ""])
def test_no_name_holds_what_a_terminal_obeys(name):
    world = load_scenario("edge6").to_dict() | {"name": name}
    with pytest.raises(InputError, match="name"):
        parse_scenario(world, "file")
    assert printable(name).isprintable()


def test_an_error_holds_nothing_that_a_terminal_obeys(capsys):
    assert edgeroute.main(["simulate", "--scenario", "\x1b[31mred"]) == 2
    assert capsys.readouterr().err.isascii()
    assert edgeroute._fail("\x1b[31mred\u202e") == 2
    assert capsys.readouterr().err == "edgeroute: error: \\x1b[31mred\\u202e\n"
