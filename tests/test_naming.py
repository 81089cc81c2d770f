import sys

import pytest

from tla_core.naming import import_object


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


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nets.py", "expected file.py:function or package.module:function. Got 'nets.py'"),
        (":name", "Got ':name'"),
        ("nets.py:other", "nets.py has no 'other'. It has Net"),
        ("none.py:Net", "there is no file .*none.py"),
        ("no_such_package.nets:Net", "there is no module 'no_such_package'"),
        ("os:no_such_name", "os has no 'no_such_name'"),
    ],
)
def test_a_wrong_name_is_one_line_that_says_what_is_there(tmp_path, spec, message):
    (tmp_path / "nets.py").write_text("class Net:\n    pass\n")
    with pytest.raises(ValueError, match=message) as error:
        import_object(spec, root=tmp_path)
    assert "\n" not in str(error.value)


def test_an_error_of_the_code_itself_passes_through_and_is_not_kept(tmp_path):
    file = tmp_path / "broken_nets.py"
    file.write_text("import no_such_package_of_naming\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_of_naming"):
        import_object(f"{file}:Net")
    file.write_text("Net = 1\n")
    assert import_object(f"{file}:Net") == 1
