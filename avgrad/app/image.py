"""The image: a sample scene, an upload or a photo."""

from __future__ import annotations

import streamlit as st

from avgrad.app.prompts import choose_classes
from avgrad.app.session import Session, message
from avgrad.app.style import plain
from avgrad.errors import InputError
from avgrad.scenes.samples import samples

FIRST = 3  # the sample scene that the page opens with
_SOURCES = ("Samples", "Upload", "Camera")
_TYPES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")


def choose_image(session: Session) -> None:
    """Shows the sources of images, and sets the session's; if one cannot be read, the image set before stays."""
    if "sample" not in st.session_state:
        _choose_sample(FIRST)
    source = st.segmented_control(
        "Source of the image",
        _SOURCES,
        default=_SOURCES[0],
        required=True,
        label_visibility="collapsed",
        key="image_source",
    )
    if source == "Samples":
        with st.container(horizontal=True, key="tiles"):
            for number, sample in enumerate(samples()):
                chosen = number == st.session_state["sample"]
                st.button(
                    sample.title,
                    key=f"sample_{number}",
                    type="primary" if chosen else "secondary",
                    on_click=_choose_sample,
                    args=(number,),
                )
        session.set_sample(st.session_state["sample"])
        return
    photo = source == "Camera"
    if photo:
        file = st.camera_input("Take a photo", key="camera", width=480)
    else:
        file = st.file_uploader("Upload an image", _TYPES, key="image_file")
    if file is None:
        return
    name = "photo.jpg" if photo else file.name
    try:
        session.set_image(file.getvalue(), name, photo)
    except InputError as error:
        st.error(plain(message(error, name)), icon=":material/broken_image:")


def _choose_sample(number: int) -> None:
    """Chooses a sample scene, and the class of its first object as the prompt."""
    st.session_state["sample"] = number
    choose_classes([samples()[number].objects[0].object_class])
