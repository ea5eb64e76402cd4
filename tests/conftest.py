"""What holds for every test file, whatever ran before it in the same process."""

import pytest
from mmengine.registry import DefaultScope


@pytest.fixture(scope='module', autouse=True)
def no_default_scope():
    """Forgets the default scope that another file's runner or model has set: names would be looked up in it."""
    DefaultScope._instance_dict.clear()
