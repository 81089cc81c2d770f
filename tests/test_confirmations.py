"""When the slowest confirmations run: of the conftest.py of these tests, in a project of its own."""

import json
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

TESTS = """
    import pytest

    @pytest.mark.confirmation(of=("source.py",))
    def test_of_the_source():
        pass

    @pytest.mark.confirmation(of=("other.py",))
    @pytest.mark.skipif({skipped}, reason="nothing to run it with")
    def test_of_another():
        assert {right}

    def test_without_a_mark():
        pass
"""


@pytest.fixture
def project(pytester):
    """A project with two sources, and the notes that it keeps."""
    pytester.makefile(".py", source="x = 1", other="y = 1")
    pytester.makeini("[pytest]\ntestpaths = tests\nmarkers = confirmation: ...\n")
    tests = pytester.mkdir("tests")
    (tests / "conftest.py").write_text(Path(__file__).with_name("conftest.py").read_text())
    write(pytester)
    return pytester


def write(project, right=True, skipped=False):
    path = project.makepyfile(test_confirmed=TESTS.format(right=right, skipped=skipped))
    path.replace(project.path / "tests" / "test_confirmed.py")


def passed(project, *arguments):
    """How many tests passed."""
    return project.runpytest_inprocess("-p", "no:cacheprovider", *arguments).parseoutcomes().get("passed", 0)


def noted(project):
    path = project.path / "tests" / "confirmed.json"
    return set(json.loads(path.read_text())) if path.exists() else set()


def test_they_run_when_asked_for_and_then_where_their_sources_change(project):
    assert passed(project) == 1 and noted(project) == set()
    assert passed(project, "--confirm=always") == 3 and noted(project) == {"source.py", "other.py"}
    assert passed(project, "--confirm=changed") == 1
    (project.path / "source.py").write_text("x = 2")
    assert passed(project, "--confirm=changed") == 2
    assert passed(project, "--confirm=changed") == 1, "what has passed is noted"


@pytest.mark.parametrize("changes, kept", [({"right": False}, set()), ({"skipped": True}, {"source.py"})])
def test_what_failed_or_was_skipped_is_not_noted(project, changes, kept):
    write(project, **changes)
    passed(project, "--confirm=always")
    assert noted(project) == kept


@pytest.mark.parametrize("part", [("-k", "of_the_source"), ("tests/test_confirmed.py",)])
def test_a_part_of_the_tests_notes_nothing(project, part):
    assert passed(project, "--confirm=always", *part) >= 1
    assert noted(project) == set()
