import numpy as np
import pytest
from oracles import distance
from oracles import linear_cka as naive_linear_cka

from analysis import class_ratio_errors, linear_cka, ratio_r, ratio_r_prime
from analysis.ratio_errors import bootstrap_r_prime
from analysis.representations import RepresentationSet

RNG = np.random.default_rng(0)


def two(n, d, e):
    x = RNG.normal(size=(n, d))
    return x, x[:, :1] + RNG.normal(size=(n, e))


@pytest.mark.parametrize(("n", "d", "e"), [(12, 3, 5), (7, 20, 4), (6, 9, 11)])
def test_linear_cka_is_what_loops_over_gram_matrices_say(n, d, e):
    x, y = two(n, d, e)
    assert linear_cka(x, y) == pytest.approx(naive_linear_cka(x, y), rel=1e-10)
    assert linear_cka(x, y) == pytest.approx(linear_cka(y, x), rel=1e-12)


def test_a_turned_scaled_and_shifted_representation_is_the_same():
    x, y = two(15, 4, 4)
    turn = np.linalg.qr(RNG.normal(size=(4, 4)))[0]
    assert linear_cka(x, 3 * x @ turn - 7) == pytest.approx(1, abs=1e-12)
    assert linear_cka(x, y) == pytest.approx(linear_cka(x @ turn, 0.1 * y + 5), rel=1e-9)
    assert linear_cka(x, np.asarray(x, np.float32)) == pytest.approx(1, abs=1e-6)


def test_what_has_no_cka_raises():
    x, _ = two(5, 3, 3)
    with pytest.raises(ValueError, match=r"as many rows, 3 or more\. Got 5 and 4"):
        linear_cka(x, x[:4])
    with pytest.raises(ValueError, match="second is the same for all images"):
        linear_cka(x, np.ones((5, 2)))
    with pytest.raises(ValueError, match="first row 2 holds NaN"):
        linear_cka(np.where(np.arange(5)[:, None] == 2, np.nan, x), x)


# Errors of r and r' by class ------------------------------------------------------------------------------------------


def made(n=24, seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    features = rng.normal(loc=2 * np.eye(5)[labels], size=(n, 5))
    adv = features + rng.normal(size=(n, 5))
    return RepresentationSet.from_arrays(
        features, labels, adv_features=adv, predictions=labels, adv_predictions=np.where(labels == 2, 2, 1 - labels),
        class_names=("a", "b", "c"),
    )  # fmt: skip


def test_the_error_of_a_class_is_that_of_its_images_alone():
    reps = made()
    errors = class_ratio_errors(reps, "r_prime", n_resamples=50)
    for k in range(3):
        alone = reps.subset(reps.labels == k)
        assert errors[k] == pytest.approx(bootstrap_r_prime(alone, n_resamples=50).std(ddof=1), rel=1e-12)
        assert ratio_r_prime(alone).per_class[k] == pytest.approx(ratio_r_prime(reps).per_class[k], rel=1e-12)


def test_resamples_of_r_are_what_loops_say(monkeypatch):
    reps, counts = made(12), []
    real = np.random.default_rng(3)

    class Recorded:
        def multinomial(self, *arguments, **options):
            counts.append(real.multinomial(*arguments, **options))
            return counts[-1]

    monkeypatch.setattr(np.random, "default_rng", lambda state: Recorded())
    errors = class_ratio_errors(reps, "r", n_resamples=4)
    assert np.isnan(errors[2]) and np.isnan(ratio_r(reps).per_class[2])  # nothing is mistaken for it
    for k, (clean_counts, mistaken_counts) in enumerate(zip(counts[::2], counts[1::2], strict=True)):
        clean, mistaken = reps.features[reps.labels == k], reps.adv_features[reps.labels == 1 - k]
        values = []
        for of_clean, of_mistaken in zip(clean_counts, mistaken_counts, strict=True):
            drawn = [i for i, times in enumerate(of_clean) for _ in range(times)]
            within = [distance(clean[i], clean[j], "angular") for i in drawn for j in drawn if i != j]
            across = [times * distance(q, clean[i], "angular") for q, times in zip(mistaken, of_mistaken, strict=True)
                      for i in drawn]  # fmt: skip
            values.append(sum(across) / len(drawn) / of_mistaken.sum() / np.mean(within) if within else np.nan)
        assert errors[k] == pytest.approx(np.nanstd(values, ddof=1), rel=1e-6)


def test_the_spread_of_r_is_that_over_fresh_images():
    over_samples = np.std([ratio_r(made(120, seed)).per_class[0] for seed in range(40)], ddof=1)
    errors = [class_ratio_errors(made(120, seed), "r", n_resamples=40)[0] for seed in range(40)]
    assert np.mean(errors) == pytest.approx(over_samples, rel=0.3)


def test_other_words_and_numbers_are_refused():
    with pytest.raises(ValueError, match="quantity must be one of r, r_prime"):
        class_ratio_errors(made(), "both")
    with pytest.raises(ValueError, match="n_resamples must be a whole number of at least 2"):
        class_ratio_errors(made(), "r", n_resamples=1)
