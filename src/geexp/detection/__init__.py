"""Object detection: Faster R-CNN on our backbones, COCO's data and its evaluation."""
