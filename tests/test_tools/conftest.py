"""A fixture of the conversion's tests."""

from checkpoint_fixtures import saved  # noqa: F401
