"""EfficientDet: anchors, network, losses, and detections from its outputs."""
