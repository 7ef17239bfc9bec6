"""Images as content: descriptors, what they refer to, and the platforms that they are for."""
