"""A fault of some kinds; `.ci/release faults` strikes with a hundred of all."""

import pytest

from tests import faults

pytestmark = pytest.mark.release

# A machine, a file, a process.
_STRUCK = ("kill", "flip", "one_of_two")


@pytest.fixture(scope="module", name="place")
def _place(tmp_path_factory):
  return faults.Place(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize("name", _STRUCK)
def test_a_fault_ends_in_the_same_models_or_a_refusal(place, name):
  (number,) = (n for n, f in enumerate(faults.FAULTS) if f.__name__ == name)
  assert faults.strike_and_resume(place, 0, number) in ("exact", "refused")
