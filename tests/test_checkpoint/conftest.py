"""The fixtures of these tests are those of the conversion's tests too."""

from checkpoint_fixtures import log, quiet, resnet18, saved  # noqa: F401
