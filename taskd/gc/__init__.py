"""Garbage collection: what no image, lease, label or container refers to is removed."""
