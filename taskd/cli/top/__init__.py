"""``taskd top``: tasks as they run, at a terminal. Needs textual (``taskd-containers[top]``)."""
