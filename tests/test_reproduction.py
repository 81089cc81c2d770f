import json
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import stats
from test_scales import make_scale

from analysis.display.figures import save_table
from analysis.paper import published
from analysis.paper.comparison import claims, groups
from analysis.paper.ratio_tables import ratio_spread_table
from analysis.paper.reproduction import report
from analysis.paper.verdicts import AGREES, DISAGREES, ORDERED, Estimate, Number
from analysis.ratios import ratio_r_prime
from analysis.scales.manifest import ManifestError


def test_published_numbers_are_complete_and_of_the_right_size():
    assert {key[1:] for key in published.RATIOS} == {
        ("mnist", 0.03), ("mnist", 0.3), *((d, e / 255) for d in ("cifar10", "tiny-imagenet") for e in (8, 25))
    }  # fmt: skip
    assert all(len(values) == 4 for values in published.RATIOS.values())
    assert all(0 <= v <= 100 for table in published.ACCURACIES.values() for row in table.values() for v in row)
    # Transcribed by hand a second time.
    assert published.published_accuracies("cifar10")["20PGD20"]["TLA"] == 50.03
    assert published.published_accuracies("mnist")["BB100"]["UM"] == 81.81
    assert published.RATIOS["r_prime", "cifar10", 25 / 255][2] == 3.796
    assert published.published_accuracies("/my/images") == {}


def write(folder, stem, numbers):
    (folder / f"{stem}.json").write_text(json.dumps({"numbers": numbers}))


@pytest.fixture
def folder(tmp_path):
    """A scale's sidecars, with few numbers."""
    per_class = [
        {"dataset": "mnist", "eps": 0.3, "ratio": "r_prime", "method": method, "class": str(k), "value": v + k / 100}
        for method, v in (("UM", 4.0), ("AT", 1.4), ("ALP", 1.1), ("TLA", 1.3))
        for k in range(5)
    ]
    write(tmp_path, "table3", {"records": [], "more": {"per_class": per_class}})
    rows = [
        {"model": name, "clean": 0.99, "clean se": 0.001, "PGD40": value, "PGD40 se": 0.003}
        for name, value in (("UM", 0.0), ("AT", 0.96), ("TLA", 0.90))
    ]
    failed = {"tla": ["PGD40, black_box: x"]}
    write(tmp_path, "main_accuracy-mnist", {"records": rows, "more": {"failed_checks": failed}})
    write(tmp_path, "table4", {"records": [
        {"value": "0", "robust": 0.94, "robust se": 0.01, "paper": 0.9482},
        {"value": "0.5", "robust": 0.95, "robust se": 0.01, "paper": 0.9696},
    ], "more": {"failed_checks": {"0": [], "0.5": ["PGD100, steps: y"]}}})  # fmt: skip
    differences = {"um at": 3.0, "um at se": 0.1, "at tla": -0.1, "at tla se": 0.08}
    write(tmp_path, "table3-differences", {"records": [{"dataset": "mnist", "eps": 0.3, "images": 9} | differences]})
    rises = {"AT": 0.5, "ALP": 0.6, "TLA": 0.2}
    per_image = [{"model": name, "row": k, "rise": value + k} for name, value in rises.items() for k in range(3)]
    write(tmp_path, "fig8-rise", {"records": [], "more": {"per_image": per_image}})
    return tmp_path


def test_groups_come_from_the_sidecars_with_the_papers_numbers(folder):
    found = {(g.artefact, g.quantity): g for g in groups(folder, make_scale(datasets=("mnist",)))}
    ratios = found["table3", "r′ at ε 0.3"]
    assert ratios.numbers["UM"].ours.value == pytest.approx(4.02) and ratios.numbers["UM"].paper == Estimate(2.159, 0)
    assert ratios.difference("AT", "TLA").error == pytest.approx(0)  # class by class the same difference
    assert ratios.verdict("UM") == ORDERED
    assert ratios.verdict("AT") == ratios.verdict("TLA") == DISAGREES  # in the paper AT has the lowest
    accuracies = found["main_accuracy", "PGD40"]
    assert accuracies.numbers["AT"].paper.value == pytest.approx(0.9658)
    assert accuracies.verdict("TLA") == DISAGREES and accuracies.verdict("UM") == AGREES
    assert found["table4", "TLA under PGD100"].verdict("0") == AGREES


def test_areas_under_curves_are_read_of_both_kinds_of_gaussians(folder):
    write(folder, "detection-mnist", [{"name": "TLA", "auc": 0.8, "auc se": 0.02}])
    record = {"method": "TLA", "shared": 0.8, "own, unit length": 0.95, "own, unit length se": 0.01}
    write(folder, "detection-densities-mnist", {"records": [record]})
    found = {each.artefact: each for each in groups(folder, make_scale(datasets=("mnist",)))}
    assert found["detection"].numbers == {"TLA": Number(Estimate(0.8, 0.02), Estimate(0.9494, 0.02))}
    assert found["detection-densities"].numbers == {"TLA": Number(Estimate(0.95, 0.01), Estimate(0.9494, 0.01))}


def test_ratios_are_compared_over_the_classes_that_both_methods_have(folder):
    """TLA is above UM in each of nine classes; UM's mean is higher all the same, for a class that TLA lacks."""
    values = {"UM": [1.0 + k / 100 for k in range(9)] + [9.0], "TLA": [1.1 + k / 90 for k in range(9)] + [None]}
    per_class = [
        {"dataset": "tiny-imagenet", "eps": 25 / 255, "ratio": "r", "method": method, "class": str(k), "value": value}
        for method, column in values.items()
        for k, value in enumerate(column)
    ]
    write(folder, "table3", {"records": [], "more": {"per_class": per_class}})
    (group,) = groups(folder, make_scale(datasets=("tiny-imagenet",)))[:1]
    assert group.numbers["UM"].ours.value > group.numbers["TLA"].ours.value
    difference = group.difference("TLA", "UM")
    reference = stats.ttest_rel(values["TLA"][:9], values["UM"][:9])
    assert difference.value > 0 and difference.freedom == reference.df == 8
    assert difference.value / difference.error == pytest.approx(reference.statistic)
    assert group.verdict("TLA") == ORDERED  # as in the paper, which has 0.9293 and 0.9995


def seeds_row(method, **by_seed):
    """A record as `ratio_spread_table` makes it."""
    values = {"r_prime": list(by_seed.values()), "r": [1.0 for _ in by_seed]}
    row = {"method": method, "dataset": "mnist", "seeds": len(by_seed)}
    for name, of_seeds in values.items():
        row |= {name: float(np.mean(of_seeds)), f"{name} sd": float(np.std(of_seeds, ddof=1))}
    return row | {"by seed": {name: dict(zip(by_seed, of_seeds, strict=True)) for name, of_seeds in values.items()}}


def test_the_table_over_seeds_keeps_the_values_that_differences_are_paired_by(folder):
    def representations(variant, *, dataset, seed):
        """Random ones, of two classes; each image is taken for what it is."""
        draw = np.random.default_rng([len(variant), seed]).normal(size=(2, 40, 5))
        labels = np.arange(40) % 2
        parts = {"features": draw[0], "adv_features": draw[1], "labels": labels, "adv_predictions": labels}
        return SimpleNamespace(**parts, class_names=("0", "1"), accuracy=0.9, robust_accuracy=0.5)

    seeds = {"at": (0, 1, 2), "tla": (1, 2, 5)}
    methods = ("at", "tla")
    scale = SimpleNamespace(datasets=["mnist"], methods=methods, seeds_of=lambda _: (0, 1, 2), analysis_images={})
    results = SimpleNamespace(
        scale=scale, title=str.upper, representations_of_seeds=lambda method, *, dataset: {
            seed: representations(method, dataset=dataset, seed=seed) for seed in seeds[method]
        },
    )  # fmt: skip
    save_table(ratio_spread_table(results), folder / "table3-seeds")
    by_seed = {
        (method, seed): ratio_r_prime(representations(method, dataset="mnist", seed=seed)).value
        for method in seeds
        for seed in seeds[method]
    }
    group = next(g for g in groups(folder, make_scale(datasets=("mnist",))) if g.artefact == "table3-seeds")
    assert group.numbers["AT"].ours.value == pytest.approx(np.mean([by_seed["at", seed] for seed in (0, 1, 2)]))
    reference = stats.ttest_rel(*([by_seed[method, seed] for seed in (1, 2)] for method in seeds))
    difference = group.difference("AT", "TLA")
    assert difference.value / difference.error == pytest.approx(reference.statistic) and difference.freedom == 1


@pytest.mark.parametrize("pairs_stored", [True, False])
def test_differences_over_seeds_are_paired_where_the_values_are_there_and_welchs_otherwise(folder, pairs_stored):
    at, tla = {"0": 1.08, "1": 1.13, "2": 1.05}, {"0": 1.10, "1": 1.152, "2": 1.071}
    rows = [seeds_row("AT", **at), seeds_row("TLA", **tla)]
    rows = rows if pairs_stored else [{key: row[key] for key in row if key != "by seed"} for row in rows]
    write(folder, "table3-seeds", {"records": rows})
    scale = make_scale(datasets=("mnist",))
    group = next(g for g in groups(folder, scale) if g.artefact == "table3-seeds")
    one, other = list(at.values()), list(tla.values())
    reference = stats.ttest_rel(one, other) if pairs_stored else stats.ttest_ind(one, other, equal_var=False)
    difference = group.difference("AT", "TLA")
    assert difference.value / difference.error == pytest.approx(reference.statistic)
    assert difference.freedom == pytest.approx(reference.df)
    assert difference.is_not_zero == (reference.pvalue < 0.05)
    assert ("paired by seed" if pairs_stored else "Welch's t") in report(folder, scale)


@pytest.mark.parametrize(("seeds", "verdict"), [(3, AGREES), (30, DISAGREES)])
def test_three_errors_of_few_seeds_are_no_difference(folder, seeds, verdict):
    row = {"method": "AT", "dataset": "mnist", "seeds": seeds, "r_prime": 1.042 + 0.03, "r": None, "r sd": None}
    write(folder, "table3-seeds", {"records": [row | {"r_prime sd": 0.01 * seeds**0.5}]})
    (group,) = (g for g in groups(folder, make_scale(datasets=("mnist",))) if g.artefact == "table3-seeds")
    ours = group.numbers["AT"].ours
    assert (ours.value - group.numbers["AT"].paper.value) / ours.error == pytest.approx(3)
    assert group.verdict("AT") == verdict


def test_claims_are_judged_by_paired_differences(folder):
    of_um, _ = claims(folder, [g for g in groups(folder, make_scale(datasets=("mnist",))) if g.artefact == "table3"])
    assert of_um.text == "UM has the highest r′ at ε 0.3 on mnist" and of_um.verdict == "confirmed"
    assert of_um.numbers == "UM 4.020 ± 0.007, AT 1.420 ± 0.007, ALP 1.120 ± 0.007, TLA 1.320 ± 0.007"
    (claim,) = claims(folder, [])
    assert "rises least" in claim.text and claim.verdict == "confirmed"
    per_image = [{"model": m, "row": r, "rise": r} for m in ("AT", "ALP", "TLA") for r in (0.1, 0.2, 0.3)]
    write(folder, "fig8-rise", {"records": [], "more": {"per_image": per_image}})
    assert claims(folder, [])[0].verdict == "within noise"
    precision = {"AT": 0.5, "ALP": 0.4, "TLA": 0.3}
    records = [{"method": name, "adversarial": value} for name, value in precision.items()]
    write(folder, "fig7-precision", {"records": records, "more": {"queries": 5000}})
    assert [c.verdict for c in claims(folder, [])] == ["within noise", "not confirmed"]
    write(folder, "fig7-precision", {"records": records, "more": {"queries": 20}})
    assert [c.verdict for c in claims(folder, [])] == ["within noise", "within noise"]  # of so few queries


def test_the_document_names_verdicts_reasons_and_failed_checks(folder):
    reasons = [{"artefact": "table3", "dataset": "mnist", "reason": "Six epochs."}]
    scale = make_scale(datasets=("mnist",))
    text = report(folder, scale, reasons)
    assert text == report(folder, scale, reasons)
    assert "| r′ at ε 0.3 | UM | 4.020 ± 0.007 | 2.159 | same ordering only |" in text
    assert "| mnist, ε 0.3 | UM − AT | 3.0000 ± 0.1000 | higher |" in text
    assert "| mnist, ε 0.3 | AT − TLA | -0.1000 ± 0.0800 | within noise |" in text
    assert "r′ at ε 0.3 TLA: Six epochs." in text and "PGD40 TLA: Not looked into." in text
    assert "* mnist, TLA: PGD40, black_box: x" in text and "* mnist, Table 4: λ1, 0.5: PGD100, steps: y" in text
    assert "| confirmed |" in text and " nan" not in text


def test_the_document_puts_the_strongest_attack_beside_autoattack_and_pgd(folder):
    scale = make_scale(datasets=("mnist",))
    assert "strongest" not in report(folder, scale), "nobody has measured it"
    stored = json.loads((folder / "main_accuracy-mnist.json").read_text())["numbers"]
    stored["records"][1] |= {"PGD100": 0.93, "PGD100 se": 0.01, "strongest": 0.9, "strongest se": 0.02}
    write(folder, "main_accuracy-mnist", stored)
    text = report(folder, scale)
    assert "## What the strongest attack leaves" in text
    assert "| mnist | AT | 93.00 ± 1.00 | 90.00 ± 2.00 | – |" in text and "| mnist | TLA | " not in text


@pytest.mark.parametrize("content", [b"", b"\xff", b"[]", b'{"numb', b"{}"])
def test_a_damaged_sidecar_is_named_with_what_makes_it_again(content, folder):
    (folder / "table3-differences.json").write_bytes(content)
    with pytest.raises(ManifestError, match=r"table3-differences.json is damaged: .*tla notebooks table3_distance_rat"):
        report(folder, make_scale(datasets=("mnist",)), [])


def test_a_folder_without_numbers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no number that the paper has"):
        report(tmp_path, make_scale(datasets=("mnist",)))
