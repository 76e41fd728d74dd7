"""VGG-SS: sound sources in VGGSound frames (Chen et al., CVPR 2021), by the rule of EZ-VSL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from eval.extended import Extended
from eval.metrics.sound_source import SIDE
from eval.negative_audio import NegativeAudio
from eval.reading import read_records, read_rows
from eval.sound_source import SoundItem, SoundSource, checked_base_name, checked_boxes, checked_class
from eval.task import DataError, Published, task


@task("vggss")
class VggSs(SoundSource):
    """VGG-SS; ids come from `vggss_test.csv` in its order.

    Of its 5,158 videos 4,654 are still to be had: the others are reported as missing, and the figures are of the rest.
    """

    measures = "cIoU and AUC of the sounding object in video frames"
    source = "https://www.robots.ox.ac.uk/~vgg/research/lvs (annotations; videos of VGGSound from YouTube)"
    layout = """metadata/vggss.json (file, class, bbox as fractions)
metadata/vggss_test.csv (one id per line)
frames/ID.jpg
audio/ID.wav"""
    published: ClassVar[Sequence[Published]] = (
        Published("EZ-VSL", {"ciou": 38.85, "auc": 39.54}, "Mo and Morgado, ECCV 2022"),
        Published("FNAC", {"ciou": 39.50, "auc": 39.66}, "Sun et al., CVPR 2023"),
        Published("SSL alignment", {"ciou": 39.94}, "Senocak et al., ICCV 2023"),
        Published("SSL alignment, pretrained vision", {"ciou": 41.42}, "Senocak et al., ICCV 2023"),
    )

    def rows(self) -> list[str]:
        """The ids."""
        records = read_records(self.root / "metadata" / "vggss.json")
        self._records = {str(record.get("file")): record for record in records}
        return [row[0] for row in read_rows(self.root / "metadata" / "vggss_test.csv")]

    def item(self, number: int, row: Any) -> SoundItem:
        """An item of its id."""
        name = checked_base_name("the id", row)
        record = self._records.get(name)
        if record is None:
            raise DataError(f"vggss.json has no record of {name}")
        boxes = checked_boxes(f"bbox of {name}", record.get("bbox"), SIDE)
        return SoundItem(
            number, name, f"frames/{name}.jpg", f"audio/{name}.wav", checked_class(record.get("class", "")), (boxes,)
        )


@task("vggss-extended")
class VggSsExtended(Extended, VggSs):
    """VGG-SS with as many silent images."""

    source = f"https://github.com/stoneMo/SLAVC (list in its metadata/); {VggSs.source}"
    layout = f"{VggSs.layout}\nmetadata/vggss_test_plus_silent.csv (video,audio,label)"
    published = (Published("SLAVC", {"localization_accuracy": 37.79}, "Mo and Morgado, NeurIPS 2022"),)
    negatives = "vggss_test_plus_silent.csv"


@task("vggss-negatives")
class VggSsNegatives(NegativeAudio, VggSs):
    """VGG-SS with silence, noise and off-screen sounds for each image, by the protocol of vssl_eval."""

    published = ()
