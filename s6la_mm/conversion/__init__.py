"""Turning checkpoints into ones for S6LA backbones."""
