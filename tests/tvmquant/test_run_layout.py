import numpy as np
import pytest

from tvmquant.run_layout import RunLayout, groups_follow_runs, runs_of, weight_of


def test_runs_join_the_rows_of_few_channels_and_many_outputs():
    for shape, runs in [
        ((64, 3, 7, 7), (64, 1, 147)),
        ((32, 3, 3, 3), (32, 1, 27)),
        ((16, 3, 3, 3), (16, 3, 9)),
        ((64, 16, 3, 3), (64, 3, 48)),
        ((64, 3, 1, 5), (64, 1, 15)),
        ((64, 3), (64, 1, 3)),
    ]:
        weight = np.arange(np.prod(shape)).reshape(shape)
        found = runs_of(weight)
        assert found.shape == runs
        layout = RunLayout.of(shape)
        assert (shape[0], layout.rows, layout.length) == runs
        assert layout.joined == (len(shape) == 4 and shape[2] > layout.rows)
        np.testing.assert_array_equal(weight_of(found, shape), weight)


@pytest.mark.parametrize(
    ("shape", "dilation", "channel_groups", "follow"),
    [
        ((64, 16, 3, 3), (1, 1), 1, True),
        ((64, 16, 3, 3), (2, 1), 1, True),
        ((64, 3, 3, 3), (2, 1), 1, False),
        ((64, 16, 3, 3), (1, 2), 1, False),
        ((64, 16, 3, 3), (1, 1), 4, False),
    ],
)
def test_groups_follow_runs(shape, dilation, channel_groups, follow):
    assert groups_follow_runs(shape, dilation, channel_groups) == follow
