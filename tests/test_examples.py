"""The examples do what they say."""

import numpy as np
import pytest


@pytest.mark.release
def test_a_researchers_network_trains_alike_in_every_way(capsys):
  from examples import researcher

  found = researcher.main(["--steps", "2", "--features", "8", "--blocks", "1"])
  lines = capsys.readouterr().out.splitlines()
  assert [line[:14].rstrip() for line in lines] == list(researcher.WAYS)
  losses, params = found.pop("one device")
  assert len(found) == 3
  for other_losses, other_params in found.values():
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    assert researcher.largest(other_params, params) < 1e-6
