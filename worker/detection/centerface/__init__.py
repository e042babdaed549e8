"""CenterFace: the default model, its network, and the check that it detects as it should."""
