import hashlib
import sys

import pytest

from tla_core.naming import import_object, source_digest, spec_of


def test_a_file_and_a_module_give_their_objects(tmp_path):
    (tmp_path / "beside_of_naming.py").write_text("SIZE = 3\n")
    (tmp_path / "nets.py").write_text(
        "from beside_of_naming import SIZE\n\nclass Net:\n    @staticmethod\n    def build():\n        return SIZE\n"
    )
    before = list(sys.path)
    assert import_object(f"{tmp_path}/nets.py:Net.build")() == 3
    assert import_object("nets.py:Net", root=tmp_path) is import_object(f"{tmp_path}/nets.py:Net")
    assert "nets" not in sys.modules and sys.path == before
    assert import_object("os.path:join") is __import__("os").path.join


def test_a_file_may_lie_at_home_and_a_module_where_python_is_started(tmp_path, monkeypatch):
    (tmp_path / "nets_at_home.py").write_text("SIZE = 3\n")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert import_object("~/nets_at_home.py:SIZE", root="elsewhere") == 3
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    assert import_object("nets_at_home:SIZE") == 3


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("nets.py", ValueError, "expected file.py:function or package.module:function. Got 'nets.py'"),
        (":name", ValueError, "Got ':name'"),
        ("nets.py:other", ValueError, "nets.py has no other. It has: Net"),
        ("nets.py:Nett", ValueError, r"nets.py has no Nett. Did you mean Net\? It has: Net"),
        ("nets.py:Net.build.there", ValueError, "nets.py has no Net.build.there. It has: no functions"),
        ("none.py:Net", FileNotFoundError, "there is no file .*none.py, of which 'none.py:Net'"),
        ("no_such_package.nets:Net", ImportError, "there is no module no_such_package.nets to import from here"),
        ("os:no_such_name", ValueError, "os has no no_such_name"),
    ],
)
def test_a_wrong_name_is_one_line_that_says_what_is_there(tmp_path, spec, kind, message):
    (tmp_path / "nets.py").write_text("class Net:\n    build = 3\n")
    with pytest.raises(kind, match=message) as error:
        import_object(spec, root=tmp_path)
    assert "\n" not in str(error.value)


def test_an_error_of_the_code_itself_passes_through_and_is_not_kept(tmp_path):
    file = tmp_path / "broken_nets.py"
    file.write_text("import no_such_package_of_naming\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_of_naming"):
        import_object(f"{file}:Net")
    file.write_text("Net = 1\n")
    assert import_object(f"{file}:Net") == 1


def test_what_an_environment_below_a_folder_holds_is_imported_once(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net.py").write_text("import third_party_of_tests, parts_of_tests\n")
        (tmp_path / folder / "parts_of_tests.py").write_text(f"NAME = '{folder}'\n")
    site = tmp_path / "a" / ".venv" / "site-packages"
    site.mkdir(parents=True)
    (site / "third_party_of_tests.py").write_text("")
    monkeypatch.syspath_prepend(str(site))
    first, second = (import_object(f"{tmp_path}/{folder}/net.py:third_party_of_tests") for folder in "ab")
    assert first is second
    assert [import_object(f"{tmp_path}/{folder}/net.py:parts_of_tests.NAME") for folder in "ab"] == ["a", "b"]


def test_a_function_in_a_file_has_a_name_and_the_digest_of_that_file(tmp_path):
    path = tmp_path / "steps.py"
    path.write_text("def step():\n    return 3\n\nclass Net:\n    def build(self):\n        return 4\n")
    spec = spec_of(import_object(f"{path}:step"))
    assert spec == f"{path}:step" and import_object(spec)() == 3
    assert source_digest(spec) == hashlib.sha256(path.read_bytes()).hexdigest()
    assert source_digest("tla_core.naming:spec_of") == source_digest(spec_of(spec_of))
    for nowhere in (lambda: 0, len, import_object(f"{path}:Net.build")):
        with pytest.raises(ValueError, match="expected a function that stands in a file"):
            spec_of(nowhere)
    with pytest.raises(FileNotFoundError, match=r"there is no file gone\.py"):
        source_digest("gone.py:step")


def test_a_file_that_has_been_edited_is_run_again(tmp_path):
    file = tmp_path / "edited.py"
    values = []
    for size in (3, 3, 4):
        file.write_text(f"class Net:\n    size = {size}\n")
        values.append(import_object(f"{file}:Net"))
    assert values[0] is values[1] and [value.size for value in values] == [3, 3, 4]
