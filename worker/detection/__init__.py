"""Detection of faces: passes over a picture, and the models and engines that they run."""
