"""CenterFace: the default detector as a network that can be trained further."""
