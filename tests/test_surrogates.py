"""Accuracy models against brute force, textbook formulas and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import approx_fprime
from scipy.stats import kendalltau
from sklearn.gaussian_process.kernels import RBF, DotProduct
from synthetic_search import Accuracy, cost_table, every_row, small_space

from predictors.surrogates import AdditiveAccuracy, EnsembleSurrogate, GaussianProcess
from predictors.surrogates.features import AdditiveFeatures, GeneFeatures
from predictors.surrogates.gaussian_process import _Posterior
from search import Constraint
from search.exact import optimise
from search_space import load_space
from search_space.errors import UsageError

SPACE = load_space("digits")
RNG = np.random.default_rng(0)
ROWS = np.unique(SPACE.sample(RNG, 400), axis=0)
MODELS = {
    "additive": lambda: AdditiveAccuracy(SPACE),
    "gaussian_process": lambda: GaussianProcess(SPACE, [cost_table(SPACE, "latency").predict]),
    "extra_trees": lambda: EnsembleSurrogate(SPACE, trees=40),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_models_rank_what_they_have_not_seen_and_know_how_well(make):
    values = Accuracy(SPACE).of_rows(ROWS)
    model = make()
    model.fit(ROWS[:150], values[:150])
    prediction = model.predict(ROWS[150:])
    assert prediction.mean.shape == prediction.deviation.shape == (len(ROWS) - 150,)
    assert (prediction.deviation >= 0).all()
    tau = kendalltau(values[150:], prediction.mean).statistic
    assert tau > 0.3
    assert model.rank_quality == pytest.approx(tau, abs=0.15)
    again = make()
    again.fit(ROWS[:150], values[:150])
    np.testing.assert_array_equal(again.predict(ROWS[150:]).mean, prediction.mean)


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_constant_values_have_no_rank_quality(make):
    model = make()
    model.fit(ROWS[:20], np.full(20, 0.5))
    np.testing.assert_allclose(model.predict(ROWS[20:30]).mean, 0.5)
    assert model.rank_quality is None


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_one_evaluation_is_too_few(make):
    with pytest.raises(UsageError, match="1 evaluations fit no accuracy model"):
        make().fit(ROWS[:1], np.zeros(1))


# Additive -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [small_space(), SPACE])
def test_whatever_is_linear_in_the_features_is_a_table(space):
    features = AdditiveFeatures(space, 0.7)
    rows = every_row(space)[::7] if space.size < 10_000 else ROWS
    encoded = features.encode(rows)
    weights = np.random.default_rng(1).normal(size=encoded.shape[1])
    table = features.table(weights, 0.3)
    np.testing.assert_allclose(table.predict(rows), 0.3 + encoded @ weights)


def test_the_fitted_table_predicts_what_the_model_does():
    model = AdditiveAccuracy(SPACE)
    model.fit(ROWS[:60], Accuracy(SPACE).of_rows(ROWS[:60]))
    np.testing.assert_allclose(model.table().predict(ROWS), model.predict(ROWS).mean)


def test_an_additive_truth_is_recovered_with_its_optimum():
    """Rows are enough and noise is none: predictions are exact but for the smallest penalty."""
    features = AdditiveFeatures(SPACE, 1.0)
    truth = features.table(RNG.normal(size=features.encode(ROWS).shape[1]), 0.5)
    rows = np.unique(SPACE.sample(RNG, 3000), axis=0)
    model = AdditiveAccuracy(SPACE)
    model.fit(rows[:2500], truth.predict(rows[:2500]))
    values = truth.predict(rows[2500:])
    np.testing.assert_allclose(model.predict(rows[2500:]).mean, values, atol=1e-3 * np.ptp(values))
    best = model.table().argmax()
    top = truth.predict(truth.argmax()[None])[0]
    assert truth.predict(best[None])[0] == pytest.approx(top, abs=1e-6 * abs(top))


def test_the_exact_solver_takes_the_fitted_table():
    space, rng = small_space(), np.random.default_rng(0)
    rows, limit = every_row(space), Constraint("latency_ms", maximum=1.2)
    latency, drawn = cost_table(space, "latency"), space.sample(rng, 60)
    model = AdditiveAccuracy(space)
    model.fit(drawn, Accuracy(space).of_rows(drawn))
    found = optimise(space, model.table(), (limit,), {"latency_ms": latency}, gap=1e-9)
    feasible = rows[limit.violation(latency.predict(rows)) == 0]
    assert 0 < len(feasible) < len(rows)
    assert found.value == pytest.approx(model.predict(feasible).mean.max())


@pytest.mark.parametrize("n", [12, 300])
def test_leave_one_out_is_that_of_refitting(n):
    """Fewer rows than features, and more; the same penalty and features in every refit."""
    rows = ROWS[:n]
    values = Accuracy(SPACE).of_rows(rows) + 0.01 * np.sin(7.0 * np.arange(n))
    model = AdditiveAccuracy(SPACE, finer=(0.6,), penalties=(0.8,))
    model.fit(rows, values)
    for i in range(0, n, max(1, n // 6)):
        others = np.arange(n) != i
        single = AdditiveAccuracy(SPACE, finer=(0.6,), penalties=(0.8,))
        encoded = AdditiveFeatures(SPACE, 0.6).encode(rows)
        # the features' mean is that of all rows, which ridge with an intercept does not notice
        single.fit(rows[others], values[others])
        assert single.predict(rows[[i]]).mean[0] == pytest.approx(model.left_out[i])
        x = encoded[others] - encoded[others].mean(axis=0)
        y = values[others] - values[others].mean()
        weights = np.linalg.solve(x.T @ x + 0.8 * np.eye(x.shape[1]), x.T @ y)
        textbook = values[others].mean() + (encoded[i] - encoded[others].mean(axis=0)) @ weights
        assert model.left_out[i] == pytest.approx(textbook)


def test_deviations_are_those_of_bayesian_regression():
    rows, penalty = ROWS[:40], 0.5
    values = Accuracy(SPACE).of_rows(rows)
    model = AdditiveAccuracy(SPACE, finer=(0.6,), penalties=(penalty,))
    model.fit(rows, values)
    encoded = AdditiveFeatures(SPACE, 0.6).encode(ROWS)
    centred = encoded - encoded[:40].mean(axis=0)
    x = centred[:40]
    inverse = np.linalg.inv(x.T @ x + penalty * np.eye(x.shape[1]))
    shape = np.sqrt(np.einsum("ni,ij,nj->n", centred, inverse, centred))
    found = model.predict(ROWS).deviation
    np.testing.assert_allclose(found / found.mean(), shape / shape.mean(), rtol=1e-6)


# Gaussian process ---------------------------------------------------------------------------------


def test_a_gaussian_process_is_that_of_scikit_learn():
    """Each part of the covariance by itself, since scikit-learn has one set of points at a time."""
    model, values = GaussianProcess(SPACE, finer=0.8), Accuracy(SPACE).of_rows(ROWS)
    model.fit(ROWS[:50], values[:50])
    tuning, rest = model.tuning, (values[:50] - values[:50].mean()) / values[:50].std()
    encoded = AdditiveFeatures(SPACE, 0.8).encode(ROWS)
    points = encoded - encoded[:50].mean(axis=0)
    points /= np.sqrt((points[:50] ** 2).sum(axis=1).mean())
    genes = GeneFeatures(SPACE)
    single = genes.encode(ROWS)
    weighted = single * np.sqrt(tuning.weights)[genes.group]
    trend, smooth, sums, joint = tuning.amplitudes
    covariance = (
        trend * DotProduct(0.0)(points)
        + smooth * RBF(np.sqrt(2) * tuning.length)(points)
        + sums * 2 / SPACE.num_genes * DotProduct(0.0)(single)
        + joint * RBF(np.sqrt(0.5))(weighted)
    )
    told, cross = covariance[:50, :50] + (tuning.noise + 1e-8) * np.eye(50), covariance[50:, :50]
    prediction = model.predict(ROWS[50:])
    mean = values[:50].mean() + values[:50].std() * cross @ np.linalg.solve(told, rest)
    np.testing.assert_allclose(prediction.mean, mean, rtol=1e-6)
    variance = np.diag(covariance[50:, 50:] - cross @ np.linalg.solve(told, cross.T))
    deviation = np.sqrt(variance) * values[:50].std()
    np.testing.assert_allclose(prediction.deviation, deviation, rtol=1e-5)


def test_the_slope_that_tunes_a_gaussian_process_is_that_of_differences():
    rows, genes = ROWS[:12], GeneFeatures(SPACE)
    rest = np.random.default_rng(0).normal(size=12)
    points = AdditiveFeatures(SPACE).encode(rows)
    points -= points.mean(axis=0)
    posterior = _Posterior(points / np.sqrt(60), genes.encode(rows), genes.group, rest)
    at = posterior.mean + 0.3 * np.random.default_rng(1).normal(size=len(posterior.mean))
    numeric = approx_fprime(at, lambda t: posterior(t)[0], 1e-6)
    np.testing.assert_allclose(posterior(at)[1], numeric, rtol=1e-4, atol=1e-4)
    assert posterior(posterior.mode(at))[0] < posterior(at)[0]


def test_what_only_one_position_does_is_learnt():
    """One block's choice, at one place, decides; sums over kinds of blocks cannot tell it."""
    gene = SPACE.block_columns(2).start
    values = np.where(ROWS[:, gene] % 3 == 0, 0.9, 0.5)
    model = GaussianProcess(SPACE)
    model.fit(ROWS[:200], values[:200])
    assert np.abs(model.predict(ROWS[200:]).mean - values[200:]).max() < 0.1
    assert model.tuning.weights.argmax() == gene


def test_genes_are_apart_by_half_and_by_how_unlike_they_are():
    genes = GeneFeatures(SPACE)
    row = SPACE.encode([SPACE.smallest])
    others = np.repeat(row, 2, axis=0)
    others[:, SPACE.width_columns[0]] = 1, 2  # of three widths
    apart = ((genes.encode(others) - genes.encode(row)) ** 2).sum(axis=1)
    np.testing.assert_allclose(apart, [0.75, 1.0])
    assert len(genes.group) == genes.encode(row).shape[1]


def test_a_gaussian_process_leaves_one_out_as_by_refitting():
    rows, values = ROWS[:30], Accuracy(SPACE).of_rows(ROWS[:30])
    model = GaussianProcess(SPACE)
    model.fit(rows, values)
    frame, points, single = model._frame, model._points, model._single
    rest = (values - frame.level) / frame.scale
    covariance = model.covariance(points, points, single, single)
    told = covariance + (model.tuning.noise + 1e-8) * np.eye(30)
    for i in (0, 11, 29):
        others = np.arange(30) != i
        weights = np.linalg.solve(told[others][:, others], rest[others])
        expected = frame.level + frame.scale * (covariance[i, others] @ weights)
        assert model._left_out[i] == pytest.approx(expected)


def test_a_gaussian_process_is_surest_where_it_was_told():
    model, values = GaussianProcess(SPACE), Accuracy(SPACE).of_rows(ROWS)
    model.fit(ROWS[:80], values[:80])
    told, new = model.predict(ROWS[:80]).deviation, model.predict(ROWS[80:]).deviation
    assert told.max() < np.median(new)
    error = np.abs(model.predict(ROWS[80:]).mean - values[80:])
    assert np.mean(error < 2 * new) > 0.8
