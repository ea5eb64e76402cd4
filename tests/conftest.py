"""What holds for every test, whatever ran before it in the same process."""

import pytest
from tool_runner import forget_instances


@pytest.fixture(autouse=True)
def no_global_instances():
    """Forgets what another test's runner or model has left: names would be looked up in its default scope."""
    forget_instances()
