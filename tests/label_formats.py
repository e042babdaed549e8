"""Writers of labelled pictures in each format that `veil train import` reads."""

import json
from xml.etree import ElementTree

from PIL import Image


def annotations(folder):
    """Yield ``(path, [(label, box_xyxy, ignored), …])`` of each picture in annotations.json."""
    for image in json.loads((folder / "annotations.json").read_text())["images"]:
        labels = image.get("labels") or ["face"] * len(image["faces"])
        boxes = [(label, box, False) for label, box in zip(labels, image["faces"], strict=True)]
        boxes += [("ignore", box, True) for box in image.get("ignore", [])]
        yield folder / image["file"], boxes


def size_of(path):
    with Image.open(path) as image:
        return image.size


def write_voc(pictures, folder):
    """Write Pascal VOC: Annotations/*.xml, and JPEGImages/ with links to the pictures."""
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
    """Write COCO: instances.json, and images/ with links to the pictures."""
    (folder / "images").mkdir(parents=True)
    names = sorted({label for _, labels in pictures for label, _, _ in labels})
    content = {
        "images": [],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
    }
    for number, (path, labels) in enumerate(pictures):
        (folder / "images" / path.name).symlink_to(path.resolve())
        width, height = size_of(path)
        content["images"].append(
            {"id": number, "file_name": path.name, "width": width, "height": height}
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
    """Write YOLO: images/, labels/ and data.yaml. The format has no ignored boxes, so omit them."""
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    names = sorted({label for _, labels in pictures for label, _, ignored in labels if not ignored})
    (folder / "data.yaml").write_text(f"names: {json.dumps(names)}\n")
    for path, labels in pictures:
        (folder / "images" / path.name).symlink_to(path.resolve())
        width, height = size_of(path)
        lines = []
        for label, (x1, y1, x2, y2), ignored in labels:
            if not ignored:
                centre = f"{(x1 + x2) / 2 / width:.8f} {(y1 + y2) / 2 / height:.8f}"
                size = f"{(x2 - x1) / width:.8f} {(y2 - y1) / height:.8f}"
                lines.append(f"{names.index(label)} {centre} {size}\n")
        (folder / "labels" / f"{path.stem}.txt").write_text("".join(lines))
    return folder


def write_wider(pictures, folder):
    """Write WIDER FACE: split/wider_face_train_bbx_gt.txt and WIDER_train/images/."""
    images = folder / "WIDER_train" / "images" / "0--Parade"
    images.mkdir(parents=True)
    lines = []
    for path, labels in pictures:
        (images / path.name).symlink_to(path.resolve())
        lines += [f"0--Parade/{path.name}", str(len(labels))]
        for _, (x1, y1, x2, y2), ignored in labels:
            lines.append(f"{x1} {y1} {x2 - x1} {y2 - y1} 0 0 0 {int(ignored)} 0 0 ")
        if not labels:
            lines.append("0 0 0 0 0 0 0 0 0 0 ")
    (folder / "split").mkdir()
    (folder / "split" / "wider_face_train_bbx_gt.txt").write_text("\n".join(lines) + "\n")
    return folder


def write_veil(pictures, folder):
    """Write Veil's own format: annotations.json and images/."""
    (folder / "images").mkdir(parents=True)
    images = []
    for path, labels in pictures:
        (folder / "images" / path.name).symlink_to(path.resolve())
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
