import base64
import json
import re
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
from explorer_sets import HOSTILE, made_set, random_maps

from analysis import EmbeddingExplorer, nearest_neighbours, ratio_r_prime
from analysis.command.model_names import run_names
from analysis.explore.measures import measure
from analysis.explore.serve import page_server


def made_explorer(sets=None, **options):
    sets = sets or {"UM": made_set(seed=1), "TLA": made_set(seed=2)}
    defaults = {"projections": random_maps(sets), "methods": ("pca",), "progress": False}
    return EmbeddingExplorer(sets, **defaults | options)


def unpacked(payload):
    length = int.from_bytes(payload[:4], "little")
    header, body = json.loads(payload[4 : 4 + length]), payload[4 + length :]

    def read(value):
        if isinstance(value, list):
            return [read(each) for each in value]
        if not isinstance(value, dict):
            return value
        if "dtype" in value:
            part = body[value["offset"] : value["offset"] + value["length"]]
            return np.frombuffer(part, value["dtype"]).reshape(value["shape"])
        inner = {key: read(each) for key, each in value.items()}
        if "offset" in value:
            inner["png"] = body[value["offset"] : value["offset"] + value["length"]]
        return inner

    return read(header)


# What is in the payload -----------------------------------------------------------------------------------------------


def test_neighbours_are_those_of_the_representation_for_both_queries():
    reps = made_set()
    model = unpacked(made_explorer({"UM": reps}).payload)["models"][0]
    own = np.arange(len(reps))
    for features, key in ((reps.features, "neighbours"), (reps.adv_features, "adv_neighbours")):
        expected = nearest_neighbours(features, reps.features, 10, exclude=own).indices
        np.testing.assert_array_equal(model[key], expected)


def test_r_prime_of_everything_from_the_stored_numbers_is_ratio_r_prime():
    reps = made_set(70)
    measured = measure(reps, np.arange(70), 5)
    means = [measured.adv_class_distance[reps.labels == k].mean() / measured.inner[k] for k in range(3)]
    assert np.mean(means) == pytest.approx(ratio_r_prime(reps).value, rel=1e-6)


def test_distances_agree_with_slow_loops():
    reps, rows = made_set(20), np.array([3, 4, 11])
    measured = measure(reps, rows, 2)

    def angular(a, b):
        return 1 - abs(a @ b) / np.linalg.norm(a) / np.linalg.norm(b)

    for place, row in enumerate(rows):
        members = [j for j in range(20) if reps.labels[j] == reps.labels[row]]
        cross = np.mean([angular(reps.adv_features[row], reps.features[j]) for j in members])
        within = np.mean([angular(reps.features[row], reps.features[j]) for j in members if j != row])
        assert measured.adv_class_distance[place] == pytest.approx(cross, abs=1e-6)
        assert measured.class_distance[place] == pytest.approx(within, abs=1e-6)
        moved = angular(reps.features[row], reps.adv_features[row])
        assert measured.moved[place] == pytest.approx(moved, abs=1e-6)


def test_a_class_of_one_image_has_no_distance_within_it():
    reps = made_set(7, labels=np.array([0, 0, 0, 1, 1, 1, 2]))
    measured = measure(reps, np.arange(7), 3)
    assert np.isnan(measured.class_distance[6]) and np.isnan(measured.inner[2])
    made_explorer({"UM": reps})


def test_sprites_give_back_every_pixel():
    import io

    from PIL import Image

    reps = made_set(17)
    images = np.random.default_rng(0).integers(0, 256, (17, 3, 6, 5), dtype=np.uint8)
    adv = np.random.default_rng(1).random((17, 3, 6, 5), dtype=np.float32)
    data = unpacked(made_explorer({"UM": reps}, images=images, adv_images={"UM": adv}).payload)
    for sheet, expected in ((data["images"], images), (data["models"][0]["images"], np.rint(adv * 255))):
        pixels = np.array(Image.open(io.BytesIO(sheet["png"])))
        for i in range(17):
            top, left = i // sheet["columns"] * 6, i % sheet["columns"] * 5
            np.testing.assert_array_equal(pixels[top : top + 6, left : left + 5], expected[i].transpose(1, 2, 0))


def test_inputs_are_left_as_they_are():
    sets = {"UM": made_set(seed=1), "TLA": made_set(seed=2)}
    before = {name: reps.features.copy() for name, reps in sets.items()}
    assert len(made_explorer(sets).payload) > 0
    for name, reps in sets.items():
        np.testing.assert_array_equal(reps.features, before[name])


def test_the_same_arguments_give_the_same_bytes():
    assert made_explorer().payload == made_explorer().payload


# Items ----------------------------------------------------------------------------------------------------------------


def test_sets_in_another_order_are_brought_into_the_first_ones():
    first, second = made_set(seed=1), made_set(seed=2)
    maps = random_maps({"A": first, "B": second}, ["pca"])
    straight = unpacked(made_explorer({"A": first, "B": second}, projections=maps).payload)
    order = np.random.default_rng(0).permutation(len(second))
    moved = maps["B"]["pca"][np.concatenate([order, order + len(second)])]
    sets = {"A": first, "B": second.subset(order)}
    turned = unpacked(made_explorer(sets, projections={"A": maps["A"], "B": {"pca": moved}}).payload)
    for key in ("neighbours", "moved", "predictions"):
        np.testing.assert_array_equal(straight["models"][1][key], turned["models"][1][key])
    np.testing.assert_array_equal(straight["models"][1]["maps"]["pca"], turned["models"][1]["maps"]["pca"])
    assert straight["models"][1]["images"]["png"] == turned["models"][1]["images"]["png"]


def test_too_many_points_are_sampled_by_class_and_said():
    labels = np.repeat([0, 1, 2], [100, 60, 40])
    explorer = made_explorer({"UM": made_set(200, labels=labels)}, max_points=80)
    shown = labels[(explorer.indices - 10) // 2]
    assert np.bincount(shown).tolist() == [20, 12, 8]
    assert explorer.notes[0] == "40 of 200 images are shown: a random sample of each class."


def test_a_set_without_an_adversarial_part_shows_clean_points():
    sets = {"UM": made_set(seed=1, adversarial=False), "TLA": made_set(seed=2)}
    data = unpacked(made_explorer(sets).payload)
    assert [model["adversarial"] for model in data["models"]] == [False, True]
    assert data["models"][0]["maps"]["pca"].shape == (60, 2) and data["models"][0]["adv_neighbours"] is None
    assert any("UM: no adversarial part" in note for note in data["notes"])


def test_missing_maps_are_made():
    sets = {"UM": made_set(seed=1), "TLA": made_set(seed=2)}
    maps = random_maps({"UM": sets["UM"]}, ["pca"])
    explorer = EmbeddingExplorer(sets, projections=maps, methods=("pca",), progress=False)
    np.testing.assert_array_equal(explorer.maps["pca"]["UM"], maps["UM"]["pca"])
    assert explorer.maps["pca"]["TLA"].shape == (120, 2)


def test_kept_maps_are_not_made_again_unless_the_representations_are_others(tmp_path, monkeypatch):
    from analysis.explore import maps

    made, real = [], maps.project

    def project(features, *, method):
        made.append(method)
        return real(features, method=method)

    monkeypatch.setattr(maps, "project", project)
    sets, path = {"UM": made_set(seed=1), "TLA": made_set(seed=2)}, tmp_path / "maps.safetensors"

    def explorer(**changes):
        return EmbeddingExplorer(sets | changes, methods=("pca",), maps_file=path, progress=False)

    first = explorer()
    again = explorer()
    assert made == ["pca", "pca"]
    for name in sets:
        np.testing.assert_array_equal(first.maps["pca"][name], again.maps["pca"][name])
    explorer(TLA=made_set(seed=3))
    assert len(made) == 3
    path.write_bytes(path.read_bytes()[:-1])
    explorer()
    assert len(made) == 5, "a damaged file was believed"


def test_images_are_found_where_the_sets_say_which_dataset_they_are_of():
    from tiny import numpy_images

    _, labels = numpy_images(30)
    meta = {"dataset": "mnist-mini", "split": "test"}
    reps = made_set(30, classes=10, labels=labels, indices=np.arange(30), meta=meta, size=28)
    assert unpacked(made_explorer({"UM": reps}).payload)["images"] is not None
    other = made_set(30, classes=10, labels=(labels + 1) % 10, indices=np.arange(30), meta=meta, size=28)
    explorer = made_explorer({"UM": other})
    assert unpacked(explorer.payload)["images"] is None and "labels are not those" in explorer.notes[-1]


# What must raise ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({}, "expected 1 to 6 sets by name.*Got 0 sets"),
        ({f"m{k}": made_set() for k in range(7)}, "Got 7 sets"),
        ([made_set()], "Got a list"),
        ({"UM": np.zeros((3, 2))}, "make one with analysis.extract"),
        ({"UM": made_set(), "TLA": made_set(50)}, r"TLA lacks 10 of the 60 that UM has: indices 110, 112, .*\.\.\."),
        ({"UM": made_set(50), "TLA": made_set()}, "UM lacks 10 of the 60 that TLA has: indices 110"),
        ({"UM": made_set(), "TLA": made_set(labels=np.zeros(60, int))}, "true class. Got 0 and 1 for index 12"),
        ({"UM": made_set(), "TLA": made_set(names=("a", "b", "c"))}, "the same class names"),
        ({"UM": made_set(indices=np.zeros(60, int))}, "Got index 0 60 times"),
        ({"UM": made_set(features=np.zeros((60, 6)))}, "features of UM row 0 is a zero vector"),
    ],
)
def test_sets_that_do_not_belong_together_raise(sets, message):
    with pytest.raises(ValueError, match=message):
        EmbeddingExplorer(sets, methods=("pca",), progress=False)


def test_nan_raises():
    reps = made_set()
    reps.adv_features[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"adv_features of UM must be finite\. Got NaN or infinity in row 7"):
        made_explorer({"UM": reps})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k must be a whole number of at least 1. Got 0"),
        ({"max_points": 1}, "max_points must be at least 2. Got 1"),
        ({"methods": ("mds",)}, "projections by mds; expected some of tsne, umap, pca"),
        ({"projections": {"AT": {}}}, "projections are of AT; expected models: UM"),
        ({"projections": {"UM": {"pca": np.zeros((60, 2))}}}, r"must have the shape \(120, 2\)"),
        ({"projections": {"UM": {"pca": np.full((120, 2), np.nan)}}}, "the pca map of UM must be finite"),
        ({"images": np.zeros((60, 8, 8))}, r"images must have the shape \(60, 1 or 3, h, w\)"),
        ({"images": np.full((60, 1, 8, 8), 2.0)}, r"floats in \[0, 1\] without NaN"),
        ({"images": np.zeros((60, 1, 9, 9), np.uint8)}, "adv_images of UM must be like images"),
        ({"adv_images": {"AT": np.zeros((60, 1, 8, 8))}}, "adv_images are of AT; expected models: UM"),
    ],
)
def test_wrong_arguments_raise(options, message):
    with pytest.raises(ValueError, match=message):
        made_explorer({"UM": made_set()}, **options)


# Selection and files --------------------------------------------------------------------------------------------------


def test_the_selection_holds_indices_of_shown_images_and_can_be_set():
    explorer = made_explorer()
    explorer.selection = [14, 10, 14]
    assert explorer.selection.tolist() == [10, 14]
    with pytest.raises(ValueError, match=r"images that are shown\. Got index 11"):
        explorer.selection = [10, 11]
    assert explorer.selection.tolist() == [10, 14]


def test_the_file_names_no_address_to_load_from_and_escapes_its_title(tmp_path):
    sets = {HOSTILE: made_set(names=(HOSTILE, "b", "</script>"))}
    path = made_explorer(sets).to_html(tmp_path / "explorer.html", title=HOSTILE)
    page = path.read_text()
    assert HOSTILE not in page and page.count("</script>") == 3
    assert not re.search(r"<(script|img|link|iframe)[^>]+(src|href)=[\"'](?!data:)", page[: page.index("<script")])
    payload = re.search(r'id="payload">([^<]+)<', page)[1]
    assert unpacked(base64.b64decode(payload))["class_names"][0] == HOSTILE


def test_the_table_has_a_row_for_each_point_with_its_image(tmp_path):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    sets = {"UM": made_set(seed=1), "TLA": made_set(seed=2, adversarial=False)}
    images = np.zeros((60, 1, 8, 8), np.uint8)
    table = parquet.read_table(made_explorer(sets, images=images).to_parquet(tmp_path / "a" / "explorer.parquet"))
    assert table.num_rows == 180
    rows = table.to_pylist()
    assert {row["kind"] for row in rows if row["model"] == "TLA"} == {"clean"}
    assert all(row["image"]["bytes"].startswith(b"\x89PNG") for row in rows)
    attacked = [row for row in rows if row["kind"] == "adversarial"]
    fooled = [row for row in attacked if row["outcome"] == "fooled"]
    assert len(fooled) == 20 and all(row["prediction"] != row["label"] for row in fooled)


def test_the_widget_and_the_explorer_share_a_selection():
    pytest.importorskip("anywidget", reason="anywidget is not installed")
    explorer = made_explorer()
    explorer.selection = [10]
    widget = explorer.widget()
    assert widget.selection == [10] and widget.payload == explorer.payload
    widget.selection = [12, 14]
    assert explorer.selection.tolist() == [12, 14]
    explorer.selection = []
    assert widget.selection == []


def test_the_server_gives_one_page_to_this_machine_alone(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("the page")
    with page_server(path) as server:
        assert server.server_address[0] == "127.0.0.1"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        assert urllib.request.urlopen(f"{address}/").read() == b"the page"
        foreign = urllib.request.Request(f"{address}/", headers={"Host": "example.org"})
        for wrong in (f"{address}/../page.html", foreign):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(wrong)
        server.shutdown()


def test_runs_of_one_method_are_told_apart(tmp_path):
    assert run_names((tmp_path / "a/um/seed0", tmp_path / "b/um/seed0")) == ["a/um/seed0", "b/um/seed0"]
    with pytest.raises(ValueError, match="named twice"):
        run_names((tmp_path, tmp_path))


# Own columns, views and steps -----------------------------------------------------------------------------------------


def test_own_columns_follow_the_rows_that_are_shown_in_page_and_table(tmp_path):
    labels = np.repeat([0, 1, 2], 20)
    order = np.random.default_rng(0).permutation(60)
    sets = {"UM": made_set(seed=1, labels=labels), "TLA": made_set(seed=2, labels=labels).subset(order)}
    values = np.arange(60) / 7
    columns = {"brightness": values, "split": [None if i % 5 == 0 else f"part {i % 2}" for i in range(60)]}
    explorer = made_explorer(sets, projections=None, columns=columns, max_points=40)
    number, word = unpacked(explorer.payload)["columns"]
    rows = (explorer.indices - 10) // 2
    np.testing.assert_array_equal(number["values"], values[rows])
    assert number["categories"] is None and word["categories"] == ["part 0", "part 1"]
    np.testing.assert_array_equal(word["values"], [-1 if i % 5 == 0 else i % 2 for i in rows])
    pytest.importorskip("pyarrow", reason="pyarrow is not installed")
    from pyarrow import parquet

    table = parquet.read_table(explorer.to_parquet(tmp_path / "explorer.parquet")).to_pylist()
    assert all(row["brightness"] == (row["index"] - 10) / 14 for row in table)
    assert {row["split"] for row in table} == {None, "part 0", "part 1"}


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ([1, 2], "columns must be by name.*Got a list"),
        ({"a": [1, 2]}, r"column 'a' must have one value for each of the 60 images\. Got \(2,\)"),
        ({"a": np.zeros((60, 2))}, r"Got \(60, 2\)"),
        ({"a": [np.inf] * 60}, "must be finite, or nan where it is not known"),
        ({"label": np.zeros(60)}, "cannot be called 'label'"),
        ({" ": np.zeros(60)}, "must have a name. Got ' '"),
        ({"a": 3}, "column 'a' must have one value for each of the 60 images. Got 3"),
        ({"a": "x" * 60}, "column 'a' must have one value for each of the 60 images. Got 'xx"),
    ],
)
def test_columns_that_cannot_be_shown_raise(columns, message):
    with pytest.raises(ValueError, match=message):
        made_explorer(columns=columns)


def test_what_pandas_misses_is_not_known():
    pandas = pytest.importorskip("pandas")
    (column,) = unpacked(made_explorer(columns={"a": pandas.array([1, None] * 30, dtype="Int64")}).payload)["columns"]
    assert np.isnan(column["values"][1]) and column["values"][0] == 1


def test_nan_and_booleans_in_columns_are_unknown_and_words():
    columns = {"a": [np.nan, *range(59)], "b": [True, False] * 30, "c": np.array(["x", "y"] * 30)}
    first, second, third = unpacked(made_explorer(columns=columns).payload)["columns"]
    assert np.isnan(first["values"][0]) and first["values"][1] == 0
    assert second["categories"] == ["False", "True"] and third["categories"] == ["x", "y"]


@pytest.mark.parametrize(
    ("view", "message"),
    [
        ([], "view must be a dictionary"),
        ({"maps": "pca"}, "view has the key 'maps'; expected some of map, colour"),
        ({"map": "umap"}, r"view\['map'\] must be one of tsne, pca. Got 'umap'"),
        ({"colour": "column:none"}, "must be one of label, prediction"),
        ({"neighbours": 0}, "an integer from 1 to 10"),
        ({"neighbours": True}, "an integer from 1 to 10"),
        ({"classes": [3]}, "one or two classes, from 0 to 2"),
        ({"pinned": 11}, "the index of an image that is shown"),
        ({"columns": {"split": "no"}}, "by name of a column"),
        ({"columns": {"brightness": [1]}}, "by name of a column"),
        ({"zoom": {"UM": [0, 0, 0]}}, "by name of a model"),
        ({"zoom": {"AT": [0, 0, 1]}}, "by name of a model"),
        ({"groups": [["a", [7]]]}, "a list of"),
        ({"compare": ["UM"]}, "two of UM, TLA"),
        ({"hidden": [1]}, "keys of the legend"),
    ],
)
def test_a_view_that_cannot_be_shown_raises(view, message):
    explorer = made_explorer(columns={"brightness": np.zeros(60), "split": ["a"] * 60})
    with pytest.raises(ValueError, match=message):
        explorer.view = view
    assert explorer.view == {}


def test_the_widget_and_the_explorer_share_a_view_and_its_images():
    pytest.importorskip("anywidget", reason="anywidget is not installed")
    images = np.random.default_rng(0).integers(0, 256, (60, 3, 120, 100), dtype=np.uint8)
    sets = {"UM": made_set(seed=1, adv_images=None)}
    explorer = made_explorer(sets, images=images)
    explorer.view = {"map": "pca", "zoom": {"UM": np.array([0.5, 0, 2])}}
    widget = explorer.widget()
    assert widget.view == {"map": "pca", "zoom": {"UM": [0.5, 0.0, 2.0]}}
    widget.view = {"pinned": 12}
    assert explorer.view == {"pinned": 12}
    explorer.view = {}
    assert widget.view == {}
    answers = []
    widget.send = lambda content, buffers: answers.append((content, buffers))
    for asked in ([0, 7], [1, 7], [5, 0]):
        widget._handle_custom_msg({"image": asked}, [])
    assert answers[1:] == [({"image": [1, 7]}, []), ({"image": [5, 0]}, [])]
    np.testing.assert_array_equal(opened(answers[0][1][0]), images[7].transpose(1, 2, 0))


def opened(content):
    import io

    from PIL import Image

    return np.array(Image.open(io.BytesIO(content)))


def test_steps_of_one_model_share_a_map_and_a_frame_so_that_what_stays_does_not_move():
    still = made_set(seed=1)
    moved = made_set(seed=1, adv_features=made_set(seed=3).adv_features)
    sets = {"eps 0": still, "eps 1": moved}
    explorer = EmbeddingExplorer(sets, methods=("pca",), steps=True, progress=False)
    data = unpacked(explorer.payload)
    first, second = (model["maps"]["pca"] for model in data["models"])
    np.testing.assert_array_equal(first[:60], second[:60])
    assert np.abs(first[60:] - second[60:]).max() > 0.1
    assert max(np.abs(first).max(), np.abs(second).max()) == pytest.approx(1)
    assert EmbeddingExplorer({f"{k}": still for k in range(8)}, methods=("pca",), steps=True, progress=False).models
    with pytest.raises(ValueError, match=r"representations of one width\. Got \{'a': 6, 'b': 5\}"):
        EmbeddingExplorer({"a": still, "b": made_set(d=5)}, methods=("pca",), steps=True, progress=False)


def test_the_header_says_data_attack_layer_and_how_maps_were_made(tmp_path):
    attack = {"name": "pgd", "eps": 8 / 255, "step_size": 2 / 255, "steps": 20}
    meta = {"dataset": "cifar10", "split": "test", "layer": "penultimate", "attack": attack}
    reps = made_set(200, meta=meta)
    explorer = EmbeddingExplorer({"UM": reps}, methods=("tsne", "pca"), maps_file=tmp_path / "maps", progress=False)
    again = EmbeddingExplorer({"UM": reps}, methods=("tsne", "pca"), maps_file=tmp_path / "maps", progress=False)
    for data in (unpacked(explorer.payload), unpacked(again.payload)):
        assert data["models"][0]["about"] == {
            "data": "cifar10 test", "layer": "penultimate", "attack": "PGD, eps 8/255, step size 2/255, 20 steps",
        }  # fmt: skip
        assert data["methods"] == {"tsne": "perplexity 15, 750 iterations, cosine", "pca": "cosine"}
    assert unpacked(made_explorer().payload)["methods"]["tsne"] == "given"


def test_numbers_over_a_panel_are_of_all_images_though_a_sample_is_shown():
    reps = made_set(200)
    model = unpacked(made_explorer({"UM": reps}, projections=None, max_points=80).payload)["models"][0]
    assert model["numbers"] == {
        "clean": reps.accuracy, "robust": reps.robust_accuracy, "r_prime": ratio_r_prime(reps).value,
    }  # fmt: skip


# Large images ---------------------------------------------------------------------------------------------------------


def natural(n, size, seed=0):
    """Images that are as smooth as photographs are, and the same with what an attack adds."""
    rng = np.random.default_rng(seed)
    from PIL import Image

    coarse = rng.integers(0, 256, (n, 28, 28, 3), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(each).resize((size, size), Image.Resampling.BICUBIC)) for each in coarse]
    clean = np.stack(smooth).transpose(0, 3, 1, 2)
    noise = 16 * rng.integers(0, 2, clean.shape, dtype=np.int16) - 8
    return clean, np.clip(clean + noise, 0, 255).astype(np.uint8)


def test_large_images_are_thumbnails_of_96_pixels_and_the_change_is_of_the_whole_image():
    clean, attacked = natural(6, 224)
    sets = {"UM": made_set(6, adv_images=attacked)}
    data = unpacked(made_explorer(sets, images=clean).payload)
    sheet, changes = data["images"], data["models"][0]["changes"]
    assert (sheet["width"], sheet["height"], sheet["full"], sheet["type"]) == (96, 96, [224, 224], "image/webp")
    assert sheet["originals"] is None and opened(sheet["png"]).shape == (2 * 96, 3 * 96, 3)
    np.testing.assert_allclose(changes["gains"], 127 / 8)
    assert max(changes["width"], changes["height"]) <= 48
    small = unpacked(made_explorer({"UM": made_set(6, size=96)}, images=clean[..., :96, :96][:, :1]).payload)
    assert small["images"]["type"] == "image/png" and small["models"][0]["changes"] is None


def test_200_images_of_224_pixels_of_four_models_are_below_15_megabytes(tmp_path):
    clean, attacked = natural(200, 224)
    sets = {name: made_set(200, seed=seed, adv_images=attacked) for seed, name in enumerate("ABCD")}
    path = made_explorer(sets, images=clean).to_html(tmp_path / "large.html")
    assert path.stat().st_size < 15e6


def test_full_images_are_in_the_page_or_beside_it_and_served(tmp_path):
    clean, attacked = natural(6, 120)
    sets = {"UM": made_set(6, adv_images=attacked)}
    data = unpacked(made_explorer(sets, images=clean, full_images="page").payload)
    np.testing.assert_array_equal(opened(data["images"]["originals"][4]["png"]), clean[4].transpose(1, 2, 0))
    path = made_explorer(sets, images=clean, full_images="beside").to_html(tmp_path / "my page.html")
    beside = opened((tmp_path / "my page_images" / "1-12.png").read_bytes())
    np.testing.assert_array_equal(beside, attacked[1].transpose(1, 2, 0))
    with page_server(path) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        served = opened(urllib.request.urlopen(f"{address}/my%20page_images/0-10.png").read())
        np.testing.assert_array_equal(served, clean[0].transpose(1, 2, 0))
        for wrong in ("my%20page_images/0-99.png", "my%20page_images/../my%20page.html", "my%20page_images/"):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{address}/{wrong}")
        server.shutdown()
    with pytest.raises(ValueError, match=r"full_images must be one of none, page, beside\. Got 'all'"):
        made_explorer(sets, full_images="all")
