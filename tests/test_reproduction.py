import json

import pytest
from test_scales import make_scale

from analysis import published
from analysis.reproduction import AGREES, DISAGREES, NOISE, ORDERED, Group, Number, claims, groups, report


def group(**numbers):
    """Ours, its error, and the paper's."""
    return Group("main_accuracy", "cifar10", "PGD20", {k.upper(): Number(*v) for k, v in numbers.items()})


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ({"at": (0.45, 0.01, 0.46), "tla": (0.50, 0.01, 0.60)}, AGREES),
        ({"at": (0.20, 0.01, 0.46), "tla": (0.30, 0.01, 0.60)}, ORDERED),
        ({"at": (0.30, 0.01, 0.46), "tla": (0.20, 0.01, 0.60)}, DISAGREES),
        ({"at": (0.30, 0.01, 0.46), "tla": (0.31, 0.01, 0.60)}, NOISE),
        ({"at": (0.30, 0.01, 0.46)}, DISAGREES),
        # One pair as in the paper, one the other way round.
        ({"at": (0.30, 0.01, 0.46), "um": (0.0, 0.0, 0.0), "tla": (0.2, 0.01, 0.6)}, DISAGREES),
        # What the paper itself does not order cannot be contradicted.
        ({"at": (0.30, 0.01, 0.46, 0.01), "tla": (0.20, 0.01, 0.47, 0.01)}, NOISE),
    ],
)
def test_verdicts(numbers, verdict):
    assert group(**numbers).verdict("AT") == verdict


def test_a_difference_of_paired_values_has_its_own_error():
    numbers = {"AT": Number(1.3, 0.2, 1.342), "TLA": Number(1.2, 0.2, 1.0)}
    independent = Group("table3", "cifar10", "r′", numbers)
    paired = Group("table3", "cifar10", "r′", numbers, lambda one, other: 0.01)
    assert independent.verdict("TLA") == AGREES
    far = {"AT": Number(2.3, 0.1, 1.342), "TLA": Number(2.2, 0.1, 1.191)}
    assert Group("table3", "cifar10", "r′", far).verdict("TLA") == NOISE
    assert Group("table3", "cifar10", "r′", far, paired.differ).verdict("TLA") == ORDERED


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
    assert ratios.numbers["UM"].ours == pytest.approx(4.02) and ratios.numbers["UM"].paper == 2.159
    assert ratios.difference_error("AT", "TLA") == pytest.approx(0)  # class by class the same difference
    assert ratios.verdict("UM") == ORDERED
    assert ratios.verdict("AT") == ratios.verdict("TLA") == DISAGREES  # in the paper AT has the lowest
    accuracies = found["main_accuracy", "PGD40"]
    assert accuracies.numbers["AT"].paper == pytest.approx(0.9658)
    assert accuracies.verdict("TLA") == DISAGREES and accuracies.verdict("UM") == AGREES
    assert found["table4", "TLA under PGD100"].verdict("0") == AGREES


def test_areas_under_curves_are_read_of_both_kinds_of_gaussians(folder):
    write(folder, "detection-mnist", [{"name": "TLA", "auc": 0.8, "auc se": 0.02}])
    record = {"method": "TLA", "shared": 0.8, "own, unit length": 0.95, "own, unit length se": 0.01}
    write(folder, "detection-densities-mnist", {"records": [record]})
    found = {each.artefact: each for each in groups(folder, make_scale(datasets=("mnist",)))}
    assert found["detection"].numbers == {"TLA": Number(0.8, 0.02, 0.9494, 0.02)}
    assert found["detection-densities"].numbers == {"TLA": Number(0.95, 0.01, 0.9494, 0.01)}


def test_ratios_over_seeds_have_the_error_of_their_mean(folder):
    scale = make_scale(datasets=("mnist",))
    found = {"AT": (1.08, 0.03), "ALP": (1.18, 0.03), "TLA": (1.21, 0.03)}
    records = [
        {"method": name, "dataset": "mnist", "seeds": 9, "r_prime": mean, "r_prime sd": sd, "r": 1.4, "r sd": sd}
        for name, (mean, sd) in found.items()
    ]  # fmt: skip
    write(folder, "table3-seeds", {"records": records})
    over_seeds = {g.quantity: g for g in groups(folder, scale) if g.artefact == "table3-seeds"}
    assert list(over_seeds) == ["r′ at ε 0.3", "r at ε 0.3"]
    assert over_seeds["r′ at ε 0.3"].numbers["AT"] == Number(1.08, pytest.approx(0.01), 1.042)
    assert over_seeds["r′ at ε 0.3"].verdict("AT") == ORDERED
    assert "## Table 3 over seeds, mnist" in report(folder, scale)


def test_claims_are_judged_by_paired_differences(folder):
    of_um, _ = claims(folder, [g for g in groups(folder, make_scale(datasets=("mnist",))) if g.artefact == "table3"])
    assert of_um.text == "UM has the highest r′ at ε 0.3 on mnist" and of_um.found == "confirmed"
    assert of_um.numbers == "UM 4.020 ± 0.007, AT 1.420 ± 0.007, ALP 1.120 ± 0.007, TLA 1.320 ± 0.007"
    (claim,) = claims(folder, [])
    assert "rises least" in claim.text and claim.found == "confirmed"
    per_image = [{"model": m, "rise": r} for m in ("AT", "ALP", "TLA") for r in (0.1, 0.2, 0.3)]
    write(folder, "fig8-rise", {"records": [], "more": {"per_image": per_image}})
    assert claims(folder, [])[0].found == "within noise"
    precision = {"AT": 0.5, "ALP": 0.4, "TLA": 0.3}
    records = [{"method": name, "adversarial": value} for name, value in precision.items()]
    write(folder, "fig7-precision", {"records": records, "more": {"queries": 5000}})
    assert [c.found for c in claims(folder, [])] == ["within noise", "not confirmed"]
    write(folder, "fig7-precision", {"records": records, "more": {"queries": 20}})
    assert [c.found for c in claims(folder, [])] == ["within noise", "within noise"]  # of so few queries


def test_the_document_names_verdicts_reasons_and_failed_checks(folder):
    reasons = [{"artefact": "table3", "dataset": "mnist", "reason": "Six epochs."}]
    scale = make_scale(datasets=("mnist",))
    text = report(folder, scale, reasons)
    assert text == report(folder, scale, reasons)
    assert "| r′ at ε 0.3 | UM | 4.020 ± 0.007 | 2.159 | same ordering |" in text
    assert "| mnist, ε 0.3 | UM − AT | 3.0000 ± 0.1000 | higher |" in text
    assert "| mnist, ε 0.3 | AT − TLA | -0.1000 ± 0.0800 | within noise |" in text
    assert "r′ at ε 0.3 TLA: Six epochs." in text and "PGD40 TLA: Not looked into." in text
    assert "* mnist, TLA: PGD40, black_box: x" in text and "* mnist, Table 4: λ1, 0.5: PGD100, steps: y" in text
    assert "| confirmed |" in text and " nan" not in text


def test_a_folder_without_numbers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no number that the paper has"):
        report(tmp_path, make_scale(datasets=("mnist",)))
