"""Architectures, their registration with timm, pretrained weights, strict loading, and faster inference."""
