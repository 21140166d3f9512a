"""The rules for a result's size."""

import pytest

from esrgan_jax.upscaling.result_size import ResultSize


@pytest.mark.parametrize(
  ("rule", "size"),
  [
    ({}, (44, 56)),
    ({"scale": 1.5}, (16, 21)),
    ({"scale": 0.01}, (1, 1)),
    ({"width": 28}, (22, 28)),
    ({"height": 110}, (110, 140)),
    ({"long_side": 1400}, (1100, 1400)),
    ({"short_side": 1100}, (1100, 1400)),
    ({"width": 280, "height": 110}, (110, 140)),
    ({"width": 140, "height": 1100}, (110, 140)),
    ({"width": 99, "height": 99}, (78, 99)),
  ],
)
def test_one_rule_decides_and_the_proportion_stays(rule, size):
  assert ResultSize(**rule).of((11, 14, 3), model_scale=4) == size


def test_the_side_that_is_asked_for_is_met_exactly():
  for side in range(1, 300):
    size = ResultSize(width=997).of((side, 300 - side), model_scale=4)
    assert size[1] == 997
    size = ResultSize(long_side=997).of((side, 300 - side), model_scale=4)
    assert max(size) == 997


@pytest.mark.parametrize(
  ("rule", "message"),
  [
    ({"scale": 2, "width": 9}, "scale and width are given"),
    ({"width": 2, "long_side": 9}, "width and long_side are given"),
    ({"height": 0}, "height is 0; it must be above 0"),
    ({"scale": float("nan")}, "scale is nan"),
  ],
)
def test_rules_that_cannot_be_meant(rule, message):
  with pytest.raises(ValueError, match=message):
    ResultSize(**rule)
