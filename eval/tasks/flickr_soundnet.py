"""Flickr-SoundNet: sound sources marked by several annotators (Senocak et al., CVPR 2018), by the rule of EZ-VSL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar
from xml.etree import ElementTree

from eval.extended import Extended
from eval.metrics.sound_source import SIDE
from eval.reading import read_rows, read_text
from eval.sound_source import SoundItem, SoundSource, checked_base_name, checked_boxes
from eval.task import DataError, Published, task

CANVAS = 256  # side of the square that the annotations refer to


@task("flickr-soundnet")
class FlickrSoundNet(SoundSource):
    """Flickr-SoundNet's 250 test images; pixels that only one annotator marked count half."""

    measures = "cIoU and AUC of the sounding object in photographs"
    source = "https://github.com/ardasnck/learning_to_localize_sound_source (annotations; Flickr videos; research use)"
    layout = """metadata/flickr_test.csv (ID,class)
Annotations/ID.xml (boxes of each annotator on 256 x 256)
frames/ID.jpg
audio/ID.wav"""
    published: ClassVar[Sequence[Published]] = (
        Published("EZ-VSL", {"ciou": 83.94, "auc": 63.60}, "Mo and Morgado, ECCV 2022"),
        Published("SSL alignment", {"ciou": 85.2}, "Senocak et al., ICCV 2023"),
        Published("SSL alignment, pretrained vision", {"ciou": 86.0}, "Senocak et al., ICCV 2023"),
    )

    def rows(self) -> list[str]:
        """The ids."""
        return [row[0] for row in read_rows(self.root / "metadata" / "flickr_test.csv")]

    def item(self, number: int, row: Any) -> SoundItem:
        """An item of its id."""
        name = checked_base_name("the id", row)
        text = read_text(self.root / "Annotations" / f"{name}.xml")
        try:
            annotators = list(ElementTree.fromstring(text))
        except (ElementTree.ParseError, ValueError) as error:
            raise DataError(f"Annotations/{name}.xml cannot be read ({error}); XML is expected") from None
        # the first child of a box is not a coordinate
        boxes = [
            [[child.text for child in list(box)[1:5]] for box in annotator if box.tag == "bbox"]
            for annotator in annotators
        ]
        checked = tuple(checked_boxes(f"a box of {name}", own, SIDE / CANVAS) for own in boxes if own)
        if not checked:
            raise DataError(f"Annotations/{name}.xml has no box")
        # of a single annotator, too, a mark counts half
        return SoundItem(number, name, f"frames/{name}.jpg", f"audio/{name}.wav", "", (*checked, ()))


@task("flickr-extended")
class FlickrExtended(Extended, FlickrSoundNet):
    """Flickr-SoundNet with as many silent images."""

    source = f"https://github.com/stoneMo/SLAVC (list in its metadata/); {FlickrSoundNet.source}"
    layout = f"{FlickrSoundNet.layout}\nmetadata/flickr_test_plus_silent.csv (video,audio,label)"
    published = (Published("SLAVC", {"localization_accuracy": 83.60}, "Mo and Morgado, NeurIPS 2022"),)
    negatives = "flickr_test_plus_silent.csv"
