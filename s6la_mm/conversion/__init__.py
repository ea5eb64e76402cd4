"""Turning checkpoints into ones for S6LA backbones, and looking into them."""
