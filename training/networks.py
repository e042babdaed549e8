"""The choice of a kind of network by a recipe."""

from tasks.errors import TrainingFailed
from training.network import CENTERFACE, Network


def network_of(size: str, classes: tuple[str, ...]) -> Network:
    """Return the kind of network of the `size` of a recipe, for the labels `classes`."""
    if size == CENTERFACE:
        from training.centerface.network import CenterFace

        return CenterFace(classes)
    from training.efficientdet.model import SIZES
    from training.efficientdet.network import EfficientDet

    if size not in SIZES:
        raise TrainingFailed(f"the network {size!r} is unknown: choose from {', '.join(SIZES)}")
    return EfficientDet(size, classes)
