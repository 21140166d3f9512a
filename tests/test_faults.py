"""A fault of each kind; `python -m tests.faults --count 100` for more."""

import pytest

from tests import faults

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", name="place")
def _place(tmp_path_factory):
  return faults.Place(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize(
  "number", range(len(faults.FAULTS)), ids=lambda n: faults.FAULTS[n].__name__
)
def test_a_fault_ends_in_the_same_models_or_a_refusal(place, number):
  assert faults.strike_and_resume(place, 0, number) in ("exact", "refused")
