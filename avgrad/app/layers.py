"""Layers: the map of each layer alone."""

from __future__ import annotations

import streamlit as st

from avgrad.app.choice import choose_prompt
from avgrad.app.overlays import Display, fitted, has_layers, jpeg, layer_alone
from avgrad.app.session import Answer

_SIDE = 240


def show_layers(answer: Answer, display: Display) -> None:
    """A grid of one prompt's maps, one for each layer; each is stretched by itself."""
    result = answer.result
    if not has_layers(result):
        st.caption("This model has a single layer.")
        return
    index = choose_prompt(answer, "layers_prompt")
    st.caption("Each map is stretched to its own range: a layer that adds next to nothing looks as hot as any other.")
    with st.container(horizontal=True, key="layer_grid"):
        for layer in result.layers:
            alone = layer_alone(result, layer, answer.localizer.model.vision)
            image = fitted(alone, _SIDE).overlay(index, display.opacity, display.colormap)
            st.image(jpeg(image), f"layer {layer}", width=150, alt=f"Heatmap of layer {layer} alone")
