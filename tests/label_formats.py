"""The same labelled pictures written down in the formats that `veil train import` reads."""

import json
from pathlib import Path
from xml.etree import ElementTree

from PIL import Image


def annotations(folder):
    """The pictures of Veil's own annotations in `folder`: (path, [(label, box, ignored)…])."""
    for image in json.loads((folder / "annotations.json").read_text())["images"]:
        labels = image.get("labels") or ["face"] * len(image["faces"])
        boxes = [(label, box, False) for label, box in zip(labels, image["faces"], strict=True)]
        yield (
            folder / image["file"],
            boxes + [("ignore", box, True) for box in image.get("ignore", [])],
        )


def size_of(path):
    with Image.open(path) as image:
        return image.size


def write_voc(pictures, folder):
    """Annotations/*.xml beside JPEGImages/, which links to the pictures."""
    for name in ("Annotations", "JPEGImages"):
        (folder / name).mkdir(parents=True)
    for path, labels in pictures:
        (folder / "JPEGImages" / path.name).symlink_to(path.resolve())
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = path.name
        size = ElementTree.SubElement(root, "size")
        for side, value in zip(("width", "height"), size_of(path), strict=True):
            ElementTree.SubElement(size, side).text = str(value)
        for label, box, ignored in labels:
            item = ElementTree.SubElement(root, "object")
            ElementTree.SubElement(item, "name").text = label
            ElementTree.SubElement(item, "difficult").text = str(int(ignored))
            corners = ElementTree.SubElement(item, "bndbox")
            for side, value in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True):
                ElementTree.SubElement(corners, side).text = str(value)
        ElementTree.ElementTree(root).write(folder / "Annotations" / f"{path.stem}.xml")
    return folder


def write_coco(pictures, folder):
    """instances.json; the pictures are where they were, and named by their whole path."""
    folder.mkdir(parents=True)
    names = sorted({label for _, labels in pictures for label, _, _ in labels})
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": name} for i, name in enumerate(names)],
    }
    for number, (path, labels) in enumerate(pictures):
        width, height = size_of(path)
        content["images"].append(
            {"id": number, "file_name": str(path.resolve()), "width": width, "height": height}
        )
        for label, (x1, y1, x2, y2), ignored in labels:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": number,
                    "category_id": names.index(label),
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "iscrowd": int(ignored),
                }
            )
    (folder / "instances.json").write_text(json.dumps(content))
    return folder / "instances.json"


def write_yolo(pictures, folder):
    """images/ and labels/ with data.yaml; what is ignored has no place in it."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    names = sorted({label for _, labels in pictures for label, _, ignored in labels if not ignored})
    (folder / "data.yaml").write_text(f"names: {json.dumps(names)}\n")
    for path, labels in pictures:
        (folder / "images" / path.name).symlink_to(path.resolve())
        width, height = size_of(path)
        lines = [
            f"{names.index(label)} {(x1 + x2) / 2 / width:.8f} {(y1 + y2) / 2 / height:.8f} "
            f"{(x2 - x1) / width:.8f} {(y2 - y1) / height:.8f}\n"
            for label, (x1, y1, x2, y2), ignored in labels
            if not ignored
        ]
        (folder / "labels" / f"{path.stem}.txt").write_text("".join(lines))
    return folder


def write_wider(pictures, folder):
    """split/wider_face_train_bbx_gt.txt and WIDER_train/images/."""
    images = folder / "WIDER_train" / "images" / "0--Parade"
    images.mkdir(parents=True)
    lines = []
    for path, labels in pictures:
        (images / path.name).symlink_to(path.resolve())
        lines += [f"0--Parade/{path.name}", str(len(labels))]
        lines += [
            f"{x1} {y1} {x2 - x1} {y2 - y1} 0 0 0 {int(i)} 0 0 "
            for _, (x1, y1, x2, y2), i in labels
        ]
        if not labels:
            lines.append("0 0 0 0 0 0 0 0 0 0 ")
    (folder / "split").mkdir()
    (folder / "split" / "wider_face_train_bbx_gt.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_veil(pictures, folder):
    """annotations.json beside images/."""
    (folder / "images").mkdir(parents=True)
    images = []
    for path, labels in pictures:
        (folder / "images" / Path(path).name).symlink_to(Path(path).resolve())
        images.append(
            {
                "file": f"images/{path.name}",
                "faces": [box for _, box, ignored in labels if not ignored],
                "labels": [label for label, _, ignored in labels if not ignored],
                "ignore": [box for _, box, ignored in labels if ignored],
            }
        )
    (folder / "annotations.json").write_text(json.dumps({"images": images}))
    return folder
