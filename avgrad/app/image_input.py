"""Where the visitor's image comes from: a sample, a file or the camera."""

from __future__ import annotations

import streamlit as st

from avgrad.app.prompt_input import choose_classes
from avgrad.app.session import MISTAKES, Session, sentence
from avgrad.app.style import plain
from avgrad.scenes.samples import samples

FIRST = 3  # the sample scene that is there when the page opens
_SOURCES = ("Samples", "Upload", "Camera")
_TYPES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")


def choose_image(session: Session) -> None:
    """Shows the ways to an image, and sets the visitor's; one that cannot be read leaves the last one where it is."""
    if "sample" not in st.session_state:
        _pick(FIRST)
    source = st.segmented_control(
        "Where the image comes from",
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
                    on_click=_pick,
                    args=(number,),
                )
        session.see_sample(st.session_state["sample"])
        return
    taken = source == "Camera"
    if taken:
        file = st.camera_input("Take an image", key="camera", width=480)
    else:
        file = st.file_uploader("Upload an image", _TYPES, key="image_file")
    if file is None:
        return
    name = "photo.jpg" if taken else file.name
    try:
        session.see(file.getvalue(), name, taken)
    except MISTAKES as error:
        st.error(plain(sentence(error, name)), icon=":material/broken_image:")


def _pick(number: int) -> None:
    """One click on a sample: its image, and the sound of the first object in it."""
    st.session_state["sample"] = number
    choose_classes([samples()[number].objects[0].object_class])
