"""What the tests of loading share: a quiet init_weights, the log, and files to load."""

import logging

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.model import BaseModule


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    """init_weights of a root module logs one line per parameter."""
    monkeypatch.setattr(BaseModule, '_dump_init_info', lambda self: None)


@pytest.fixture
def log():
    """The lines that mmengine's current logger gets."""
    lines = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger = MMLogger.get_current_instance()
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


@pytest.fixture
def saved(tmp_path):
    """Saves the weights of a small network, or any object, and returns the path."""

    def save(content, name='checkpoint.pth'):
        if isinstance(content, torch.nn.Module):
            content = content.state_dict()
        path = tmp_path / name
        torch.save(content, path)
        return str(path)

    return save


@pytest.fixture(scope='session')
def resnet18(tmp_path_factory):
    """A torchvision file, and its network."""
    from checkpoint_sources import make_source  # skips without timm

    network, state = make_source('torchvision ResNet-18')
    path = tmp_path_factory.mktemp('source') / 'resnet18.pth'
    torch.save(state, path)
    return str(path), network
