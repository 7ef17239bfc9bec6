"""``taskd ui``: one page on loopback, for people who would rather look. Stands on the client."""
