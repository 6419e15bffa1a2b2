"""Uploads to a model hub, with a small one on this machine."""
