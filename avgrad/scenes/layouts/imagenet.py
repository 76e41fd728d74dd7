"""ImageNet-Segmentation, and ImageNet's validation folders for the perturbation tests.

ImageNet has no classes of the synthetic scenes; each stands for one that it resembles (`WNIDS`), so that runs work from
end to end. What a model of ImageNet's classes makes of drawings says nothing about that model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from avgrad.errors import InputError
from avgrad.scenes.classes import CLASSES
from avgrad.scenes.layouts import layout
from avgrad.scenes.series import Series, save_image

WNIDS = {
    "bell": "n03017168",  # chime, bell, gong
    "drum": "n03249569",
    "guitar": "n02676566",  # acoustic guitar
    "piano": "n04515003",  # upright piano
    "siren": "n02701002",  # ambulance
    "clock": "n02708093",  # analog clock
    "telephone": "n03187595",  # dial telephone
    "rain": "n04507155",  # umbrella
    "car": "n04285008",  # sports car
    "train": "n04310018",  # steam locomotive
    "helicopter": "n04552348",  # warplane
    "bird": "n01531178",  # goldfinch
    "bee": "n02206856",
    "dog": "n02088364",  # beagle
    "cat": "n02123045",  # tabby
    "frog": "n01644373",  # tree frog
}


@layout("imagenet-segmentation")
def write_segmentation(folder: Path, series: Series) -> None:
    """`gtsegs_ijcv.mat` (MATLAB 7.3) with the mask of each scene's only object."""
    try:
        import h5py
    except ImportError:
        raise InputError("the layout imagenet-segmentation needs h5py: pip install 'avgrad[eval]'") from None

    references = h5py.special_dtype(ref=h5py.Reference)
    with h5py.File(folder / "gtsegs_ijcv.mat", "w") as file:
        images, masks = (
            file.create_dataset(f"value/{name}", (series.n, 1), dtype=references) for name in ("img", "gt")
        )
        for index in series:
            scene = series.scene(index, (1,))
            # MATLAB's order: [3, W, H] and [W, H]
            image = file.create_dataset(f"#refs#/image{index}", data=scene.image.transpose(2, 1, 0), compression="gzip")
            mask = scene.masks[0].T.astype(np.uint8)
            cell = file.create_dataset(f"#refs#/cell{index}", (1, 1), dtype=references)
            cell[0, 0] = file.create_dataset(f"#refs#/mask{index}", data=mask, compression="gzip").ref
            images[index, 0], masks[index, 0] = image.ref, cell.ref


@layout("perturbation")
def write_validation(folder: Path, series: Series) -> None:
    """A folder for each class, named by its WordNet id, with scenes of a single object."""
    for index in series:
        wnid = WNIDS[CLASSES[series.object_class(index)].name]
        path = folder / "val" / wnid / f"ILSVRC2012_val_{index + 1:08d}.JPEG"
        save_image(path, series.scene(index, (1,)).image)
