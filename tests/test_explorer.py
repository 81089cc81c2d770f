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
from analysis.explore.command import run_names
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
        if "offset" in value:
            return value | {"png": body[value["offset"] : value["offset"] + value["length"]]}
        return {key: read(each) for key, each in value.items()}

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
        ({"k": 0}, "k must be an integer of at least 1. Got 0"),
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
