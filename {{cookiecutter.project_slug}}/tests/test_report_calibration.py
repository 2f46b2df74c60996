"""The calibration error is 0 for probabilities that are right, and what it should be for those that are not."""

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from sklearn.calibration import calibration_curve

from kfold.report.calibration import NUM_BINS, calibration_section, claims, draw, reliability
from kfold.report.parts import Picture, Table, Text


def calibrated(num_rows, seed=0):
    generator = np.random.default_rng(seed)
    probabilities = generator.random(num_rows)
    return probabilities, generator.random(num_rows) < probabilities


def test_the_error_of_calibrated_probabilities_goes_to_0_with_more_rows():
    errors = [reliability(*calibrated(num_rows)).error for num_rows in (100, 10_000, 1_000_000)]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.002


def test_the_bins_are_scikit_learns():
    probabilities, outcomes = calibrated(5000)
    probabilities[:4] = 0, 1, 1 / NUM_BINS, 2 / NUM_BINS  # on the edges
    found = reliability(probabilities, outcomes)
    shares, means = calibration_curve(outcomes, probabilities, n_bins=NUM_BINS)
    np.testing.assert_allclose(found.shares, shares)
    np.testing.assert_allclose(found.probabilities, means)
    assert found.counts.sum() == 5000


def test_a_constant_claim_errs_by_its_distance():
    found = reliability(np.full(1000, 0.9), np.arange(1000) < 600)
    assert found.error == pytest.approx(0.3)
    assert found.excess == pytest.approx(0.3)
    assert found.error > found.noise


def test_bins_count_by_their_rows():
    probabilities = np.repeat([0.9, 0.1], [900, 100])
    outcomes = np.concatenate([np.arange(900) < 810, np.ones(100, bool)])  # 90% of the first, all of the second
    assert reliability(probabilities, outcomes).error == pytest.approx(0.1 * 0.9)


def test_the_noise_is_what_19_of_20_calibrated_samples_stay_under():
    samples = [reliability(*calibrated(2000, seed)) for seed in range(400)]
    under = np.mean([sample.error <= sample.noise for sample in samples])
    assert 0.92 <= under <= 0.98


def test_what_is_claimed_depends_on_the_task():
    targets, predictions = np.eye(3)[[0, 1, 2]], np.array([[0.5, 0.3, 0.2], [0.6, 0.4, 0.0], [0.0, 0.1, 0.9]])
    probabilities, outcomes = claims("multiclass", targets, predictions)
    assert probabilities.tolist() == [0.5, 0.6, 0.9]
    assert outcomes.tolist() == [True, False, True]
    assert len(claims("multilabel", targets, predictions)[0]) == 9


def test_the_legend_hides_no_point():
    figure = draw(reliability(*calibrated(5000)))
    FigureCanvasAgg(figure).draw()
    legends = [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]
    assert [text.get_text().split(";")[0] for legend in legends for text in legend.get_texts()] == [
        "calibrated",
        "found",
    ]
    assert not any(legend.get_window_extent().overlaps(axes.bbox) for legend in legends for axes in figure.axes)


@pytest.mark.parametrize("task", ["multiclass", "binary", "multilabel"])
def test_the_section_states_definition_verdict_and_draws(task):
    generator = np.random.default_rng(1)
    num_columns = 1 if task == "binary" else 4
    predictions = generator.dirichlet(np.ones(4), 500)[:, :num_columns]
    targets = (
        np.eye(4)[[generator.choice(4, p=row) for row in predictions]]
        if task == "multiclass"
        else generator.random(predictions.shape) < predictions
    )
    section = calibration_section(task, targets, predictions, list("abcd")[:num_columns])
    said = " ".join(part.text for part in section.parts if isinstance(part, Text))
    assert "within noise" in said
    assert f"{NUM_BINS} bins of equal width" in said
    (picture,) = (part for part in section.parts if isinstance(part, Picture))
    FigureCanvasAgg(picture.figure).draw()
    rows = [row for part in section.parts if isinstance(part, Table) for row in part.rows]
    assert len(rows) == (4 if task == "multilabel" else 0)
    wrong = calibration_section(task, targets[::-1], predictions**0.2 if task != "multiclass" else predictions, "abcd")
    assert "more than noise" in " ".join(part.text for part in wrong.parts if isinstance(part, Text))
