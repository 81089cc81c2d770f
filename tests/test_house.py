"""How the source is laid out: which rooms import which, no circles, nothing too long to hold in mind."""

import ast
import graphlib
import io
import tokenize
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# Room -> the rooms that it may import besides itself. A room is a folder with all below it that is no room of its own.
ROOMS: dict[str, set[str]] = {
    "tla_core": set(),
    "analysis": {"tla_core"},
    "analysis.display": {"analysis", "tla_core"},
    "analysis.explore": {"analysis.display", "analysis", "tla_core"},
    "analysis.reports": {"analysis.explore", "analysis.display", "analysis", "tla_core"},
    "analysis.scales": {"analysis", "tla_core"},
    "analysis.paper": {"analysis.scales", "analysis.display", "analysis", "tla_core"},
    "analysis.publish": {"analysis.paper", "analysis.scales", "analysis.display", "analysis", "tla_core"},
    "analysis.command": {
        "analysis.publish", "analysis.paper", "analysis.reports", "analysis.scales", "analysis.explore",
        "analysis.display", "analysis", "tla_core",
    },
}  # fmt: skip
# Folders of the project: their modules may be imported where the table says so, and nowhere else.
FOLDERS = {"tla_core", "analysis", "benchmarks", "notebooks", "workflow", "tests"}
MOST_LINES, MOST_LINES_OF_A_FUNCTION = 400, 60
# Prepositions, participles, pronouns and adverbs say nothing of what a variable holds; nor does any `of_...`.
VAGUE_NAMES = set(
    "above after again alone apart behind below beside both done drawn few fewer fewest found given gone here how kept"
    " made mapped mine more most named noted of said seldom shown such swept taken theirs there these those together"
    " wanted what which who why within without".split()
)


def room_of(module: str) -> str | None:
    """The innermost room that holds a module."""
    around = [room for room in ROOMS if f"{module}.".startswith(f"{room}.")]
    return max(around, key=len, default=None)


@cache
def modules_of(room: str) -> dict[str, Path]:
    """Module name -> file."""
    files = sorted((ROOT / room.replace(".", "/")).rglob("*.py"))
    names = {".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file for file in files}
    return {name: file for name, file in names.items() if room_of(name) == room}


@cache
def imports_of(file: Path) -> set[str]:
    """Modules that a file imports, at its top or inside a function; of ``from a import b`` it is a.b if that is one."""
    modules = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            full_names = [f"{node.module}.{alias.name}" for alias in node.names]
            modules |= {name if is_module(name) else node.module for name in full_names}
    return modules


def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def code_lines(source: str) -> set[int]:
    """Numbers of the lines that hold code: no docstring, comment or blank line."""
    no_code = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in no_code:
            lines |= set(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node):
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_what_it_may(room):
    for name, file in modules_of(room).items():
        imported = {other for other in imports_of(file) if other.partition(".")[0] in FOLDERS}
        foreign = {other for other in imported if room_of(other) not in {room, *ROOMS[room]}}
        assert not foreign, f"{name} imports {', '.join(sorted(foreign))}"


def test_no_import_leads_back_to_where_it_starts():
    """Imports inside functions count as well: they hide a circle from Python, and not from a reader."""
    modules = {name: file for room in ROOMS for name, file in modules_of(room).items()}
    graph = {name: imports_of(file) & set(modules) for name, file in modules.items()}
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(f"a circle: {' imports '.join(reversed(error.args[1]))}")


@pytest.mark.parametrize("room", ROOMS)
def test_no_module_and_no_function_is_too_long(room):
    too_long = {}
    for name, file in modules_of(room).items():
        source = file.read_text(encoding="utf-8")
        if (length := len(source.splitlines())) > MOST_LINES:
            too_long[name] = length
        lines = code_lines(source)
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = len(lines & set(range(node.lineno, node.end_lineno + 1)))
                if length > MOST_LINES_OF_A_FUNCTION:
                    too_long[f"{name}.{node.name}"] = length
    assert not too_long


def vague_names(source: str) -> set[str]:
    """Variables, parameters and fields whose names do not say what they hold."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
    return {name for name in names if name in VAGUE_NAMES or name.startswith("of_")}


@pytest.mark.parametrize("room", ROOMS)
def test_variables_are_named_by_what_they_hold(room):
    vague = {name: vague_names(file.read_text(encoding="utf-8")) for name, file in modules_of(room).items()}
    lines = [f"{name}: {', '.join(sorted(names))}" for name, names in vague.items() if names]
    assert not lines, "name these by a noun, such as runs_by_class or missing_runs:\n" + "\n".join(lines)


def test_what_the_others_measure_with(tmp_path):
    source = (
        '"""Module."""\n\nimport a.b  # why\n\n\n'
        'def f():\n    """Function\n    of two lines."""\n    from tla_core import losses, train\n\n    # comment\n'
        "    return (\n        1\n    )\n"
    )
    assert code_lines(source) == {3, 6, 9, 12, 13, 14}
    (tmp_path / "module.py").write_text(source)
    assert imports_of(tmp_path / "module.py") == {"a.b", "tla_core.losses", "tla_core"}
    assert vague_names("def f(of, x): of_x, found.most, y = given(made=1)\nwhat: int = 1") == {"of", "of_x", "what"}
    assert room_of("tla_core.masking.suite") == "tla_core" and room_of("tla_core_of_another") is None
