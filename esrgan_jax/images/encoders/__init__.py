"""Writers of the formats that go piece by piece."""
