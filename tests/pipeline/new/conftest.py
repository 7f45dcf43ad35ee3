"""Prices of our own, as for the tests of `pion plan`."""

from __future__ import annotations

from tests.pipeline.rent.conftest import cache_of_its_own, sky_home

__all__ = ["cache_of_its_own", "sky_home"]
